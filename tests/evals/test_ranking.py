import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy.optimize import minimize

from mlit_jax.errors import UserError
from mlit_jax.evals.ranking import ELO_PER_LOG_ODDS, Game, fit_strengths, rank


def test_two_models_by_hand():
  games = [Game(i, "ours", "base", 1.0 if i < 3 else 0.0) for i in range(4)] * 10
  games = [Game(i, g.a, g.b, g.score) for i, g in enumerate(games)]
  ranking = rank(games, anchor="base")
  assert list(ranking.figures) == ["ours", "base"]
  assert ranking.figures["ours"].value == pytest.approx(1000 + 400 * math.log10(3))
  assert ranking.figures["ours"].n == 40
  assert (ranking.figures["base"].value, ranking.figures["base"].low) == (1000.0, None)
  assert ranking.win_chance("ours", "base") == pytest.approx(0.75)
  # Log odds of 30 of 40: standard error sqrt(1 / (40 x 0.75 x 0.25)).
  half = 1.96 / math.sqrt(7.5) * ELO_PER_LOG_ODDS
  figure = ranking.figures["ours"]
  assert figure.high - figure.low == pytest.approx(2 * half, rel=0.15)


def test_ties_are_half_a_win_for_both():
  games = [Game(i, "a", "b", s) for i, s in enumerate([1, 0.5, 0.5, 0.5])]
  assert rank(games).win_chance("a", "b") == pytest.approx(2.5 / 4)


def round_robin(strengths, prompts, seed=0, spread=0.0):
  rng, names = np.random.default_rng(seed), [f"m{i}" for i in range(len(strengths))]
  games = []
  for prompt in range(prompts):
    s = np.array(strengths) + rng.normal(0, spread, len(strengths))
    for i in range(len(s)):
      for j in range(i):
        p = 1 / (1 + math.exp(s[j] - s[i]))
        score = 0.5 if rng.random() < 0.2 else float(rng.random() < p)
        games.append(Game(prompt, names[i], names[j], score))
  return games


def test_strengths_against_a_general_optimiser():
  games = round_robin([0.0, 0.5, -0.4, 1.0], 60)
  ranking = rank(games, num_draws=50)

  def loss(s):
    s = dict(zip(["m0", "m1", "m2", "m3"], [0.0, *s]))
    d = np.array([s[g.a] - s[g.b] for g in games])
    return np.sum(np.logaddexp(0, d) - np.array([g.score for g in games]) * d)

  fit = minimize(loss, np.zeros(3), tol=1e-12)
  ours = [(ranking.figures[f"m{i}"].value - 1000) / ELO_PER_LOG_ODDS for i in (1, 2, 3)]
  assert ours == pytest.approx(fit.x, abs=1e-5)


def test_known_strengths_are_found():
  ranking = rank(round_robin([0.0, 0.6, -0.6], 3000), num_draws=100)
  # A fifth of the games are ties, which draws the odds together: 0.8 sigmoid(0.6) + 0.1.
  p = 0.8 / (1 + math.exp(-0.6)) + 0.1
  assert ranking.win_chance("m1", "m0") == pytest.approx(p, abs=0.02)
  assert list(ranking.figures) == ["m1", "m0", "m2"]


def test_far_apart_models_are_fitted():
  points = np.zeros((1, 3, 3))
  points[0, 0, 1], points[0, 1, 0] = 9999, 1
  points[0, 1, 2], points[0, 2, 1] = 9999, 1
  far = np.array([0, -math.log(9999), -2 * math.log(9999)])
  assert fit_strengths(points)[0] == pytest.approx(far, abs=1e-4)
  # From there, where the likelihood is all but flat, Newton's full step would be thousands.
  level = np.ones((1, 3, 3)) - np.eye(3)
  assert fit_strengths(level, start_M=far)[0] == pytest.approx(np.zeros(3), abs=1e-4)


def test_games_of_a_prompt_are_drawn_together():
  games = round_robin([0.0, 0.8], 60)
  once = rank(games).figures["m1"]
  thrice = rank(games * 3).figures["m1"]
  assert thrice.value == pytest.approx(once.value)
  assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=1e-3)


