"""How far judges agree with each other and with people, and a score set right for a judge's errors."""

from collections.abc import Hashable, Sequence

import numpy as np

from mlit_jax.evals.statistics import (
  NUM_DRAWS,
  Figure,
  at_least_rule_of_three,
  cluster_sums,
  interval_of_draws,
  resample_sums,
)

MIN_OF_EACH = 5  # calibration prompts that people called good, and bad
MAX_UNUSABLE = 0.025  # share of draws: beyond it an end of the interval is not known


def cohen_kappa(
  labels: Sequence[Hashable],
  others: Sequence[Hashable],
  *,
  clusters=None,
  seed: int = 0,
  num_draws: int = NUM_DRAWS,
) -> Figure:
  """Agreement beyond chance, (po - pe) / (1 - pe) (Cohen 1960), unweighted.

  pe is what two judges with these shares of labels would agree on by chance. No value where both
  give one and the same label throughout. Interval: bootstrap over prompts; where fewer than five
  items tell agreement from disagreement, at least the rule of three on po with pe held.
  """
  items, kept = _labelled(labels, others, clusters)
  n, names = len(items), {}
  for pair in items:
    for label in pair:
      names.setdefault(label, len(names))
  table_NK = np.zeros((n, len(names) ** 2))
  for i, (x, y) in enumerate(items):
    table_NK[i, names[x] * len(names) + names[y]] = 1.0
  sums_GK = cluster_sums(table_NK, kept)
  if n == 0 or len(names) < 2:
    return Figure(None, n)
  value, chance = (float(x[0]) for x in _kappa(sums_GK.sum(axis=0)[None]))
  low = high = None
  same_N = np.array([x == y for x, y in items], dtype=np.float64)
  if len(sums_GK) > 1:
    draws_S, _ = _kappa(resample_sums(sums_GK, seed=seed, num_draws=num_draws))
    low, high = interval_of_draws(draws_S[np.isfinite(draws_S)], value, n=len(sums_GK))
  same_G2 = cluster_sums(np.stack([same_N, np.ones(n)], -1), kept)
  least, most = -chance / (1 - chance), 1.0
  low, high = at_least_rule_of_three(low, high, value, (least, most), same_G2[:, 0] / same_G2[:, 1])
  return Figure(value, n, low, high)


def corrected_share(
  judged: Sequence[float],
  calibration_judged: Sequence[float],
  calibration_human: Sequence[int],
  *,
  clusters=None,
  calibration_clusters=None,
  seed: int = 0,
  num_draws: int = NUM_DRAWS,
) -> tuple[Figure, str | None]:
  """The share that people would call good, (p + sp - 1) / (se + sp - 1), and why there is none.

  judged: the judge's verdicts, 0 to 1, whose mean is p. On the calibration set people's labels, 1 or
  0, are known beside the judge's: se is the judge's mean where they say 1, 1 - sp where they say 0
  (Rogan and Gladen 1978; Lee et al. 2025, arXiv 2511.21140). The judge must err alike on both sets.
  The share is kept within 0 and 1. Refused where se + sp <= 1 (the judge knows nothing), with fewer
  than five labels of either kind, where more than 2.5 % of the draws have se + sp <= 1, and where
  the whole interval lies outside 0 to 1 (the judge did not err alike).

  Interval: bootstrap over prompts of both sets, each drawn by itself. So that a judge without an
  error among few labels is not taken for one that cannot err, the draws are made with one right and
  one wrong verdict more for either label, and two of either kind more in `judged` (Lang and
  Reiczigel 2014, Preventive Veterinary Medicine 113).
  """
  judged = np.asarray(judged, np.float64)
  seen, human = np.asarray(calibration_judged, np.float64), np.asarray(calibration_human)
  if not np.isin(human, (0, 1)).all():
    raise ValueError("people's labels must be 0 or 1")
  n, good = len(judged), human == 1
  if min(good.sum(), (~good).sum()) < MIN_OF_EACH:
    return Figure(None, n), (
      f"people called {good.sum()} prompts of the calibration set good and {(~good).sum()} bad; "
      f"at least {MIN_OF_EACH} of each are needed"
    )
  if n == 0:
    return Figure(None, 0), "no verdicts"
  columns_N4 = np.stack([seen * good, good, seen * ~good, ~good], -1).astype(np.float64)
  value, power = (float(x[0]) for x in _corrected(judged.mean(), columns_N4.sum(axis=0)[None]))
  if power <= 0:
    return Figure(None, n), f"sensitivity + specificity - 1 is {power:.3f}; the judge knows nothing"
  sums_G2 = cluster_sums(np.stack([judged, np.ones(n)], -1), clusters)
  more_42 = np.repeat([[0.0, 1.0], [1.0, 1.0]], 2, axis=0)
  p_S2 = resample_sums(np.concatenate([sums_G2, more_42]), seed=(seed, 0), num_draws=num_draws)
  sums_G4 = cluster_sums(columns_N4, calibration_clusters)
  more_44 = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=np.float64)
  sums_S4 = resample_sums(np.concatenate([sums_G4, more_44]), seed=(seed, 1), num_draws=num_draws)
  both_S = (sums_S4[:, [1, 3]] > 0).all(axis=1)
  draws_S, power_S = _corrected(p_S2[both_S, 0] / p_S2[both_S, 1], sums_S4[both_S])
  if (power_S > 0).sum() < (1 - MAX_UNUSABLE) * len(sums_S4):
    reason = "sensitivity + specificity - 1 cannot be told from 0 with so few labels"
    return Figure(None, n), reason
  low, high = interval_of_draws(draws_S[power_S > 0], value, n=min(len(sums_G2), len(sums_G4)))
  if low is not None and (low >= 1 or high <= 0):
    return Figure(None, n), (
      f"the formula gives {value:.3f}, and no share within its interval: the judge errs otherwise on "
      f"these prompts than on the calibration set"
    )
  value, low, high = (None if x is None else min(1.0, max(0.0, x)) for x in (value, low, high))
  return Figure(value, n, low, high), None


def _corrected(p, sums_S4):
  """The corrected share and se + sp - 1 for every row of sums."""
  right_S, wrong_S = sums_S4[:, 0] / sums_S4[:, 1], sums_S4[:, 2] / sums_S4[:, 3]
  power_S = right_S - wrong_S
  with np.errstate(divide="ignore", invalid="ignore"):
    return (p - wrong_S) / power_S, power_S


def _kappa(sums_SK):
  """Kappa and the agreement by chance from flattened tables of counts."""
  size = round(sums_SK.shape[1] ** 0.5)
  table_SXY = sums_SK.reshape(-1, size, size) / sums_SK.sum(axis=1)[:, None, None]
  same_S = np.trace(table_SXY, axis1=1, axis2=2)
  chance_S = (table_SXY.sum(axis=1) * table_SXY.sum(axis=2)).sum(axis=1)
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.where(chance_S < 1 - 1e-12, (same_S - chance_S) / (1 - chance_S), np.nan), chance_S


def _labelled(labels, others, clusters):
  if len(labels) != len(others):
    raise ValueError(f"{len(labels)} labels beside {len(others)}")
  kept = [i for i, (x, y) in enumerate(zip(labels, others)) if x is not None and y is not None]
  ids = None if clusters is None else [clusters[i] for i in kept]
  return [(labels[i], others[i]) for i in kept], ids
