"""Killed, stopped, spread over processes: the run that goes on is the run."""

import random
import signal
import time

import jax
import numpy as np
import pytest

from mlit_jax import mesh as meshes
from mlit_jax.config import load_config
from mlit_jax.model import decoder
from mlit_jax.opening import open_workdir
from mlit_jax.training.checkpoint import Checkpoints, abstract_like, resolve_step
from mlit_jax.training.optimizer import OptimizerConfig, make_optimizer
from mlit_jax.training.step import State, state_shardings
from tests import commands

pytestmark = pytest.mark.slow
STEPS = 40
LINES = (
  "c.epochs, c.steps = 0, 40",
  "c.eval.generate_rows = 0",
  "c.eval.every_steps = 3",
  "c.checkpoint.every_steps = 4",
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  return commands.write_config(tmp_path_factory.mktemp("resume"), *LINES)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("undisturbed") / "run"
  assert_done(config, workdir)
  return workdir


def begin(config, workdir, *args, **kwargs):
  return commands.start("train", "--config", config, "--workdir", workdir, *args, **kwargs)


def assert_done(config, workdir, *args):
  code, out, err = commands.ended(begin(config, workdir, *args))
  assert code == 0, err
  return out


def final_state(config, workdir) -> State:
  """Parameters, moments and step, as they lie in the last checkpoint."""
  cfg = open_workdir(workdir, "latest", meshes.make_mesh(1, 1, 1, devices=jax.devices()[:1])).cfg
  specs = decoder.param_specs(cfg)
  optimizer = make_optimizer(OptimizerConfig(**load_config(str(config)).optimizer), STEPS, specs)
  shapes = decoder.param_shapes(cfg)
  mesh = meshes.make_mesh(1, 1, 1, devices=jax.devices()[:1])
  shardings = state_shardings(optimizer, meshes.param_shardings(specs, mesh), shapes, mesh)
  abstract = jax.eval_shape(lambda p: State(np.int32(0), p, optimizer.init(p)), shapes)
  step = resolve_step(workdir / "checkpoints", "latest")
  assert step == STEPS
  with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
    state, _ = checkpoints.restore(step, abstract_like(abstract, shardings))
  return jax.device_get(state)


def assert_same_run(config, workdir, undisturbed):
  """The same state bit by bit, the same events once each, the same ledger, evaluations and card."""
  ours, theirs = final_state(config, workdir), final_state(config, undisturbed)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a.view(np.int32), b.view(np.int32)), ours, theirs
  )
  events, expected = (commands.untimed(commands.events(w)) for w in (workdir, undisturbed))
  key = lambda e: (e["step"], sorted(e))  # noqa: E731
  assert sorted(events, key=key) == sorted(expected, key=key)
  for name in ("data_plan.json", "evals/0/heldout.json", f"evals/{STEPS}/heldout.json"):
    assert (workdir / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_killed_at_five_random_moments(config, undisturbed, tmp_path):
  rng, workdir, killed = random.Random(20240726), tmp_path / "run", []
  for _ in range(5):
    process = begin(config, workdir)
    done = max(commands.train_events(workdir), default=0)
    if rng.random() < 0.2:
      time.sleep(rng.uniform(1, 8))  # while it starts, or anywhere
    elif commands.wait_for_step(process, workdir, min(done + rng.randint(1, 9), STEPS - 1)):
      time.sleep(rng.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed.append(max(commands.train_events(workdir), default=0))
  assert 0 < killed[-1] <= STEPS
  assert_done(config, workdir)
  assert_same_run(config, workdir, undisturbed)


def test_killed_between_files(config, undisturbed, tmp_path):
  """While it starts: the places where nothing but half of a first file is there."""
  workdir = tmp_path / "run"
  for moment in (".lock", "config.json", "base"):
    process = begin(config, workdir)
    while process.poll() is None and not (workdir / moment).exists():
      time.sleep(0.0005)
    process.kill()
    process.communicate()
  assert_done(config, workdir)
  assert_same_run(config, workdir, undisturbed)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_and_the_run_goes_on(config, undisturbed, tmp_path, name):
  workdir = tmp_path / "run"
  process = begin(config, workdir)
  assert commands.wait_for_step(process, workdir, 5)
  process.send_signal(getattr(signal, name))
  code, _, err = commands.ended(process)
  assert code == 75, err
  assert err.count("\n") == 1 and name in err and "run again" in err
  saved = resolve_step(workdir / "checkpoints", "latest")
  assert saved >= 5 and f"step {saved} of {STEPS}" in err
  assert max(commands.train_events(workdir)) == saved
  out = assert_done(config, workdir)
  assert f"resumed at step {saved}" in out
  assert_same_run(config, workdir, undisturbed)


def test_a_signal_where_an_evaluation_is_due_loses_none(tmp_path):
  """Evaluated before every step, so that the signal always falls where one is due."""
  config = commands.write_config(tmp_path, *LINES[:2], "c.eval.every_steps = 1")
  workdir = tmp_path / "run"
  process = begin(config, workdir)
  assert commands.wait_for_step(process, workdir, 3)
  process.terminate()
  assert commands.ended(process)[0] == 75
  assert_done(config, workdir)
  evaluated = [e["step"] for e in commands.events(workdir) if "eval/heldout/mean/loss" in e]
  assert sorted(evaluated) == list(range(STEPS + 1))


# ------------------------------------------------------------------------------------ two processes


def begin_two(config, workdir, *args):
  return commands.start_several(2, "train", "--config", config, "--workdir", workdir, *args)


def assert_same_steps(workdir, undisturbed, tolerance=1e-5):
  """Same plan; in each step the same tokens of each language, and the same loss."""
  ours, theirs = commands.train_events(workdir), commands.train_events(undisturbed)
  assert ours.keys() == theirs.keys()
  for step, event in theirs.items():
    for name, value in event.items():
      exact = name.startswith(("step", "train/share", "train/padding", "train/learning_rate"))
      assert ours[step][name] == pytest.approx(value, rel=0 if exact else tolerance), (step, name)
  assert (workdir / "data_plan.json").read_bytes() == (undisturbed / "data_plan.json").read_bytes()


def test_two_processes_train_the_same_run(config, undisturbed, tmp_path):
  workdir = tmp_path / "run"
  ends = [commands.ended(p) for p in begin_two(config, workdir)]
  assert [code for code, *_ in ends] == [0, 0], ends
  assert f"step {STEPS}/{STEPS}" in ends[0][1] and "loss" not in ends[1][1]  # one of them speaks
  assert_same_steps(workdir, undisturbed, 1e-4)
  first = commands.train_events(workdir)[1]["train/loss"]
  assert first == pytest.approx(commands.train_events(undisturbed)[1]["train/loss"], rel=1e-5)


def test_two_processes_killed_and_gone_on_with_by_one(config, undisturbed, tmp_path):
  workdir = tmp_path / "run"
  both = begin_two(config, workdir)
  assert commands.wait_for_step(both[0], workdir, 10)
  for process in both:
    process.kill()
  for process in both:
    process.communicate()
  out = assert_done(config, workdir)
  assert "resumed at step" in out
  assert_same_steps(workdir, undisturbed, 1e-4)


def test_a_signal_to_one_of_two_processes_stops_both(config, undisturbed, tmp_path):
  workdir = tmp_path / "run"
  both = begin_two(config, workdir)
  assert commands.wait_for_step(both[0], workdir, 4)
  both[1].terminate()
  ends = [commands.ended(p) for p in both]
  assert [code for code, *_ in ends] == [75, 75], ends
  assert resolve_step(workdir / "checkpoints", "latest") >= 4
  assert_done(config, workdir)
  assert_same_steps(workdir, undisturbed, 1e-4)
