"""A run that stops getting better ends by itself: its ledger is right as far as it went, and it stays ended."""

import json

import pytest
from commands import events, here, write_config

from mlit_jax import train
from mlit_jax.training.checkpoint import rounds_since_best


@pytest.mark.parametrize(
  "values, lower, since",
  [
    ([], True, 0),
    ([3.0], True, 0),
    ([3.0, 2.0, 2.5, 2.0], True, 2),
    ([3.0, 2.0, 2.5, 2.0], False, 3),
    ([None, 1.0, None, float("nan")], False, 2),
    ([None, None], True, 2),
  ],
)
def test_rounds_since_the_best(values, lower, since):
  assert rounds_since_best(values, lower_is_better=lower) == since


@pytest.mark.slow
def test_a_run_that_gets_no_better_ends_and_its_ledger_holds(tmp_path):
  # Without a learning rate no evaluation is better than the first.
  config = write_config(
    tmp_path, "c.epochs, c.steps = 0, 12", "c.optimizer.learning_rate = 0.0", "c.eval.patience = 2",
    "c.eval.generate_rows = 0", "c.mesh.fsdp = 4", "c.mesh.tensor = 2",
  )  # fmt: skip
  root = tmp_path / "run"
  code, out, err = here(train, "--config", config, "--workdir", root)
  assert code == 0, err
  assert "ends at step 4 of 12: heldout/mean/loss has not got better for 2 evaluations" in out
  assert sorted(e["step"] for e in events(root) if "eval/heldout/mean/loss" in e) == [0, 2, 4]
  ledger = json.loads((root / "data_plan.json").read_text())
  assert ledger["steps_done"] == 4 and ledger["steps"] == 12
  for e in ledger["languages"].values():
    assert e["trained"] == e["due"]
    assert e["due"]["examples"] <= e["examples"]
  assert sum(e["due"]["tokens"] for e in ledger["languages"].values()) < sum(
    e["tokens"] for e in ledger["languages"].values()
  )
  assert (root / "checkpoints" / "4").is_dir()
  assert "ended by itself at step 4 of 12" in (root / "report.html").read_text()

  # The same command again trains no further.
  code, out, err = here(train, "--config", config, "--workdir", root)
  assert code == 0, err
  assert "ends at step 4 of 12" in out
  assert max(e["step"] for e in events(root)) == 4
  assert json.loads((root / "data_plan.json").read_text()) == ledger


@pytest.mark.slow
def test_a_run_that_gets_better_goes_on_to_its_end(tmp_path):
  config = write_config(
    tmp_path, "c.epochs, c.steps = 0, 6", "c.eval.patience = 1", "c.eval.generate_rows = 0", "c.mesh.fsdp = 4",
    "c.mesh.tensor = 2",
  )  # fmt: skip
  code, out, err = here(train, "--config", config, "--workdir", tmp_path / "run")
  assert code == 0 and "ends at step" not in out, err
  ledger = json.loads((tmp_path / "run" / "data_plan.json").read_text())
  assert ledger["steps_done"] == 6 and "due" not in ledger["languages"]["en"]


def test_patience_without_evaluations_is_refused(tmp_path):
  config = write_config(tmp_path, "c.eval.patience = 2", "c.eval.every_steps = 0")
  code, _, err = here(train, "--config", config, "--workdir", tmp_path / "run")
  assert code == 2 and "eval.patience is 2, but nothing is evaluated on the way" in err
