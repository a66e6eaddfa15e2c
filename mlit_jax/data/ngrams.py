"""Texts as hashes of their words: the same numbers in every process and on every machine."""

import functools
import hashlib
import unicodedata

import numpy as np
import regex

from mlit_jax.data.hashing import scramble

# Written without spaces between words: each character is a unit of its own.
UNSPACED = ("Hani", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr")

# Kinds of characters, in this order: a word ends before any unspaced one.
OTHER, WORD, MARK, UNSPACED_LETTER, UNSPACED_MARK, IGNORED = range(6)
_KINDS = {
  WORD: r"\w",
  MARK: r"\p{M}",
  UNSPACED_LETTER: "[" + "".join(rf"\p{{Script={s}}}" for s in UNSPACED) + r"\u30fc&&\w]",
  UNSPACED_MARK: "[" + "".join(rf"\p{{Script={s}}}" for s in UNSPACED) + r"&&\p{M}]",
  # Joiners, selectors and the like tell no words apart; the zero-width space does.
  IGNORED: r"[\p{Default_Ignorable_Code_Point}--\u200b]",
}

_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_INVERSE = pow(_MULTIPLIER, -1, 2**64)


@functools.lru_cache(maxsize=16)  # the checks of a row ask for the same messages in turn
def normalise(text: str) -> str:
  """NFKC, without case, white space as single spaces: "Ｈｅｌｌｏ\\n WORLD" -> "hello world"."""
  text = text.casefold() if text.isascii() else _nfkc(_nfkc(text).casefold())
  return " ".join(text.split())


def text_hash(*texts: str) -> int:
  """64 bits of normalised texts, punctuation included, as if they stood in one."""
  data = " ".join(map(normalise, texts)).encode("utf-8", "surrogatepass")
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@functools.lru_cache(maxsize=16)
def unit_hashes(text: str) -> np.ndarray:
  """uint64, one for each word, or character of a script that writes none, in order.

  "Hello, world!" -> [h(hello), h(world)]      "你好 world" -> [h(你), h(好), h(world)]
  """
  codes = code_points(normalise(text))
  kinds = character_kinds()[codes]
  if (kinds == IGNORED).any():
    codes, kinds = codes[kinds != IGNORED], kinds[kinds != IGNORED]
  starts = np.flatnonzero(unit_starts(kinds))
  hashes = _window_sums(_character_values()[codes], starts, np.append(starts[1:], len(codes)))
  hashes.flags.writeable = False  # it is cached
  return hashes


def gram_hashes(units: np.ndarray, n: int) -> np.ndarray:
  """uint64, one for each run of n units; none of a text with fewer."""
  starts = np.arange(max(0, len(units) - n + 1))
  return _window_sums(units, starts, starts + n)


def code_points(text: str) -> np.ndarray:
  return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def unit_starts(kinds: np.ndarray) -> np.ndarray:
  """bool, True where a word begins, and at each character of an unspaced script."""
  before = np.zeros_like(kinds)
  before[1:] = kinds[:-1]
  return (
    (kinds == UNSPACED_LETTER)
    | ((before == OTHER) & (kinds != OTHER))
    | ((before >= UNSPACED_LETTER) & (kinds == WORD))
  )


@functools.cache
def character_kinds() -> np.ndarray:
  """uint8 [0x110000], the kind of every code point; 0.2 s once a process."""
  kinds = np.zeros(0x110000, np.uint8)
  for kind, pattern in _KINDS.items():
    kinds[having(pattern)] = kind
  return kinds


@functools.cache
def _character_values() -> np.ndarray:
  """uint64 [0x110000], what a character counts in the hash of its word; 0 between words."""
  values = scramble(np.arange(1, 0x110001, dtype=np.uint64))
  values[character_kinds() == OTHER] = 0
  return values


def having(pattern: str) -> np.ndarray:
  """bool [0x110000], which code points a character class matches."""
  found = np.zeros(0x110000, bool)
  for run in regex.finditer(f"(?V1){pattern}+", _every_character()):
    found[run.start() : run.end()] = True
  return found


def _nfkc(text: str) -> str:
  return unicodedata.normalize("NFKC", text)


def _window_sums(values, starts, ends):
  """The polynomial hash of values[start:end], for all windows at once: differences of prefix sums."""
  powers, inverses = _powers(1 << max(10, len(values).bit_length()))
  sums = np.zeros(len(values) + 1, np.uint64)
  np.cumsum(values * powers[: len(values)], out=sums[1:])
  return scramble((sums[ends] - sums[starts]) * inverses[starts])


@functools.cache
def _powers(n: int) -> tuple[np.ndarray, np.ndarray]:
  def powers(base):
    factors = np.full(n, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)

  return powers(_MULTIPLIER), powers(_INVERSE)


@functools.cache
def _every_character() -> str:
  return "".join(map(chr, range(0x110000)))
