"""Runs with less memory learn as much, and a run goes on only with the choices it began with."""

import json
import shutil
from unittest import mock

import jax
import numpy as np
import pytest

from mlit_jax import export, train
from mlit_jax import mesh as meshes
from mlit_jax.opening import open_workdir
from tests import commands

ROWS = "c.batch.rows = 8"  # one for each device of the tests
LINES = (ROWS, "c.epochs, c.steps = 0, 40", "c.eval.generate_rows = 0", "c.eval.every_steps = 0", "c.checkpoint.every_steps = 40")  # fmt: skip
SMALL = [
  ("c.optimizer.moments = 'bfloat16'",),
  ("c.optimizer.moments = 'int8'",),
  ("c.model.param_dtype = 'bfloat16'", "c.optimizer.moments = 'bfloat16'"),
  ("c.model.param_dtype = 'bfloat16'", "c.optimizer.moments = 'int8'"),
]


def final_loss(folder, *lines) -> float:
  """Held-out, after 40 steps of the smallest run."""
  folder.mkdir()
  config = commands.write_config(folder, *LINES, *lines)
  code, _, err = commands.here(train, "--config", config, "--workdir", folder / "run")
  assert code == 0, err
  losses = {e["step"]: e["eval/heldout/mean/loss"] for e in commands.events(folder / "run") if "eval/heldout/mean/loss" in e}  # fmt: skip
  assert losses[40] < 0.95 * losses[0]  # it learned
  return losses[40]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
  """The loss of AdamW with everything in float32."""
  return final_loss(tmp_path_factory.mktemp("float32") / "adamw")


@pytest.mark.slow
@pytest.mark.parametrize("name, rate", [("adafactor", 1.0), ("muon", 1.6)])
def test_other_optimizers_end_no_more_than_a_hundredth_higher(tmp_path, expected, name, rate):
  """At this many times AdamW's learning rate (docs/memory.md)."""
  found = final_loss(
    tmp_path / name,
    f"c.optimizer.name = {name!r}",
    f"c.optimizer.learning_rate = {rate} * c.optimizer.learning_rate",
  )
  assert found < 1.01 * expected and found != expected


@pytest.mark.slow
def test_less_memory_ends_within_a_hundredth(tmp_path, expected):
  found = [final_loss(tmp_path / str(i), *lines) for i, lines in enumerate(SMALL)]
  np.testing.assert_allclose(found, expected, rtol=0.01)
  assert len({expected, *found}) == 1 + len(SMALL)  # each is another computation
  code, _, err = commands.here(
    export, "--workdir", tmp_path / "3" / "run", "--out", tmp_path / "out"
  )
  assert code == 0, err


@pytest.mark.parametrize(
  "key, value",
  [
    ("model.param_dtype", "bfloat16"),
    ("optimizer.moments", "int8"),
    ("optimizer.name", "muon"),
    ("batch.accumulation_dtype", "bfloat16"),
  ],
)
def test_a_run_begun_otherwise_is_refused(tmp_path, key, value):
  workdir = commands.begun(commands.write_config(tmp_path, ROWS), tmp_path / "run")
  other = commands.write_config(tmp_path, ROWS, f"c.{key} = {value!r}")
  code, _, err = commands.here(train, "--config", other, "--workdir", workdir)
  assert code == 2 and key in err and value in err and "different config" in err


def test_a_run_from_before_a_key_goes_on(tmp_path):
  config = commands.write_config(tmp_path, ROWS)
  workdir = commands.begun(config, tmp_path / "run")
  stored = json.loads((workdir / "config.json").read_text())
  del stored["config"]["data"]["seed"], stored["config"]["optimizer"]["moments"]
  del stored["seal"], stored["sealed"]  # they are younger, too
  (workdir / "config.json").write_text(json.dumps(stored))
  with mock.patch.object(train.Job, "run"):
    assert commands.here(train, "--config", config, "--workdir", workdir)[0] == 0


@pytest.mark.parametrize(
  "lines, words",
  [
    (("c.model.remat = 'offload'",), ["model.remat", "CPU", "attention_saved"]),
    (("c.optimizer.moments = 'int4'",), ["optimizer.moments", "int4", "int8"]),
    (("c.optimizer.name = 'lion'",), ["optimizer.name", "lion", "muon"]),
    (("c.optimizer.name = 'adafactor'", "c.optimizer.moments = 'int8'"), ["int8", "adafactor", "float32"]),
    (("c.model.param_dtype = 'float16'",), ["model.param_dtype", "float16", "bfloat16"]),
  ],
)  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path, lines, words):
  config = commands.write_config(tmp_path, ROWS, *lines)
  code, _, err = commands.here(train, "--config", config, "--workdir", tmp_path / "run")
  assert code == 2 and err.count("\n") == 1 and all(word in err for word in words), err


@pytest.mark.slow
@pytest.mark.parametrize("moments, tolerance", [("int8", 0), ("float32", 1e-6)])
def test_a_run_goes_on_with_its_optimizer_in_the_other_memory(tmp_path, moments, tolerance):
  """Stopped after two of four steps and ended with the state in the host's memory: the run that was not.

  Bit by bit where both go layer by layer; else one of them takes whole stacks, and last digits may differ.
  """
  lines = (ROWS, "c.epochs, c.steps = 0, 4", "c.eval.sets = {}", "c.eval.every_steps = 0")
  lines = (*lines, f"c.optimizer.moments = {moments!r}")
  stays, moves = tmp_path / "stays", tmp_path / "moves"
  config = commands.write_config(tmp_path, *lines)
  code, _, err = commands.here(train, "--config", config, "--workdir", stays)
  assert code == 0, err
  shutil.copytree(stays, moves)
  shutil.rmtree(moves / "checkpoints" / "4")
  config = commands.write_config(tmp_path, *lines, "c.optimizer.offload = True")
  code, out, err = commands.here(train, "--config", config, "--workdir", moves)
  assert code == 0 and "resumed at step 2 of 4" in out, err
  mesh = meshes.make_mesh(devices=jax.devices())
  a, b = (jax.tree.leaves(open_workdir(of, "latest", mesh).params) for of in (stays, moves))
  for x, y in zip(a, b, strict=True):
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)
  losses = [
    {step: e["train/loss"] for step, e in commands.train_events(of).items()}
    for of in (stays, moves)
  ]
  assert losses[0] == pytest.approx(losses[1], rel=tolerance, abs=0) and len(losses[0]) == 4


def test_devices_that_cannot_reach_such_memory_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(meshes, "memory_kinds", lambda mesh: {"device", "unpinned_host"})
  config = commands.write_config(tmp_path, ROWS, "c.optimizer.offload = True")
  code, _, err = commands.here(train, "--config", config, "--workdir", tmp_path / "run")
  words = ("optimizer.offload", "CPU", "pinned_host", "device, unpinned_host", "offload=False")
  assert code == 2 and err.count("\n") == 1 and all(word in err for word in words), err
  assert not (tmp_path / "run" / "config.json").exists()
