"""A 95 % interval holds the truth in 93 to 97 of 100 simulated evaluations, whatever it is the interval of.

2,000 evaluations each, so that the observed coverage itself is known to half a point. Prompts differ
in difficulty, answers of a prompt and its translations share it.
"""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from mlit_jax.evals import comparing
from mlit_jax.evals.agreement import cohen_kappa, corrected_share
from mlit_jax.evals.comparing import macro_difference, paired_difference
from mlit_jax.evals.judging.bias import VerdictPair, attenuation, length_controlled_score
from mlit_jax.evals.judging.scores import Judged, summarise
from mlit_jax.evals.ranking import ELO_PER_LOG_ODDS, Game, rank
from mlit_jax.evals.statistics import (
  Figure,
  macro_figure,
  mean_figure,
  proportion_figure,
  ratio_figure,
)
from tests.few import few

NUM_EVALUATIONS = 2000


def coverage(one, *, seed=0, num=NUM_EVALUATIONS) -> float:
  """Share of evaluations whose figure holds the truth; no interval is a miss."""
  rng, hits = np.random.default_rng(seed), 0
  for _ in range(num):
    figure, truth = one(rng)
    hits += figure.low is not None and figure.low <= truth <= figure.high
  return hits / num


def prompts(n, answers):
  return np.repeat(np.arange(n), answers).tolist()


def shares(n, answers, share, likeness, *, clustered=True):
  """Every prompt has a chance of its own, from a beta distribution."""
  ids, strength = prompts(n, answers), (1 - likeness) / likeness

  def one(rng):
    chance_N = rng.beta(share * strength, (1 - share) * strength, n)
    hits_NK = rng.random((n, answers)) < chance_N[:, None]
    return proportion_figure(hits_NK.ravel(), clusters=ids if clustered else None), share

  return one


def judged(n, win, tie):
  def one(rng):
    scores = rng.choice([1, 0.5, 0], n, p=[win, tie, 1 - win - tie])
    return mean_figure(scores, bounds=(0, 1)), win + tie / 2

  return one


def means(n, answers, *, clustered=True):
  """Skewed over prompts."""
  ids = prompts(n, answers)

  def one(rng):
    values_NK = rng.gamma(2, 1, n)[:, None] + rng.normal(0, 1, (n, answers))
    return mean_figure(values_NK.ravel(), clusters=ids if clustered else None), 2.0

  return one


def losses(n, answers):
  """Nats per token: lengths vary fourfold, the loss with the prompt and the answer."""
  ids = prompts(n, answers)

  def one(rng):
    tokens_NK = np.round(np.exp(rng.normal(4, 0.7, (n, answers)))) + 1
    loss_NK = 2 * rng.gamma(4, 1 / 4, (n, 1)) * rng.gamma(6, 1 / 6, (n, answers))
    return ratio_figure((tokens_NK * loss_NK).ravel(), tokens_NK.ravel(), clusters=ids), 2.0

  return one


def parallel_shares(n, languages, *, together=True):
  """A prompt is hard in all languages; languages differ in how often they pass."""
  ease_L = np.linspace(-0.5, 1.0, languages)
  truth = norm.cdf(ease_L / np.sqrt(0.98)).mean()

  def one(rng):
    hard_NL = 0.7 * rng.normal(0, 1, (n, 1)) + 0.7 * rng.normal(0, 1, (n, languages))
    passed_NL = (hard_NL < ease_L).astype(float)
    if together:
      return macro_figure(passed_NL, np.ones((n, languages)), bounds=(0, 1)), truth
    num_GL, den_GL = np.zeros((2, n * languages, languages))
    den_GL[:] = np.nan
    for k in range(languages):
      num_GL[k * n : k * n + n, k], den_GL[k * n : k * n + n, k] = passed_NL[:, k], 1
    return macro_figure(num_GL, den_GL), truth

  return one


def paired_means(n):
  def one(rng):
    hard_N = rng.gamma(2, 1, n)
    a, b = hard_N + rng.normal(0.3, 1, n), hard_N + rng.exponential(1, n) - 1
    return paired_difference(a, b).figure, 0.3

  return one


def paired_shares(n, answers):
  ids = prompts(n, answers)

  def one(rng):
    chance_N1 = rng.beta(2, 1, (n, 1))
    a, b = rng.random((n, answers)) < chance_N1, rng.random((n, answers)) < 0.9 * chance_N1
    figure = paired_difference(a.ravel(), b.ravel(), clusters=ids, bounds=(0, 1)).figure
    return figure, 0.1 * 2 / 3

  return one


def parallel_differences(n, languages):
  def one(rng):
    chance_N1 = rng.beta(2, 1, (n, 1))
    a, b = (rng.random((n, languages)) < share * chance_N1 for share in (1, 0.9))
    return macro_difference(a * 1.0, b * 1.0, bounds=(0, 1)).figure, 0.1 * 2 / 3

  return one


def verdicts(rng, n, follow, first, win, tie):
  """Pairs of a judge that follows position on a share, and else names the better answer."""
  follows_N, first_N = rng.random(n) < follow, rng.random(n) < first
  better_N = rng.choice(["a", "tie", "b"], n, p=[win, tie, 1 - win - tie]).tolist()
  for i in range(n):
    if follows_N[i]:
      yield VerdictPair(i, "en", *(("a", "b") if first_N[i] else ("b", "a")))
    else:
      yield VerdictPair(i, "en", better_N[i], better_N[i])


def without_position(n, first, field):
  def one(rng):
    out = attenuation(verdicts(rng, n, 0.4, first, 0.6, 0.1))
    return getattr(out, field), 0.65

  return one


