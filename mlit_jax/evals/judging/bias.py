"""What position and length do to a judge's scores, estimated and taken out.

Every prompt is judged twice, with each model's answer first once.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.special import expit

from mlit_jax.errors import UserError
from mlit_jax.evals.statistics import (
  NUM_DRAWS,
  Figure,
  at_least_rule_of_three,
  cluster_sums,
  interval_of_draws,
  proportion_figure,
  resample_sums,
)

A, B, TIE = "a", "b", "tie"
VERDICTS = (A, B, TIE, None)
# Below this, what is left of a score after position-followers is anecdote.
MIN_CONTENT_PAIRS = 10
# Of the slope on length, as a normal prior of standard deviation 3: keeps it finite when length
# alone separates wins from losses.
SLOPE_PENALTY = 1 / 9


def score_of(winners: Sequence[str | None]) -> float | None:
  """1, 0.5 or 0 for A from the winners in all orders (Shaham et al. 2024); None where one is unreadable.

  a a -> 1    b b -> 0    a b, tie tie, a tie, and the same answer twice (no winners) -> 0.5
  """
  if None in winners:
    return None
  if winners and all(winner == winners[0] for winner in winners) and winners[0] != TIE:
    return 1.0 if winners[0] == A else 0.0
  return 0.5


@dataclasses.dataclass(frozen=True)
class VerdictPair:
  """Whom the judge named ("a", "b", "tie"; None: unreadable) with a's answer first, and b's."""

  id: object
  lang: str
  a_first: str | None
  b_first: str | None

  def __post_init__(self):
    for verdict in (self.a_first, self.b_first):
      if verdict not in VERDICTS:
        raise UserError(
          f"{self.lang}: prompt {self.id!r} has verdict {verdict!r}; expected one of "
          f"'a', 'b', 'tie', or None where it could not be read."
        )

  @property
  def valid(self) -> bool:
    return self.a_first is not None and self.b_first is not None

  @property
  def score(self) -> float | None:
    return score_of((self.a_first, self.b_first))

  @property
  def same_slot(self) -> int:
    """1: the first answer was named both times; -1: the second; 0 otherwise."""
    return {(A, B): 1, (B, A): -1}.get((self.a_first, self.b_first), 0)


@dataclasses.dataclass(frozen=True)
class Attenuation:
  """How much a judge that follows position has drawn a score towards 0.5.

  follows_position, without: b and the score without it, at most (see attenuation); net_position,
  without_net: at least. refused: why a score without it cannot be told, else None.
  """

  score: Figure
  follows_position: Figure
  without: Figure
  net_position: Figure
  without_net: Figure
  refused: str | None = None


def attenuation(pairs: Iterable[VerdictPair], *, seed: int = 0) -> Attenuation:
  """Estimates the share b of prompts on which the judge followed position, and undoes it.

  Model: with chance b the judge names a slot whatever stands there, in both orders; such a pair
  scores 0.5. Otherwise it looks at the answers, with expected score s. Seen is then
  S = 0.5 b + (1 - b) s, so s = 0.5 + (S - 0.5) / (1 - b), if b does not depend on who would have
  won. b is not seen itself; same-slot pairs (first-first F, second-second Z of n) are. They bound it:

  * A judge that looks at the answers never contradicts itself: every same-slot pair is position,
    b = (F + Z) / n. Then s is the score among the other pairs, a ratio of sums. Chance in the
    verdicts is taken for position, so this b is at most, and s farthest from 0.5.
  * A judge that looks at the answers may waver, alike in both orders: it adds as many pairs to F as
    to Z. Position-followers all prefer one slot: b = |F - Z| / n. If some prefer the other slot,
    they cancel, so this b is at least, and s is nearest to 0.5.

  The truth lies between if wavering does not depend on the order. Intervals: of b and of the first
  s as shares; of the second s a bootstrap over prompts. No s where fewer than ten pairs are left
  beside those of one slot, or where b could be 1.
  """
  pairs = [p for p in pairs if p.valid]
  ids = [p.id for p in pairs]
  score_N = np.array([p.score for p in pairs], dtype=np.float64)
  slot_N = np.array([p.same_slot for p in pairs], dtype=np.float64)
  content_N = (slot_N == 0).astype(np.float64)
  score, follows = (proportion_figure(x, clusters=ids) for x in (score_N, 1 - content_N))
  nothing = Figure(None, len(pairs))
  if score.value is None:
    return Attenuation(score, follows, nothing, nothing, nothing, "no prompt has two verdicts")
  if slot_N.sum() < 0:
    slot_N = -slot_N  # the preferred slot is 1
  sums_G3 = cluster_sums(np.stack([score_N - 0.5, slot_N, np.ones_like(slot_N)], -1), ids)
  net = float(slot_N.mean())
  draws_S3 = resample_sums(sums_G3, seed=seed)
  net_S = draws_S3[:, 1] / draws_S3[:, 2]
  low, high = interval_of_draws(net_S, net, n=len(sums_G3))
  low, high = at_least_rule_of_three(low, high, net, (-1, 1), sums_G3[:, 1] / sums_G3[:, 2])
  net_position = Figure(net, len(pairs), None if low is None else max(0.0, low), high)
  num_content = int(content_N.sum())
  if num_content < MIN_CONTENT_PAIRS or (follows.high or 1.0) >= 1.0:
    reason = (
      f"{num_content} of {len(pairs)} pairs of verdicts do not follow position; at least "
      f"{MIN_CONTENT_PAIRS} are needed to tell what the score would be without it"
    )
    return Attenuation(score, follows, nothing, net_position, nothing, reason)
  left = content_N > 0
  without = proportion_figure(score_N[left], clusters=[i for i, on in zip(ids, left) if on])
  value = 0.5 + (score.value - 0.5) / (1 - net)
  draws_S = 0.5 + draws_S3[:, 0] / draws_S3[:, 2] / np.maximum(1 - net_S, 1e-12)
  low, high = interval_of_draws(draws_S, value, n=len(sums_G3))
  low, high = at_least_rule_of_three(low, high, value, (0, 1), sums_G3[:, 0] / sums_G3[:, 2])
  without_net = Figure(
    *(min(1.0, max(0.0, value)), len(pairs)),
    *(None if end is None else min(1.0, max(0.0, end)) for end in (low, high)),
  )
  return Attenuation(score, follows, without, net_position, without_net)


def length_controlled_score(
  scores: Sequence[float],
  length_differences: Sequence[float],
  *,
  clusters: Sequence | None = None,
  seed: int = 0,
  num_draws: int = NUM_DRAWS,
) -> Figure:
  """The win score of a against b if both answers were of one length.

  logit P(win) = c + w tanh(d / sd(d)), d the length of a's answer less that of b's; the score is P
  at d = 0. It is AlpacaEval 2's form without its per-prompt difficulty, which exists for its own
  prompts alone (Dubois et al. 2024). Scores of 0.5 count as half a win. w has a normal prior of
  standard deviation 3. Interval: bootstrap over prompts, sd held.
  """
  score_N = np.asarray(scores, np.float64)
  difference_N = np.asarray(length_differences, np.float64)
  n = len(score_N)
  if n == 0 or not np.isfinite([score_N.sum(), difference_N.sum()]).all():
    return Figure(None, n)
  if score_N.min() == score_N.max() or not difference_N.any():
    return proportion_figure(score_N, clusters=clusters)  # length has nothing to explain
  if np.ptp(difference_N) == 0:
    return Figure(None, n)  # a is longer by the same throughout: what length does cannot be told
  x_N = np.tanh(difference_N / difference_N.std())
  order = np.lexsort((score_N, x_N))  # the order of a file then changes no draw
  x_N, y_N = x_N[order], score_N[order]
  ids = range(n) if clusters is None else clusters
  members_GN = cluster_sums(np.eye(n), [ids[i] for i in order])
  value, at = _logistic(x_N, y_N, np.ones((1, n)), start=np.zeros((1, 2)))
  # How often each prompt is in a draw is its weight there.
  draws_SN = resample_sums(members_GN, seed=seed, num_draws=num_draws)
  draws_S, _ = _logistic(x_N, y_N, draws_SN, start=np.repeat(at, len(draws_SN), 0))
  low, high = interval_of_draws(draws_S, float(value[0]), n=len(members_GN))
  score_G = members_GN @ y_N / members_GN.sum(axis=1)
  low, high = at_least_rule_of_three(low, high, float(value[0]), (0, 1), score_G)
  return Figure(float(value[0]), n, low, high)


def _logistic(x_N, y_N, weights_SN, *, start, max_steps: int = 30):
  """Newton's method for every row of weights at once: P at x = 0, and the coefficients [S, 2]."""
  at_S2 = start.copy()
  for _ in range(max_steps):
    p_SN = expit(at_S2[:, :1] + at_S2[:, 1:] * x_N)
    error_SN, bend_SN = weights_SN * (y_N - p_SN), weights_SN * p_SN * (1 - p_SN)
    gradient_S2 = np.stack([error_SN.sum(1), error_SN @ x_N - SLOPE_PENALTY * at_S2[:, 1]], -1)
    h00, h01 = bend_SN.sum(1) + 1e-9, bend_SN @ x_N
    h11 = bend_SN @ np.square(x_N) + SLOPE_PENALTY
    determinant = h00 * h11 - h01**2
    step_S2 = (
      np.stack(
        [
          h11 * gradient_S2[:, 0] - h01 * gradient_S2[:, 1],
          h00 * gradient_S2[:, 1] - h01 * gradient_S2[:, 0],
        ],
        -1,
      )
      / determinant[:, None]
    )
    step_S2 = np.clip(step_S2, -2.0, 2.0)
    at_S2 = np.clip(at_S2 + step_S2, -30.0, 30.0)
    if np.abs(step_S2).max() < 1e-5:  # the next would be its square
      break
  return expit(at_S2[:, 0]), at_S2