def test_every_model_counts_its_games():
  ranking = rank(round_robin([0.0, 0.2, 0.1], 20) + [Game(7, "m0", "m2", 1)], num_draws=50)
  assert {name: figure.n for name, figure in ranking.figures.items()} == dict(m0=41, m1=40, m2=41)


def test_the_anchor_shifts_everything():
  games = round_robin([0.0, 0.5, 1.0], 40)
  one, two = rank(games, anchor="m0", num_draws=200), rank(games, anchor="m2", num_draws=200)
  shift = 1000 - one.figures["m2"].value
  for name in ("m0", "m1", "m2"):
    assert two.figures[name].value == pytest.approx(one.figures[name].value + shift)
  assert one.figures["m0"].low is None and two.figures["m2"].low is None
  width = [f.high - f.low for f in (one.figures["m2"], two.figures["m0"])]
  assert width[0] == pytest.approx(width[1], abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.randoms(use_true_random=False))
def test_neither_the_order_of_games_nor_who_is_named_first_matters(seed, random):
  games = round_robin([0.0, 0.4, 0.9], 12, seed)
  turned = [
    Game(g.prompt, g.b, g.a, 1 - g.score) if random.random() < 0.5 else g
    for g in random.sample(games, len(games))
  ]
  one, two = (rank(x, added_ties=0.5, num_draws=50) for x in (games, turned))
  for name, figure in one.figures.items():
    other = two.figures[name]
    assert figure.value == pytest.approx(other.value, abs=1e-3)
    if figure.low is not None:
      assert (figure.low, figure.high) == pytest.approx((other.low, other.high), abs=0.01)


def test_models_that_never_met_are_named():
  games = [Game(1, "a", "b", 1), Game(2, "a", "b", 0), Game(1, "c", "d", 1), Game(2, "c", "d", 0)]
  with pytest.raises(UserError, match="without a game between them .*: a, b; c, d"):
    rank(games)


def test_a_model_with_only_wins_is_refused_or_held():
  games = [Game(i, "best", other, 1) for i in range(9) for other in ("x", "y")]
  games += [Game(i, "x", "y", i % 2) for i in range(9)]
  with pytest.raises(UserError, match="won, or lost, every game against the rest.*: best; x, y"):
    rank(games)
  held = rank(games, added_ties=0.5, num_draws=100)
  assert next(iter(held.figures)) == "best"
  # 9.25 to 0.25 against each of two equals.
  assert held.win_chance("best", "x") == pytest.approx(9.25 / 9.5, abs=0.01)


def test_draws_that_had_to_be_patched_are_told():
  games = [Game(i, "a", "b", 0 if i == 0 else 1) for i in range(20)]
  ranking = rank(games, anchor="b")
  assert ranking.patched_draws == pytest.approx((19 / 20) ** 20, abs=0.05)
  # There a took 20 of 20, and half a tie: 20.25 to 0.25.
  assert ranking.figures["a"].high == pytest.approx(1000 + 400 * math.log10(81), abs=0.1)
  assert rank(round_robin([0.0, 0.1], 100)).patched_draws == 0


@pytest.mark.parametrize(
  "games, message",
  [
    ([], "needs two models or more"),
    ([Game(1, "a", "a", 1)], "needs two models or more; the games name a"),
    ([Game(1, "a", "b", 1), Game(7, "b", "b", 1)], "game on prompt 7: 'b' against 'b'"),
    ([Game(1, "a", "b", 2)], "with score 2"),
  ],
)
def test_bad_games_are_named(games, message):
  with pytest.raises(UserError, match=message):
    rank(games)


def test_an_anchor_without_games_is_named():
  with pytest.raises(UserError, match="anchor 'z' has no games; the models are a, b"):
    rank([Game(1, "a", "b", 1)], anchor="z")


def test_the_table_shows_the_anchor_and_intervals():
  out = io.StringIO()
  Console(file=out, width=100).print(rank(round_robin([0.0, 1.0], 50), anchor="m0").table())
  assert "anchor" in out.getvalue() and " to " in out.getvalue()
