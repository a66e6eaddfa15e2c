"""Whole runs whose checkpoints are damaged, or cannot be written."""

import random
import shutil

import jax
import numpy as np
import pytest

from mlit_jax import checkpoints as command
from mlit_jax import mesh as meshes
from mlit_jax import train
from mlit_jax.opening import open_workdir
from mlit_jax.training import safety
from tests import commands
from tests.damage import damage
from tests.training.test_checkpoint_safety import files_of, full

LINES = (
  "c.epochs, c.steps, c.batch.rows = 0, 6, 8",
  "c.eval.generate_rows = 0",
  "c.eval.every_steps = 0",
  "c.checkpoint.keep_latest = 3",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  root = tmp_path_factory.mktemp("whole_run")
  config = commands.write_config(root, *LINES)
  code, out, err = commands.here(train, "--config", config, "--workdir", root / "run")
  assert code == 0, err
  assert [f"step {n} is durable" in out for n in (2, 4, 6)] == [True] * 3
  return config, root / "run"


def params(workdir):
  found = open_workdir(workdir, "latest", meshes.make_mesh(devices=jax.devices()))
  return jax.tree.map(np.asarray, found.params)


@pytest.mark.slow
def test_a_run_goes_on_from_the_step_before_the_damaged_one(run, tmp_path):
  config, done = run
  shutil.copytree(done, tmp_path / "run")
  workdir = tmp_path / "run"
  for file in files_of(workdir / "checkpoints" / "6" / "params"):
    if file.parent.name == "d":
      damage(file, "bit", random.Random(5))
  code, out, err = commands.here(train, "--config", config, "--workdir", workdir)
  assert code == 0, err
  assert "step 6 is damaged" in out and "resumed at step 4 of 6" in out
  assert (workdir / "quarantine" / "6-1" / "reason.json").exists()
  jax.tree.map(np.testing.assert_array_equal, params(workdir), params(done))
  a, b = (commands.untimed(commands.events(w)) for w in (workdir, done))
  assert a == b


@pytest.mark.slow
def test_a_run_trains_on_while_its_disk_is_full(run, tmp_path, monkeypatch):
  config, done = run
  real, workdir = safety.check_can_save, tmp_path / "run"
  calls = []

  def second_only(folder, size):
    calls.append(folder)
    if len(calls) == 2:
      full()
    real(folder, size)

  monkeypatch.setattr(safety, "check_can_save", second_only)
  code, out, err = commands.here(train, "--config", config, "--workdir", workdir)
  assert code == 0, err
  assert "warning: step 4 is not saved, the last good one is step 2" in out
  alarm = [e for e in commands.events(workdir) if "alarm" in e]
  assert [e["step"] for e in alarm] == [4] and "No space left" in alarm[0]["alarm"]
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "6"]
  jax.tree.map(np.testing.assert_array_equal, params(workdir), params(done))


@pytest.mark.slow
def test_a_run_whose_last_save_fails_says_what_is_left_and_can_go_on(run, tmp_path, monkeypatch):
  config, done = run
  real, workdir = safety.check_can_save, tmp_path / "run"
  monkeypatch.setattr(
    safety, "check_can_save",
    lambda folder, size: full() if (folder / "4").exists() else real(folder, size),
  )  # fmt: skip
  code, out, err = commands.here(train, "--config", config, "--workdir", workdir)
  assert code == 1 and err.count("\n") == 1 and "Traceback" not in err, err
  assert "step 6 of 6 could not be saved" in err and "last good one is step 4" in err
  assert (workdir / "README.md").exists()  # all else that could be written is
  monkeypatch.undo()
  code, out, err = commands.here(train, "--config", config, "--workdir", workdir)
  assert code == 0 and "resumed at step 4" in out, err
  jax.tree.map(np.testing.assert_array_equal, params(workdir), params(done))


@pytest.mark.slow
def test_the_command_on_a_run(run, tmp_path):
  """On the real thing; what it does with small folders is in test_checkpoints_command.py."""
  _, done = run
  code, out, err = commands.here(command, "verify", done)
  assert code == 0 and out.count("arrays are as they were saved") == 3, err
