"""Two models on the same prompts: the difference, its interval, its p value, Holm over languages.

Prompts differ far more than models do, so a comparison is paired: each prompt is drawn with the
answers of both models, and a permutation swaps both answers of a prompt or neither.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table
from scipy import stats

from mlit_jax.errors import UserError
from mlit_jax.evals.statistics import (
  Figure,
  at_least_rule_of_three,
  at_least_student,
  cluster_sums,
  interval_of_draws,
  resample_groups,
  resample_sums,
  standard_error,
  stratified_error,
  without_nan,
)

NUM_PERMUTATIONS = 9999
ALPHA = 0.05
MAX_ENUMERATED = 12  # 4,096 swaps
MAX_UNITS = 200_000  # largest sum of whole-numbered differences whose distribution is counted out
NAMED_IDS = 5


@dataclasses.dataclass(frozen=True)
class Difference:
  """Model a less model b; p_value of "the two are alike", adjusted as Holm does over languages."""

  figure: Figure
  p_value: float | None
  adjusted: float | None = None


@dataclasses.dataclass(frozen=True)
class Adjusted:
  """A p value, Holm's adjustment of it, and whether that is at most alpha."""

  p_value: float | None
  adjusted: float | None
  rejected: bool


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Differences per language, in the order given, and of the means over languages."""

  by_lang: dict[str, Difference]
  mean: Difference

  def table(self, title: str = "a less b") -> Table:
    """Languages, differences with intervals, p values plain and adjusted."""
    out = Table(title=title, title_justify="left")
    for column in ("language", "n", "a - b", "95 %", "p", "p (Holm)"):
      out.add_column(column, justify="left" if column == "language" else "right", no_wrap=True)
    last = list(self.by_lang)[-1]
    for lang, row in [*self.by_lang.items(), ("mean", self.mean)]:
      figure = row.figure
      interval = "" if figure.low is None else f"{figure.low:+.3f} to {figure.high:+.3f}"
      value = "" if figure.value is None else f"{figure.value:+.3f}"
      cells = (value, interval, _show_p(row.p_value), _show_p(row.adjusted))
      out.add_row(lang, str(figure.n), *cells, end_section=lang == last)
    return out


def compare(
  a: Mapping[str, Mapping],
  b: Mapping[str, Mapping],
  *,
  groups: Mapping[tuple, object] | None = None,
  bounds=None,
  seed: int = 0,
) -> Comparison:
  """Compares the scores {lang: {prompt id: score, or several of the prompt's answers}} of two models.

  Both must hold the same languages and prompts. A prompt's scores in several languages are drawn
  and swapped together when their ids are equal; groups, {(lang, id): group}, says so where ids
  differ. bounds: the ends of a score, (0, 1) for shares.
  """
  check_same_ids({lang: None for lang in a}, {lang: None for lang in b}, what="languages")
  if not a:
    raise UserError("there is nothing to compare: a and b hold no language.")
  by_lang = {}
  for lang in a:
    ids = check_same_ids(a[lang], b[lang], what=f"prompts in {lang}")
    (num_a, den_a), (num_b, den_b) = _sums(a[lang], ids), _sums(b[lang], ids)
    by_lang[lang] = paired_difference(num_a, num_b, den_a, den_b, bounds=bounds, seed=seed)
  adjusted = holm({lang: row.p_value for lang, row in by_lang.items()})
  by_lang = {
    lang: dataclasses.replace(row, adjusted=adjusted[lang].adjusted)
    for lang, row in by_lang.items()
  }
  rows: dict = {}
  cells = [(lang, i, (groups or {}).get((lang, i), i)) for lang in a for i in a[lang]]
  for *_, group in cells:
    rows.setdefault(group, len(rows))
  sums_4GL = np.zeros((4, len(rows), len(a)))
  present_GL = np.zeros(sums_4GL.shape[1:], dtype=bool)
  for lang, i, group in cells:
    at = rows[group], list(a).index(lang)
    sums_4GL[:, *at] += [*_sum_and_count(a[lang][i]), *_sum_and_count(b[lang][i])]
    present_GL[at] = True
  num_a, den_a, num_b, den_b = np.where(present_GL, sums_4GL, np.nan)
  return Comparison(by_lang, macro_difference(num_a, num_b, den_a, den_b, bounds=bounds, seed=seed))


def check_same_ids(a: Mapping, b: Mapping, *, what: str) -> list:
  """The ids of both, in the order of a; a UserError that names those which only one has."""
  only_a, only_b = [i for i in a if i not in b], [i for i in b if i not in a]
  if only_a or only_b:
    parts = [
      f"{len(ids)} only in {name}: {', '.join(map(repr, ids[:NAMED_IDS]))}"
      + (", ..." if len(ids) > NAMED_IDS else "")
      for name, ids in (("a", only_a), ("b", only_b))
      if ids
    ]
    raise UserError(
      f"{what} of a and b differ ({'; '.join(parts)}). Models are compared on the same prompts: "
      f"answer the missing ones, or leave them out of both."
    )
  return list(a)


def paired_difference(
  num_a, num_b, den_a=None, den_b=None, *, clusters=None, bounds=None, scale=1.0, seed: int = 0
) -> Difference:
  """scale * (sum(num_a) / sum(den_a) - sum(num_b) / sum(den_b)) over prompts; den None: means.

  Interval: bootstrap over prompts, expanded percentiles. bounds are those of a model's ratio; where
  fewer than five prompts differ the interval is at least the rule of three's. p value: prompts
  swapped between the models (swap_p_value).
  """
  num_a, num_b = np.asarray(num_a, np.float64), np.asarray(num_b, np.float64)
  den_a = np.ones_like(num_a) if den_a is None else np.asarray(den_a, np.float64)
  den_b = den_a if den_b is None else np.asarray(den_b, np.float64)
  columns_N4 = np.stack([num_a, den_a, num_b, den_b], -1)
  n, totals_4 = len(columns_N4), columns_N4.sum(axis=0)
  if n == 0 or not np.isfinite(totals_4).all() or (totals_4[[1, 3]] <= 0).any():
    return Difference(Figure(None, n), None)
  sums_G4 = cluster_sums(columns_N4, clusters)
  sums_GL4, _, sign = _canonical(sums_G4[:, None, :])
  sums_G4 = sums_GL4[:, 0]
  totals_4 = sums_G4.sum(axis=0)
  ratio_a, ratio_b = totals_4[0] / totals_4[1], totals_4[2] / totals_4[3]
  value = float(scale * (ratio_a - ratio_b))
  error = standard_error(scale * _influence(sums_GL4), 1.0)
  low = high = None
  if error is not None and error > 1e-12 * max(abs(scale * ratio_a), abs(scale * ratio_b)):
    draws_S4 = resample_sums(sums_G4, seed=seed)
    draws_S4 = draws_S4[(draws_S4[:, [1, 3]] > 0).all(axis=1)]
    draws_S = scale * (draws_S4[:, 0] / draws_S4[:, 1] - draws_S4[:, 2] / draws_S4[:, 3])
    low, high = interval_of_draws(draws_S, value, n=len(sums_G4))
    low, high = at_least_student(low, high, value, error, len(sums_G4))
  if bounds is not None:
    each_G = scale * (_ratio(sums_G4[:, :2]) - _ratio(sums_G4[:, 2:]))
    low, high = _within(bounds, low, high, value, each_G)
  p_value = swap_p_value(sums_GL4, seed=seed)
  return Difference(_signed(Figure(value, n, low, high), sign), p_value)


def macro_difference(
  num_a_GL, num_b_GL, den_a_GL=None, den_b_GL=None, *, bounds=None, scale=1.0, seed: int = 0
) -> Difference:
  """Difference of the unweighted means over languages of two models' ratios of sums.

  Rows are groups of parallel prompts, drawn and swapped as one, in all languages and for both
  models; NaN in the denominator (for means: in the numerators) says that a group lacks the language.
  """
  if den_a_GL is None:
    den_a_GL, den_b_GL = (np.where(np.isnan(x), np.nan, 1.0) for x in (num_a_GL, num_b_GL))
  den_b_GL = den_a_GL if den_b_GL is None else den_b_GL
  num_a_GL, den_a_GL, present_GL = without_nan(num_a_GL, den_a_GL)
  num_b_GL, den_b_GL, present_b_GL = without_nan(num_b_GL, den_b_GL)
  if not np.array_equal(present_GL, present_b_GL):
    raise ValueError("models are compared on the same groups and languages")
  n = int(present_GL.sum())
  sums_GL4 = np.stack([num_a_GL, den_a_GL, num_b_GL, den_b_GL], -1)
  totals_L4 = sums_GL4.sum(axis=0)
  if n == 0 or not np.isfinite(totals_L4).all() or (totals_L4[:, [1, 3]] <= 0).any():
    return Difference(Figure(None, n), None)
  sums_GL4, order_G, sign = _canonical(sums_GL4)
  present_GL = present_GL[order_G]
  value = float(scale * _mean_difference(sums_GL4.sum(axis=0)))
  each_GL = np.where(present_GL, _ratio(sums_GL4[..., :2]) - _ratio(sums_GL4[..., 2:]), 0.0)
  low = high = None
  # A shift that is the same for every prompt has no spread to draw from.
  if not all(np.ptp(each_GL[rows, k]) < 1e-12 for k, rows in enumerate(present_GL.T)):
    num_groups, num_languages, _ = sums_GL4.shape
    sums_SC, strata = resample_groups(present_GL, sums_GL4.reshape(num_groups, -1), seed=seed)
    sums_SL4 = sums_SC.reshape(-1, num_languages, 4)
    sums_SL4 = sums_SL4[(sums_SL4[..., [1, 3]] > 0).all(axis=(1, 2))]
    draws_S = scale * _mean_difference(sums_SL4)
    low, high = interval_of_draws(draws_S, value, n=num_groups, strata=strata)
    error = scale * stratified_error(_influence(sums_GL4), present_GL)
    low, high = at_least_student(low, high, value, error, num_groups, strata)
  if bounds is not None:
    each_G = scale * each_GL.sum(axis=1) / present_GL.sum(axis=1)
    low, high = _within(bounds, low, high, value, each_G)
  return Difference(_signed(Figure(value, n, low, high), sign), swap_p_value(sums_GL4, seed=seed))


def sign_flip_p_value(differences, *, clusters=None, seed: int = 0) -> float:
  """Two-sided p value of "the differences are as likely with the other sign", of their sum.

  A cluster flips as one. Exact where the differences are multiples of 1, 1/2 or 1/12 (the
  distribution of the sum is counted out; for 0/1 scores this is McNemar's exact test) or where
  there are no more than 12 that are not 0; else 9,999 random flips, (1 + those at least as
  far) / (1 + 9,999) (Phipson and Smyth 2010).
  """
  sums_G = cluster_sums(np.asarray(differences, np.float64)[:, None], clusters)[:, 0]
  if not len(sums_G):
    return 1.0
  zeros_G = np.zeros_like(sums_G)
  weight = np.full_like(sums_G, 1.0)
  return swap_p_value(np.stack([sums_G, weight, zeros_G, weight], -1)[:, None, :], seed=seed)


def swap_p_value(sums_GL4: np.ndarray, *, seed: int = 0, num_draws: int = NUM_PERMUTATIONS):
  """Two-sided p value of the mean over languages of num_a / den_a - num_b / den_b.

  The hypothesis: for each prompt (or group of parallel prompts) the answers of the two models could
  as well have stood under each other's names. See sign_flip_p_value for when it is exact.
  """
  if np.array_equal(sums_GL4[..., 1], sums_GL4[..., 3]):
    # Swapping then leaves the denominators, and changes the sign of the numerators' difference.
    den_L = sums_GL4[..., 1].sum(axis=0)
    shift_G = ((sums_GL4[..., 0] - sums_GL4[..., 2]) * (den_L.max() / den_L)).sum(axis=1)
    return _flip_p_value(shift_G[np.abs(shift_G) > 1e-12 * den_L.max()], seed, num_draws)
  num_groups = len(sums_GL4)
  flat_GC = sums_GL4.reshape(num_groups, -1)
  swapped_GC = sums_GL4[..., [2, 3, 0, 1]].reshape(num_groups, -1)
  observed = abs(_mean_difference(sums_GL4.sum(axis=0)))
  total_C = swapped_GC.sum(axis=0)

  def as_far(kept_SG):
    sums_SL4 = (kept_SG @ (flat_GC - swapped_GC) + total_C).reshape(len(kept_SG), -1, 4)
    with np.errstate(divide="ignore", invalid="ignore"):
      shift_S = np.abs(_mean_difference(sums_SL4))
    return np.sum(~(shift_S < observed - 1e-12 * (1 + observed)))

  return _permuted(as_far, num_groups, seed, num_draws)


def mcnemar_p_value(hits_a, hits_b) -> float:
  """McNemar's exact test of two models' hits (0 or 1) on the same prompts, two-sided."""
  hits_a, hits_b = np.asarray(hits_a, dtype=bool), np.asarray(hits_b, dtype=bool)
  only_a, only_b = int((hits_a & ~hits_b).sum()), int((hits_b & ~hits_a).sum())
  if only_a + only_b == 0:
    return 1.0
  return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def holm(p_values: Mapping[str, float | None], *, alpha: float = ALPHA) -> dict[str, Adjusted]:
  """Holm's step-down adjustment over languages (Holm 1979), in the order given.

  The k-th smallest of m is multiplied by m - k + 1, never falls below the one before, and stops at
  1. It bounds the chance of a single wrong claim, however the languages depend on each other. None
  (nothing to test) is left out of the count.
  """
  known = sorted((lang for lang, p in p_values.items() if p is not None), key=p_values.get)
  adjusted, so_far = {}, 0.0
  for rank, lang in enumerate(known):
    so_far = max(so_far, min(1.0, (len(known) - rank) * p_values[lang]))
    adjusted[lang] = so_far
  return {
    lang: Adjusted(p, adjusted.get(lang), lang in adjusted and adjusted[lang] <= alpha)
    for lang, p in p_values.items()
  }


def _flip_p_value(shift_G, seed, num_draws) -> float:
  if not len(shift_G):
    return 1.0
  for parts in (1, 2, 12):
    units_G = np.abs(shift_G * parts)
    if np.abs(units_G - units_G.round()).max() < 1e-9 and units_G.sum() <= MAX_UNITS:
      return _counted_p_value(units_G.round().astype(int), round(abs(parts * shift_G.sum())))
  observed, size_G = abs(shift_G.sum()), np.sort(np.abs(shift_G))

  def as_far(plus_SG):
    return np.sum(np.abs((2 * plus_SG - 1) @ size_G) >= observed - 1e-12 * size_G.sum())

  return _permuted(as_far, len(shift_G), seed, num_draws)


def _counted_p_value(units_G, observed: int) -> float:
  """P(|sum of +-units| >= observed), signs by fair coins, counted out one prompt after another."""
  common = int(np.gcd.reduce(units_G))
  units_G, observed = units_G // common, observed // common
  # Position i is the chance that the units with sign + sum to i.
  chance = np.zeros(int(units_G.sum()) + 1)
  chance[0], reach = 1.0, 0
  for unit in units_G:
    shifted = np.zeros(reach + unit + 1)
    shifted[unit:] = chance[: reach + 1]
    shifted[: reach + 1] += chance[: reach + 1]
    reach += unit
    chance[: reach + 1] = shifted / 2
  sums = 2 * np.arange(reach + 1) - reach
  return float(min(1.0, chance[np.abs(sums) >= observed].sum()))


def _permuted(as_far, num_groups: int, seed, num_draws: int) -> float:
  if num_groups <= MAX_ENUMERATED:
    kept = np.array(list(itertools.product((0.0, 1.0), repeat=num_groups)))
    return float(as_far(kept) / len(kept))
  rng, count = np.random.default_rng(seed), 0
  at_once = max(1, 2_000_000 // num_groups)
  for start in range(0, num_draws, at_once):
    draws = min(at_once, num_draws - start)
    count += as_far(rng.integers(0, 2, (draws, num_groups)).astype(np.float64))
  return float((1 + count) / (1 + num_draws))


def _mean_difference(sums_L4):
  """Mean over languages of the difference of the ratios, for any leading axes."""
  return (sums_L4[..., 0] / sums_L4[..., 1] - sums_L4[..., 2] / sums_L4[..., 3]).mean(axis=-1)


def _influence(sums_GL4) -> np.ndarray:
  """What each group adds to the mean difference, to first order."""
  total_L4 = sums_GL4.sum(axis=0)
  ratio_L4 = total_L4 / total_L4[:, [1, 1, 3, 3]]
  a_GL = (sums_GL4[..., 0] - ratio_L4[:, 0] * sums_GL4[..., 1]) / total_L4[:, 1]
  b_GL = (sums_GL4[..., 2] - ratio_L4[:, 2] * sums_GL4[..., 3]) / total_L4[:, 3]
  return (a_GL - b_GL).mean(axis=1)


def _canonical(sums_GL4):
  """The sums, sorted, with the better model first; their order; the sign that undoes an exchange.

  Exchanging a and b, or the order of prompts, then changes no draw. The sign is 0 where an exchange gives the
  same sums: no order of the models is better than the other.
  """
  exchanged_GL4 = sums_GL4[..., [2, 3, 0, 1]]
  orders = [np.lexsort(s.reshape(len(s), -1).T) for s in (sums_GL4, exchanged_GL4)]
  ordered, other = sums_GL4[orders[0]], exchanged_GL4[orders[1]]
  difference = _mean_difference(ordered.sum(axis=0))
  if abs(difference) < 1e-12:
    if np.array_equal(ordered, other):
      return ordered, orders[0], 0
    difference = 1 if tuple(ordered.ravel()) > tuple(other.ravel()) else -1
  return (ordered, orders[0], 1) if difference > 0 else (other, orders[1], -1)


def _signed(figure: Figure, sign: int) -> Figure:
  if sign > 0 or figure.value is None:
    return figure
  if sign == 0 and figure.low is not None:
    end = max(-figure.low, figure.high)
    return Figure(0.0, figure.n, -end, end)
  low, high = (None if x is None else -x for x in (figure.high, figure.low))
  return Figure(-figure.value, figure.n, low, high)


def _ratio(sums_2):
  """Ratio of each row's sums; a row without anything counts as 0."""
  return np.divide(
    sums_2[..., 0], sums_2[..., 1], out=np.zeros(sums_2.shape[:-1]), where=sums_2[..., 1] > 0
  )


def _within(bounds, low, high, value: float, each_G):
  """The interval of a difference of ratios with these bounds, with room where few prompts differ."""
  widest = bounds[1] - bounds[0]
  low, high = at_least_rule_of_three(low, high, value, (-widest, widest), each_G)
  return (low, high) if low is None else (max(low, -widest), min(high, widest))


def _sums(by_id: Mapping, ids) -> np.ndarray:
  return np.array([_sum_and_count(by_id[i]) for i in ids], dtype=np.float64).reshape(-1, 2).T


def _sum_and_count(scores) -> tuple[float, float]:
  if isinstance(scores, Sequence | np.ndarray):
    return float(np.sum(scores)), float(len(scores))
  return float(scores), 1.0


def _show_p(p: float | None) -> str:
  if p is None:
    return ""
  return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
