"""Which rows make up a mixture: by a hash of the seed and the row, so that subsets are nested."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mlit_jax.data.encoded import UNITS, Encoded
from mlit_jax.data.hashing import mix, rank
from mlit_jax.data.mixture import Amounts, Key, Stock
from mlit_jax.errors import UserError

GROUPS = ("together", "disjoint", "independent")
TOLERANCE = 0.005  # of the total, by which a plan in tokens may miss what was asked of a language


@dataclasses.dataclass(frozen=True)
class Chosen:
  """The rows of one key of the mixture in the order of their rank; a row that repeats stands again."""

  rows: np.ndarray  # int64 [n], numbers into Encoded
  repeat: np.ndarray  # int32 [n], 0 for the first time

  def __len__(self) -> int:
    return len(self.rows)


def take_stock(encoded: Encoded) -> Stock:
  """What the rows offer, in every unit, by language and by source.

  Languages without a usable row are there with 0: "*" and the like ask for them, and are refused, rather
  than passing them over.
  """
  amounts: dict[str, dict[Key, int]] = {}
  for unit in UNITS:
    amounts[unit] = of = {(lang, ""): 0 for lang in encoded.languages}
    # Whole numbers below 2^53 are exact in the float64 that bincount sums in.
    sums = np.bincount(encoded.stratum, encoded.sizes(unit), minlength=len(encoded.strata))
    for (lang, source), amount in zip(encoded.strata, sums.astype(np.int64).tolist(), strict=True):
      of[lang, source] = amount
      of[lang, ""] += amount
  return Stock(amounts)


def choose(encoded: Encoded, amounts: Amounts, *, seed: int, groups: str) -> dict[Key, Chosen]:
  """The rows of each key of the mixture.

  Rows are ranked by a hash of seed and row, or of seed and parallel group: a smaller subset is
  contained in a larger one, whatever else is in the data and in whatever order it comes. `groups`:

      together      parallel rows (one group_id) have one rank, so that languages get the same examples
      disjoint      no group stands in two languages, so that each example is seen in one only
      independent   each language is ranked alone

  An amount above what the rows have takes whole passes over them first. In tokens, the rows are those
  whose sum comes nearest to the amount.
  """
  by_key = rows_of_keys(encoded, amounts.of)
  ranked = {key: _rank(encoded, rows, seed, groups) for key, rows in by_key.items()}
  if groups == "disjoint":
    ranked = _apart(encoded, ranked, amounts, seed)
  out = {}
  for key, rows in ranked.items():
    if amounts.unit == "examples":
      out[key] = _passes(rows, amounts.of[key])
    else:
      out[key] = _passes(rows, _nearest_count(encoded.sizes(amounts.unit, rows), amounts, key))
  return out


def rows_of_keys(encoded: Encoded, keys) -> dict[Key, np.ndarray]:
  """int64 rows of each (language, source)."""
  order = np.argsort(encoded.language, kind="stable")
  starts = np.searchsorted(encoded.language[order], np.arange(len(encoded.languages) + 1))
  out = {}
  for lang, source in keys:
    number = encoded.languages.index(lang)
    rows = order[starts[number] : starts[number + 1]]
    if source:
      rows = rows[encoded.source[rows] == encoded.sources.index(source)]
    out[lang, source] = rows
  return out


def _rank(encoded: Encoded, rows: np.ndarray, seed: int, groups: str) -> np.ndarray:
  keys = mix(encoded.ids[rows, 0], "choice", seed)  # an id is a hash of the language too
  if groups == "together":
    group = encoded.groups[rows]
    keys = np.where(group == 0, keys, mix(group, "group", seed))
  return rank(keys, encoded.ids, rows)


def _passes(rows: np.ndarray, count: int) -> Chosen:
  j = np.arange(count)
  return Chosen(rows[j % len(rows)], (j // len(rows)).astype(np.int32))


def _nearest_count(sizes: np.ndarray, amounts: Amounts, key: Key) -> int:
  """How many rows in rank order, over as many passes as it takes, come nearest to the amount."""
  wanted = amounts.of[key]
  ends = np.cumsum(sizes, dtype=np.int64)
  passes, rest = divmod(wanted, int(ends[-1]))
  at = int(np.searchsorted(ends, rest))  # the first sum at or above the rest
  below, above = int(ends[at - 1]) if at else 0, int(ends[at])
  up = above - rest < rest - below
  count = passes * len(sizes) + at + up
  reached = passes * int(ends[-1]) + (above if up else below)
  total = sum(amounts.of.values())
  if not count or abs(reached - wanted) > TOLERANCE * total:
    raise UserError(
      f"data.mixture asks for {wanted} {amounts.unit} of {key[0]!r}; whole rows give {reached}, which misses "
      f"the share by more than {TOLERANCE:.1%} of the {total} in all. Raise the total, or choose unit examples."
    )
  return count


# --- groups kept apart


def _apart(
  encoded: Encoded, ranked: Mapping[Key, np.ndarray], amounts: Amounts, seed: int
) -> dict[Key, np.ndarray]:
  """For each key the rows it may take, in order, such that no group stands in two languages.

  Every group has an owner among the languages of the data that have it: the one with the least hash of
  (seed, language, group). Each key takes the groups of its own language first and then those that none
  has taken, the smallest amounts first and the largest, the base, last. What a language takes out of
  its own groups depends neither on the other amounts nor on which languages are in the mixture: it nests.
  """
  if amounts.unit != "examples" or any(n > 1 for n in amounts.max_repeats.values()):
    raise UserError(
      'data.groups is "disjoint", which needs a mixture in examples with max_repeats 1: a group is seen once'
    )
  owned = _owned(encoded, seed)
  taken = np.zeros(0, np.uint64)
  out = {}
  for key in sorted(ranked, key=lambda k: (amounts.of[k], k)):
    rows, count = ranked[key], amounts.of[key]
    group = encoded.groups[rows]
    free = (group == 0) | ~np.isin(group, taken)
    first = _once(group, free)  # of several rows of one group in a language, the best-ranked
    mine = first & ((group == 0) | owned[rows])
    rows = np.concatenate([rows[mine], rows[first & ~mine]])
    if len(rows) < count:
      raise UserError(
        f"data.mixture asks for {count} examples of {key[0]!r}, but with data.groups disjoint only {len(rows)} "
        "of its groups stand in no other language of the mixture. Ask for fewer, or choose together."
      )
    out[key] = rows[:count]
    chosen = encoded.groups[out[key]]
    taken = np.concatenate([taken, chosen[chosen != 0]])
  return {key: out[key] for key in ranked}


def _owned(encoded: Encoded, seed: int) -> np.ndarray:
  """bool [n]: whether the language of a row owns its group."""
  keys = np.zeros(len(encoded), np.uint64)
  for number, lang in enumerate(encoded.languages):
    mine = encoded.language == number
    keys[mine] = mix(encoded.groups[mine], "owner", seed, lang)
  order = np.lexsort((encoded.language, keys, encoded.groups))
  group = encoded.groups[order]
  first = np.concatenate([[True], group[1:] != group[:-1]])
  owner = np.empty(len(encoded), encoded.language.dtype)
  owner[order] = encoded.language[order][
    np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
  ]
  return owner == encoded.language


def _once(group: np.ndarray, free: np.ndarray) -> np.ndarray:
  """bool [n]: the free rows that are the first of their group."""
  at = np.flatnonzero(free & (group != 0))
  _, index = np.unique(group[at], return_index=True)
  out = free & (group == 0)
  out[at[index]] = True
  return out
