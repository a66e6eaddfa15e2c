"""Encoded examples by hand, with no tokenizer: every token is a number of its own, so a misplaced one shows."""

import numpy as np

from mlit_jax.data.encode import Encoded


def make_encoded(examples, *, fingerprint="made up") -> Encoded:
  """Of (language, example id, group id or None, length), in this order."""
  languages = tuple(sorted({lang for lang, *_ in examples}))
  lengths = [length for *_, length in examples]
  offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
  total = int(offsets[-1])
  trained = (np.arange(total) * 7919 % 5 < 3).astype(np.uint8)  # in no step with the lengths
  trained[offsets[1:] - 1] = 1
  trained[offsets[:-1]] = 0
  return Encoded(
    tokens=np.arange(1, total + 1, dtype=np.uint32),
    trained=trained,
    offsets=offsets,
    language=np.array([languages.index(lang) for lang, *_ in examples], np.int32),
    answer_bytes=np.array(lengths, np.int32),
    text_bytes=3 * np.array(lengths, np.int32),
    truncated=np.array([length % 7 == 0 for length in lengths], np.uint8),
    languages=languages,
    example_ids=[example_id for _, example_id, *_ in examples],
    group_ids=[group for _, _, group, _ in examples],
    dropped={},
    fingerprint=fingerprint,
  )


def examples_of(rows: dict[str, int], *, parallel=False) -> list[tuple]:
  """{"en": 3} -> three examples of English; with `parallel`, example i of every language is of one group."""
  return [
    (lang, f"{lang}-{i}", f"g{i}" if parallel else None, 1 + (17 * i + 5 * len(rows)) % 23)
    for lang, number in rows.items()
    for i in range(number)
  ]
