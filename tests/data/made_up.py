"""Encoded examples by hand, with no tokenizer: every token is a number of its own, so a misplaced one shows."""

import hashlib

import numpy as np

from mlit_jax.data.encode import id_numbers
from mlit_jax.data.encoded import Encoded
from mlit_jax.data.hashing import stable_hash

NAMES: dict[str, str] = {}  # example id of 128 bits -> the name that a test gave it


def make_encoded(examples, *, fingerprint="made up", sources=("rows",), source_of=None) -> Encoded:
  """Of (language, name, group id or None, length), in this order; source_of(name) -> number of its source."""
  languages = tuple(sorted({lang for lang, *_ in examples}))
  lengths = np.array([length for *_, length in examples], np.int32)
  ends = np.cumsum(lengths, dtype=np.int64)
  starts = ends - lengths
  total = int(lengths.sum())
  trained = (np.arange(total) * 7919 % 5 < 3).astype(np.uint8)  # in no step with the lengths
  trained[ends - 1] = 1
  trained[starts] = 0
  sums = np.concatenate([[0], np.cumsum(trained, dtype=np.int64)])
  groups = [0 if group is None else stable_hash("group", group) for _, _, group, _ in examples]
  source = [source_of(name) if source_of else 0 for _, name, *_ in examples]
  return Encoded(
    tokens=np.arange(1, total + 1, dtype=np.uint32),
    trained=trained,
    starts=starts,
    lengths=lengths,
    trained_counts=(sums[ends] - sums[starts]).astype(np.int32),
    language=np.array([languages.index(lang) for lang, *_ in examples], np.int32),
    source=np.array(source, np.int32),
    file=np.array(source, np.int32),
    row=np.arange(1, len(examples) + 1),
    ids=id_numbers([id_of(name) for _, name, *_ in examples]),
    groups=np.array(groups, np.uint64),
    answer_bytes=lengths,
    text_bytes=3 * lengths,
    truncated=(lengths % 7 == 0).astype(np.uint8),
    languages=languages,
    sources=sources,
    files=sources,
    rows_read={},
    dropped={},
    flagged={},
    language_judged={},
    language_judged_every=0,
    fingerprint=fingerprint,
  )


def id_of(name: str) -> str:
  found = hashlib.md5(name.encode()).hexdigest()
  NAMES[found] = name
  return found


def names_of(encoded: Encoded, examples) -> list[str]:
  return [NAMES[encoded.example_id(i)] for i in examples]


def language_of(encoded: Encoded, i) -> str:
  return encoded.languages[encoded.language[i]]


def examples_of(rows: dict[str, int], *, parallel=False) -> list[tuple]:
  """{"en": 3} -> three examples of English; with `parallel`, example i of every language is of one group."""
  return [
    (lang, f"{lang}-{i}", f"g{i}" if parallel else None, 1 + (17 * i + 5 * len(rows)) % 23)
    for lang, number in rows.items()
    for i in range(number)
  ]
