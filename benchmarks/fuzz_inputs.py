"""Inputs for fuzz.py: one case is a text of named parts, made by hypothesis or from a valid one by mutation.

%%%% name            begins a part; what follows up to the next such line are its bytes
"""

from __future__ import annotations

import copy
import json
import random
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

SEPARATOR = re.compile(rb"(?:\A|\n)%%%% ([\w][\w./-]{0,60})\n")
MOST_BYTES = 1 << 18  # of a case
TOKENS = [
  b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"9" * 400, b"9" * 5000,
  b"\\u0000", b"\\ud800", b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", "\u2028".encode(), "\u202e".encode(), b"\r", b"\n", b"\n\n",
  b"[" * 3000, b'{"a":' * 3000, b"../", b"../../../../etc/passwd", b"/etc/passwd", b"C:\\", b"<script>", b"</script>", b"__class__", b"{{", b"}}",
  b"{% for i in range(10**9) %}", b"{% endfor %}", b"{% set x = ", b"%}", b"| tojson", b"* 10**9", b"~", b"lang", b"messages", b"role", b"content",
  b"auto_map", b"[[A]]", b"<think>", b"1e5", b",,,,", b"\t", b'""', b"=cmd()", b"id", b"e" * 2000,
]  # fmt: skip
ODD = [
  None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "a", "\u3000", "\ud83d", "\x00",
  "\u2028", "a" * 5000, "../../x", "/etc/passwd", "..", ".", "<script>alert(1)</script>", "{{ 1 }}", [], {}, [[]], [None], [1, "a", None], {"a": {}},
  {"": ""}, {"content": "x"}, {"content": None}, [{"role": "user", "content": "q"}], "en", "xx", "und", "zh-Hant", ["q", "a"],
]  # fmt: skip


def join(parts: Mapping[str, bytes]) -> bytes:
  """A case of these parts."""
  return b"".join(b"\n%%%% " + name.encode() + b"\n" + data for name, data in parts.items())


def split(case: bytes) -> dict[str, bytes]:
  """{name: bytes}; what stands before the first name belongs to none."""
  pieces = SEPARATOR.split(case)
  return {name.decode(): data for name, data in zip(pieces[1::2], pieces[2::2], strict=True)}


# --- mutation


class Mutator:
  """New cases from those that were of use so far."""

  def __init__(self, seeds: Sequence[bytes], rng: random.Random):
    self.corpus, self.rng = list(seeds), rng
    self.num_seeds = len(self.corpus)

  def next(self) -> bytes:
    rng = self.rng
    # The seeds stay likely, however many descendants they have.
    first = rng.random() < 0.5
    case = rng.choice(self.corpus[: self.num_seeds] if first else self.corpus)
    parts = split(case)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
      name = rng.choice(list(parts))
      other = split(rng.choice(self.corpus)).get(name, b"")
      change = rng.choice(CHANGES)
      parts[name] = change(parts[name], other, rng)[:MOST_BYTES]
    if rng.random() < 0.03 and len(parts) > 1:
      del parts[rng.choice(list(parts))]
    return join(parts)

  def keep(self, case: bytes) -> None:
    """A case that showed something new."""
    self.corpus.append(case)


def _flip(data, _, rng):
  out = bytearray(data or b" ")
  for _ in range(rng.choice((1, 1, 2, 8))):
    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
  return bytes(out)


def _cut(data, _, rng):
  return data[: rng.randrange(len(data) + 1)]


def _remove(data, _, rng):
  at = rng.randrange(len(data) + 1)
  return data[:at] + data[at + rng.choice((1, 2, 8, 100, 10_000)) :]


def _repeat(data, _, rng):
  at = rng.randrange(len(data) + 1)
  piece = data[at : at + rng.choice((1, 8, 100))]
  return data[:at] + piece * rng.choice((2, 3, 50, 2000)) + data[at:]


def _insert(data, _, rng):
  at = rng.randrange(len(data) + 1)
  return data[:at] + rng.choice(TOKENS) + data[at + rng.choice((0, 0, 1, 4)) :]


def _splice(data, other, rng):
  return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _number(data, _, rng):
  """Another number in the place of one, or of the 8 bytes at the beginning."""
  found = list(re.finditer(rb"-?\d+", data))
  new = rng.choice((0, -1, 1, 7, 255, 4096, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 10**25))
  if not found or rng.random() < 0.1:
    return struct.pack("<Q", new & (2**64 - 1)) + data[8:]
  at = rng.choice(found)
  return data[: at.start()] + str(new).encode() + data[at.end() :]


def _json(data, other, rng):
  """A value, a key or a branch of the JSON in it (a line of it, or behind 8 bytes of length) changed."""
  lines = data.split(b"\n")
  number = rng.randrange(len(lines))
  for begin, text in ((lines[:number], lines[number]), ([], data), (None, data[8:])):
    try:
      value = json.loads(text)
    except (ValueError, RecursionError):
      continue
    new = json.dumps(changed(value, rng), ensure_ascii=rng.random() < 0.7)
    raw = new.encode("utf-8", "surrogatepass")
    if begin is None:
      return struct.pack("<Q", len(raw)) + raw
    rest = [] if text is data else lines[number + 1 :]
    return b"\n".join([*begin, raw, *rest])
  return _insert(data, other, rng)


CHANGES: list[Callable] = [_flip, _cut, _remove, _repeat, _insert, _splice, _number] + [_json] * 7


def changed(value, rng: random.Random):
  """The JSON value with one to three faults."""
  value = copy.deepcopy(value)
  for _ in range(rng.choice((1, 1, 2, 3))):
    spots = list(_places(value))
    if not spots:
      return rng.choice(ODD)
    at, key = rng.choice(spots)
    fault = rng.randrange(7)
    if fault == 0:
      del at[key]
    elif fault == 1:
      at[key] = rng.choice([[at[key]], {"x": at[key]}, str(at[key]), [at[key]] * 3])
    elif fault == 2 and isinstance(at, dict):
      at[str(rng.choice(ODD))[:50]] = at.pop(key)
    elif fault == 3 and isinstance(at, list):
      at *= rng.choice((0, 2, 50))
    elif fault == 4:
      other, its = rng.choice(spots)
      at[key] = copy.deepcopy(other[its]) if its in other or (isinstance(other, list) and its < len(other)) else None  # fmt: skip
    else:
      at[key] = copy.deepcopy(rng.choice(ODD))
  return value


def _places(value) -> Iterator[tuple]:
  for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():  # fmt: skip
    yield value, key
    yield from _places(value[key])


# --- hypothesis


def structured(strategy, count: int, seed: int) -> Iterator[bytes]:
  """So many cases of a hypothesis strategy, in batches: the same for the same seed."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for batch in range(0, count, 500):
      yield from _drawn(strategy, min(500, count - batch), seed + batch)


def _drawn(strategy, count: int, seed: int) -> list[bytes]:
  import hypothesis
  from hypothesis import HealthCheck, Phase, settings

  found: list[bytes] = []

  @hypothesis.seed(seed)
  @settings(
    max_examples=count,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
  )
  @hypothesis.given(strategy)
  def draw(case):
    found.append(case)

  draw()
  return found


def json_values():
  """Any JSON, with what is hard on readers."""
  from hypothesis import strategies as st

  leaves = st.one_of(
    st.sampled_from(ODD),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=()), max_size=20),
  )
  return st.recursive(
    leaves,
    lambda inner: (
      st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
  )


def dump(value) -> bytes:
  """JSON as a careless writer leaves it: NaN and half characters stand in it."""
  return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
