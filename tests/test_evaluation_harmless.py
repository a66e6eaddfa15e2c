"""Evaluation leaves training as it is, bit for bit; killed and begun again it writes the same files."""

import signal
import time

import jax
import numpy as np
import pytest
from commands import contents, ended, here, start, write_config

from mlit_jax import train
from mlit_jax.model import decoder
from mlit_jax.opening import open_model, whole_mesh
from mlit_jax.training.console import Terminal

LINES = (
  "c.epochs, c.steps = 0, 6",
  "c.mesh.fsdp = 4",
  "c.mesh.tensor = 2",
  "c.checkpoint.every_steps = 6",
)


def test_a_run_that_is_evaluated_ends_with_the_parameters_of_one_that_is_not(tmp_path):
  params = []
  for name, lines in (
    ("watched", ("c.eval.every_steps = 1", "c.eval.temperature = 1.0", "c.eval.generate_rows = 3")),
    ("alone", ("c.eval.every_steps = 0", "c.eval.at_start = False", "c.eval.sets = {}", "c.checkpoint.keep_best = 0")),
  ):  # fmt: skip
    (tmp_path / name).mkdir()
    config = write_config(tmp_path / name, *LINES, *lines)
    code, _, err = here(train, "--config", config, "--workdir", tmp_path / name / "run")
    assert code == 0, err
    model = open_model(str(tmp_path / name / "run"), whole_mesh(), Terminal(shown=False))
    params.append(jax.tree.map(np.asarray, model.params))
  assert decoder.count_params(model.cfg) > 10_000
  jax.tree.map(np.testing.assert_array_equal, *params)


@pytest.mark.slow
def test_an_evaluation_that_was_killed_and_begun_again_writes_the_same_files(tmp_path):
  suite = "mlit_jax/assets/instructions12/eval/*.jsonl"
  words = (
    "--model",
    "mlit_jax/assets/tiny12",
    "--suite",
    suite,
    "--languages",
    "sw,fi",
    "--generate_rows",
    4,
  )

  def evaluate(out):
    return start("evaluate", *words, "--temperature", 0.7, "--top_p", 0.9, "--out", tmp_path / out)

  code, _, err = ended(evaluate("whole"))
  assert code == 0, err
  for seconds in (2.0, 5.0):
    process = evaluate("killed")
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert "summary.json" not in contents(tmp_path / "killed") or process.returncode == 0
  code, _, err = ended(evaluate("killed"))
  assert code == 0, err
  whole, again = contents(tmp_path / "whole"), contents(tmp_path / "killed")
  assert {"summary.json", "generations.jsonl", "eval.json"} <= whole.keys()
  assert again == whole
