"""Hashes that choose and order: the same on every machine, in every release, whatever library is upgraded."""

from __future__ import annotations

import hashlib

import numpy as np


def stable_hash(*parts) -> int:
  """64 bits of blake2b over the parts' text."""
  text = "\x1f".join(map(str, parts)).encode()
  return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def mix(keys: np.ndarray, *parts) -> np.ndarray:
  """uint64 [n]: a hash of each key together with the parts.

  Keys that differ give hashes that differ.
  """
  salt = np.uint64(stable_hash(*parts))
  return scramble((keys.astype(np.uint64) ^ salt) + np.uint64(0x9E3779B97F4A7C15))


def scramble(values: np.ndarray) -> np.ndarray:
  """Spreads uint64 over all bits, one to one: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))


def rank(keys: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """int64 [n]: `rows` by ascending key; where keys are equal, by id (uint64 [all rows, 2])."""
  order = np.argsort(keys, kind="stable")
  ranked = keys[order]
  same = ranked[1:] == ranked[:-1]
  if same.any():
    tied = np.concatenate([[False], same]) | np.concatenate([same, [False]])
    at = order[tied]
    order[tied] = at[np.lexsort((ids[rows[at], 1], ids[rows[at], 0], keys[at]))]
  return rows[order]
