"""Every second is of one kind."""

import time

import jax
import jax.numpy as jnp
import pytest

from mlit_jax.training import clock as clocks
from mlit_jax.training.clock import Clock


@pytest.fixture
def now(monkeypatch):
  """A time that only the test moves."""
  at = [100.0]
  monkeypatch.setattr(clocks.time, "perf_counter", lambda: at[0])

  def move(seconds):
    at[0] += seconds

  return move


def test_every_second_is_of_one_kind(now):
  clock = Clock(began=97.0)
  now(1)
  with clock.spent("data"):
    now(2)
  clock.started()
  now(0.5)
  with clock.spent("evaluation"):
    now(4)
    with clock.spent("saving"):
      now(8)
    now(16)
  assert clock.seconds["starting"] == 4 and clock.seconds["data"] == 2
  assert clock.seconds["evaluation"] == 20 and clock.seconds["saving"] == 8
  assert clock.total() == 34.5 and clock.seconds["other"] == 0.5


def test_a_split_is_what_passed_since_the_last(now):
  clock = Clock()
  clock.started()
  with clock.spent("step"):
    now(3)
  assert clock.split() == {"step": 3}
  now(1)
  with clock.spent("step"):
    now(5)
    assert clock.split() == {"step": 5, "other": 1}  # also of what is still open
    now(2)
  assert clock.split() == {"step": 2}
  assert clock.goodput() == pytest.approx(10 / 11)
  assert clock.line() == "training steps 91%, other 9%"


def test_a_failure_closes_what_was_open(now):
  clock = Clock()
  clock.started()
  with pytest.raises(RuntimeError), clock.spent("saving"):
    now(1)
    raise RuntimeError
  now(2)
  assert clock.split() == {"saving": 1, "other": 2}


def test_what_compiles_is_told_apart():
  """Within any kind: the first call of a program compiles, the second does not."""
  clock = Clock()
  clock.started()
  program = jax.jit(lambda x: jnp.tanh(x @ x) + jax.lax.fori_loop(0, 3, lambda i, y: y @ y, x))
  x = jnp.ones((8, 8))
  clock.split()
  began = time.perf_counter()
  with clock.spent("step"):
    program(x).block_until_ready()
  passed = time.perf_counter() - began
  first = clock.split()
  assert 0 < first["compiling"] <= passed
  assert first["step"] + first["compiling"] == pytest.approx(passed, abs=0.05)
  with clock.spent("step"):
    program(x).block_until_ready()
  assert "compiling" not in clock.split()
