"""What counts as a spike, whose it is, and that healthy runs are quiet."""

import numpy as np
import pytest

from mlit_jax.training import spikes
from mlit_jax.training.spikes import Spikes, Usual, language_losses

LANGUAGES = ["en", "sw", "sw", "zh"]  # sw from two sources
TRAINED = np.array([600, 40, 60, 100])


def told(rng, step=0, **losses):
  """(nll, trained) of a healthy step: losses that fall and scatter, a rare language more; or as given."""
  base = 2 + 2 * np.exp(-step / 60)
  of = {"en": base, "sw": base + 2, "zh": base + 1}
  of = {lang: losses.get(lang, loss + rng.normal(0, 0.15)) for lang, loss in of.items()}
  return np.array([of[lang] for lang in LANGUAGES]) * TRAINED, TRAINED


def healthy(watch, steps, rng, first=0):
  return [
    watch.see(step, *told(rng, step), float(np.exp(rng.normal(0, 0.4))))
    for step in range(first, first + steps)
  ]


@pytest.mark.parametrize("seed", range(3))
def test_healthy_runs_are_quiet(seed):
  assert (
    healthy(Spikes(LANGUAGES, height=8.0, first=0), 600, np.random.default_rng(seed))
    == [None] * 600
  )


def test_what_is_told_of_a_spike_and_that_it_is_told_once():
  rng = np.random.default_rng(0)
  watch = Spikes(LANGUAGES, height=8.0, first=5)
  healthy(watch, 300, rng)
  usual = watch.usual()
  assert usual["sw"] == pytest.approx(4, abs=0.2) and usual[""] == pytest.approx(2.4, abs=0.2)
  spike = watch.see(300, *told(rng, 300, sw=20.0), 1.0)
  assert next(iter(spike.by_language)) == "sw" and spike.by_language["sw"].value == 20.0
  assert spike.by_language["en"].height < 3 < 8 < spike.loss.height < spike.by_language["sw"].height
  assert spike.loss.usual == pytest.approx(usual[""]) and abs(spike.grad_norm.height) < 4
  assert watch.see(301, *told(rng, 300, sw=30.0), 1.0) is None  # the same one
  assert healthy(watch, 1, rng, 302) == [None]
  assert watch.see(303, *told(rng, 300, en=9.0), 1.0) is not None  # another
  assert watch.see(304, *told(rng, 300, en=9.0), 1.0) is None


def test_the_norm_alone_and_by_factors():
  rng = np.random.default_rng(1)
  watch = Spikes(LANGUAGES, height=8.0, first=0)
  healthy(watch, 100, rng)
  assert watch.see(100, *told(rng, 100), 8.0) is None  # five times the scatter of its logarithm
  spike = watch.see(101, *told(rng, 101), 500.0)
  assert spike.grad_norm.height > 8 > spike.loss.height
  assert spike.grad_norm.usual == pytest.approx(1, rel=0.3)


def test_nothing_is_judged_too_early():
  rng = np.random.default_rng(2)
  watch = Spikes(LANGUAGES, height=8.0, first=50)
  healthy(watch, 49, rng)
  high = told(rng, 0, sw=50.0, en=50.0)
  assert watch.see(49, *high, 1.0) is None  # the warmup
  watch = Spikes(LANGUAGES, height=8.0, first=0)
  healthy(watch, spikes.FEWEST - 1, rng)
  assert watch.see(spikes.FEWEST - 1, *high, 1.0) is None
  healthy(watch, 1, rng)
  assert watch.see(spikes.FEWEST + 1, *high, 1.0) is not None


def test_a_loss_that_hardly_moves_may_move_a_little():
  usual = Usual(least=0.02, share=0.05)
  for _ in range(30):
    usual.add(1.0, 800)
  assert usual.of(1.3, 800).height == pytest.approx(6)
  assert usual.of(2.0, 900).height == pytest.approx(20)


@pytest.mark.parametrize("seed", range(3))
def test_the_last_steps_of_epochs_with_few_tokens_are_quiet(seed):
  """Means over one token in a hundred: ten times the scatter, and ten times the norm where all is noise."""
  rng = np.random.default_rng(seed)
  watch = Spikes(["en"], height=8.0, first=0)
  for step in range(400):
    tokens = np.array([8 if step % 20 == 19 else 800])
    wider = np.sqrt(800 / tokens[0])
    nll = tokens * (2 + rng.normal(0, 0.1 * wider))
    spike = watch.see(step, nll, tokens, wider * np.exp(rng.normal(0, 0.2)))
    assert spike is None, (step, spike)
  spike = watch.see(400, np.array([8 * 14.0]), np.array([8]), 10.0)
  assert (
    spike.loss.height > 8 and spike.by_language["en"].height > 8
  )  # of few tokens, and still too much
  assert spike.grad_norm.usual == pytest.approx(10, rel=0.3)


def test_sources_of_a_language_count_together_and_those_without_tokens_not_at_all():
  losses = language_losses(LANGUAGES, np.array([0.0, 8, 12, np.inf]), np.array([0, 4, 6, 3]))
  assert losses == {"sw": 2.0, "zh": np.inf}
  assert Spikes(LANGUAGES, height=1.0, first=0).see(0, np.zeros(4), np.zeros(4, int), 0.0) is None
