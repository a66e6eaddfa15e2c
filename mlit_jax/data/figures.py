"""What the tokens of a plan are like in each language: how long, how dense, how well spelt."""

from __future__ import annotations

import dataclasses

import numpy as np

from mlit_jax.data.encoded import Encoded
from mlit_jax.data.plan import Plan
from mlit_jax.data.tokenizer import Tokenizer

SAMPLED = 2000  # rows of a language whose tokens are looked at; lengths are those of all rows
LEAST_GROUPS = 10  # parallel rows that a comparison of two languages takes


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Of the different rows of a language that the plan has, in tokens."""

  median: int
  p95: int
  longest: int
  histogram: tuple[int, ...]  # rows in each of the bins


@dataclasses.dataclass(frozen=True)
class Language:
  """One language of a plan. Shares are of the tokens of text: markers of turns do not count."""

  rows: np.ndarray  # int64, the rows of the plan that were looked at, in the order of the run
  lengths: Lengths
  unknown: float  # share of tokens that stand for what the vocabulary cannot spell
  partial: float  # share of tokens that spell only a part of a character
  premium: float | None  # tokens of its rows, beside those of the same rows in `reference`


@dataclasses.dataclass(frozen=True)
class Figures:
  languages: dict[str, Language]
  reference: str  # the language that premiums compare with
  edges: tuple[int, ...]  # of the bins: bin i has lengths above edges[i], up to edges[i + 1]


def measure(encoded: Encoded, plan: Plan, tokenizer: Tokenizer) -> Figures:
  """Figures of each language that the plan trains on.

  The premium of a language is that of Petrov et al. 2023 (Language Model Tokenizers Introduce Unfairness
  Between Languages): tokens over tokens, of parallel rows (`group_id`) with their template.
  """
  edges = _edges(plan.max_length)
  chosen, first = np.unique(plan.examples, return_index=True)
  chosen = chosen[np.argsort(first)]  # in the order of the run
  numbers = encoded.language[chosen]
  reference = _reference(encoded, numbers)
  of_reference = _groups(encoded, encoded.languages.index(reference))
  languages = {}
  for number in np.unique(numbers):
    lang = encoded.languages[number]
    mine = chosen[numbers == number]
    rows = mine[:SAMPLED]
    unknown, partial = _spelling(encoded, rows, tokenizer)
    premium = None if lang == reference else _premium(_groups(encoded, number), of_reference)
    languages[lang] = Language(
      rows, _lengths(encoded.lengths[mine], edges), unknown, partial, premium
    )
  return Figures(dict(sorted(languages.items())), reference, edges)


def _edges(max_length: int) -> tuple[int, ...]:
  """0 16 32 64 ... max_length"""
  edges = [0, 16]
  while edges[-1] < max_length:
    edges.append(min(2 * edges[-1], max_length))
  return tuple(edges)


def _lengths(lengths: np.ndarray, edges: tuple[int, ...]) -> Lengths:
  bins = np.searchsorted(edges, lengths, side="left") - 1
  histogram = np.bincount(bins, minlength=len(edges) - 1)
  p50, p95 = np.quantile(lengths, (0.5, 0.95), method="nearest").tolist()
  return Lengths(int(p50), int(p95), int(lengths.max()), tuple(histogram.tolist()))


def _spelling(encoded: Encoded, rows: np.ndarray, tokenizer: Tokenizer) -> tuple[float, float]:
  """Shares of tokens that are unknown, and that are parts of characters."""
  counts = np.zeros(tokenizer.vocab_size, np.int64)
  for row in rows.tolist():
    counts += np.bincount(encoded.tokens_of(row), minlength=len(counts))
  unknown = 0 if tokenizer.unk_id is None else int(counts[tokenizer.unk_id])
  partial = int(counts[tokenizer.partial_ids].sum())
  counts[[i for i in tokenizer.special_ids if i != tokenizer.unk_id]] = 0
  total = max(1, int(counts.sum()))
  return unknown / total, partial / total


def _reference(encoded: Encoded, numbers: np.ndarray) -> str:
  """English where the plan has it, as in the literature; else the language with most rows."""
  counts = np.bincount(numbers, minlength=len(encoded.languages))
  if "en" in encoded.languages and counts[encoded.languages.index("en")]:
    return "en"
  return encoded.languages[int(counts.argmax())]


def _groups(encoded: Encoded, number: int) -> tuple[np.ndarray, np.ndarray]:
  """(groups, lengths) of all rows of a language that belong to a group, one row for each group."""
  rows = np.flatnonzero((encoded.language == number) & (encoded.groups != 0))
  groups, first = np.unique(encoded.groups[rows], return_index=True)
  return groups, encoded.lengths[rows[first]]


def _premium(mine, other) -> float | None:
  _, a, b = np.intersect1d(mine[0], other[0], assume_unique=True, return_indices=True)
  if len(a) < LEAST_GROUPS:
    return None
  return float(mine[1][a].sum() / other[1][b].sum())