def judged_in_two_languages(n):
  """The win score of a judge of whom a fifth is position: 0.5 + 0.8 (0.65 - 0.5) in either language."""

  def one(rng):
    first = list(verdicts(rng, n, 0.2, 0.7, 0.6, 0.1))
    other = list(verdicts(rng, n, 0.2, 0.7, 0.6, 0.1))
    second = [p if rng.random() < 0.6 else q for p, q in zip(first, other)]
    table = [
      Judged(str(p.id), lang, str(p.id), (("ab", p.a_first), ("ba", p.b_first)), 1, 1)
      for lang, pairs in (("en", first), ("sw", second))
      for p in pairs
    ]
    found = summarise(table)["mean"]["win_score"]
    return Figure(**found), 62.0

  return one


def length_controlled(n, answers):
  """Length decides with weight 0.8, a is mostly longer."""
  ids = prompts(n, answers)

  def one(rng):
    difference = np.repeat(rng.normal(20, 60, n), answers) + rng.normal(0, 10, n * answers)
    wins = rng.random(n * answers) < expit(0.4 + 0.8 * np.tanh(difference / 60.83))
    figure = length_controlled_score(wins, difference, clusters=ids, num_draws=300)
    return figure, expit(0.4)

  return one


def kappas(n):
  table = np.array([[0.4, 0.05, 0.05], [0.05, 0.1, 0.05], [0.05, 0.05, 0.2]])
  chance = table.sum(axis=0) @ table.sum(axis=1)
  truth = (np.trace(table) - chance) / (1 - chance)

  def one(rng):
    drawn = rng.choice(9, n, p=table.ravel())
    return cohen_kappa((drawn // 3).tolist(), (drawn % 3).tolist(), num_draws=1000), truth

  return one


def corrected(n, calibration, sensitivity, specificity, truth):
  def judge(rng, number):
    good = rng.random(number) < truth
    return good, np.where(good, rng.random(number) < sensitivity, rng.random(number) > specificity)

  def one(rng):
    _, judged = judge(rng, n)
    human, seen = judge(rng, calibration)
    figure, _ = corrected_share(judged, seen, human.astype(int), num_draws=1000)
    return figure, truth

  return one


def ranked(n, strengths):
  """A round robin on every prompt, of one model against the next on the last of them."""
  names = [f"m{i}" for i in range(len(strengths))]
  meetings = [(i, j) for i in range(len(strengths)) for j in range(i)]
  odds = [strengths[i] - strengths[j] for i, j in meetings]

  def one(rng):
    won = (rng.random((n, len(meetings))) < expit(odds)).tolist()
    games = [
      Game(k, names[i], names[j], float(hit))
      for k, row in enumerate(won)
      for (i, j), hit in zip(meetings, row)
    ]
    figure = rank(games, num_draws=300).figures[names[-1]]
    return figure, 1000 + ELO_PER_LOG_ODDS * (strengths[-1] - strengths[0])

  return one


CASES = {
  "share, 50 prompts, 3 answers": shares(50, 3, 0.7, 0.4),
  "win score, 50 prompts": judged(50, 0.3, 0.5),
  "difference of shares, 60 prompts, 2 answers": paired_shares(60, 2),
  "share, 617 prompts, 2 answers, near the end": shares(617, 2, 0.9, 0.4),
  "share, 60 prompts, 4 answers, at the end": shares(60, 4, 0.95, 0.3),
  "win score, 617 prompts": judged(617, 0.4, 0.2),
  "win score, 50 prompts, near the end": judged(50, 0.85, 0.1),
  "mean, 50 prompts, 3 answers": means(50, 3),
  "ratio, 60 prompts, 2 answers": losses(60, 2),
  "macro share, 50 prompts, 6 parallel languages": parallel_shares(50, 6),
  "difference of means, 80 prompts": paired_means(80),
  "macro difference, 60 prompts, 4 parallel languages": parallel_differences(60, 4),
  "without position, 120 prompts": without_position(120, 0.7, "without"),
  "without net position, 120 prompts": without_position(120, 1.0, "without_net"),
  "length controlled, 50 prompts, 2 answers": length_controlled(50, 2),
  "kappa, 60 prompts": kappas(60),
  "corrected share, 300 and 100 prompts": corrected(300, 100, 0.85, 0.75, 0.6),
  "corrected share, 120 and 60 prompts": corrected(120, 60, 0.95, 0.9, 0.7),
  "Elo, 50 prompts, 3 models": ranked(50, [0.0, 0.3, 0.8]),
}


@pytest.mark.parametrize("case", few(3, CASES))
def test_an_interval_covers_what_it_claims(case, monkeypatch):
  # The p value beside a difference costs more than its interval, and is not asked for here.
  monkeypatch.setattr(comparing, "swap_p_value", lambda sums, seed: None)
  assert 0.93 <= coverage(CASES[case]) <= 0.97


@pytest.mark.slow
def test_the_mean_of_win_scores_covers():
  """Through the verdicts; fewer evaluations, since five rates are worked out in each."""
  assert 0.91 <= coverage(judged_in_two_languages(50), num=300) <= 0.99


@pytest.mark.parametrize(
  "careless",
  few(
    1,
    [
      shares(50, 8, 0.7, 0.6, clustered=False),
      means(50, 8, clustered=False),
      parallel_shares(50, 6, together=False),
    ],
  ),
  ids=["share", "mean", "macro share"],
)
def test_intervals_that_forget_what_belongs_together_do_not(careless):
  """The check above can fail: answers, or translations, of one prompt taken for so many prompts."""
  assert coverage(careless, num=300) < 0.9
