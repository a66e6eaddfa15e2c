"""Near duplicates: rows that share most of their 5-grams with an earlier row of their language.

MinHash signatures are rensa's. The search among them is ours, so that its result depends on nothing
but the order of the rows: only rows that share a band with another are looked at, and each is
compared with the earlier ones that stay. So every row that goes has one like it among the kept.
"""

import functools
import hashlib
from collections.abc import Iterable

import numpy as np
import rensa

from mlit_jax.data.hashing import scramble
from mlit_jax.data.ngrams import gram_hashes, text_hash, unit_hashes

GRAM = 5  # units of a gram: words, or characters of scripts without spaces
SIGNATURE = 128  # numbers of a signature: an estimate of 0.8 is off by 0.035 (one sigma)
FOUND = 0.97  # the share of pairs just as similar as asked that share a band
# Rows of one bucket that later ones are compared with, so that 50,000 rows of one template take 5 s
# and not 2 minutes. A row that repeats one of them shares rarer buckets with it as well.
_CROWD = 256
_BLOCK = 1 << 16  # rows hashed at once


def signature(texts: Iterable[str], lang: str) -> np.ndarray:
  """uint32 [SIGNATURE] of a row; the share of equal numbers of two rows estimates their Jaccard.

  Rows of different languages share nothing, whatever their texts.
  """
  grams = []
  for text in texts:
    units = unit_hashes(text)
    found = gram_hashes(units, min(GRAM, max(1, len(units))))
    # Without a word in it (punctuation, emoji) a text is a gram of its own.
    grams.append(found if len(found) else np.array([text_hash(text)], np.uint64))
  hashes = scramble(np.concatenate(grams) ^ _language_hash(lang))
  matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
    hashes, np.array([0, len(hashes)], np.uint64), SIGNATURE, 1
  )
  return np.array(matrix.to_rows()[0], np.uint32)


def near_duplicates(signatures: np.ndarray, similarity: float) -> np.ndarray:
  """bool [n], True where a row is as similar as `similarity` to an earlier row that stays.

  signatures: uint32 [n, k], in the order of the rows; may be memory-mapped.
  """
  n, k = signatures.shape
  repeats = np.zeros(n, bool)
  kept_of_bucket = {}
  for row, mine in _buckets(signatures, *_bands(k, similarity)):
    candidates = sorted(set().union(*(kept_of_bucket.get(b, ()) for b in mine)))
    if candidates:
      equal = np.asarray(signatures[candidates]) == signatures[row]
      if equal.mean(axis=1).max() >= similarity:
        repeats[row] = True
        continue
    for b in mine:
      kept = kept_of_bucket.setdefault(b, [])
      if len(kept) < _CROWD:
        kept.append(row)
  return repeats


def _bands(k: int, similarity: float) -> tuple[int, int]:
  """(bands, numbers of a band): the longest bands that still find FOUND of the pairs."""
  for length in range(k, 1, -1):
    if 1 - (1 - similarity**length) ** (k // length) >= FOUND:
      return k // length, length
  return k, 1


def _buckets(signatures, bands: int, length: int):
  """(row, its buckets) of each row that shares one, in order."""
  sharing, numbers, next_number = [], [], 0
  for band in range(bands):
    keys = _band_hashes(signatures, slice(band * length, (band + 1) * length))
    _, number, size = np.unique(keys, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(size[number] > 1)
    sharing.append(shared)
    numbers.append(number[shared] + next_number)
    next_number += len(size)
  sharing, numbers = np.concatenate(sharing), np.concatenate(numbers)
  order = np.argsort(sharing, kind="stable")
  sharing, numbers = sharing[order], numbers[order]
  starts = np.flatnonzero(np.diff(sharing, prepend=-1))
  for start, end in zip(starts, [*starts[1:], len(sharing)]):
    yield int(sharing[start]), numbers[start:end].tolist()


def _band_hashes(signatures, columns) -> np.ndarray:
  """uint64, one for each row, of its numbers in `columns`."""
  hashes = np.empty(len(signatures), np.uint64)
  for start in range(0, len(signatures), _BLOCK):
    block = np.asarray(signatures[start : start + _BLOCK, columns], np.uint64)
    total = np.zeros(len(block), np.uint64)
    for column in block.T:
      total = scramble(total * np.uint64(31) + column)
    hashes[start : start + _BLOCK] = total
  return hashes


@functools.cache
def _language_hash(lang: str) -> np.uint64:
  return np.uint64(int.from_bytes(hashlib.blake2b(lang.encode(), digest_size=8).digest(), "little"))
