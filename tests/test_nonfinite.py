"""Runs whose numbers go wrong, from real rows to the files they leave: stopped, skipped, gone on with, told."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from mlit_jax import job, train
from mlit_jax.checksums import read_sealed
from mlit_jax.errors import UserError
from tests import commands, poison

LINES = (
  "c.batch.rows = 8",
  "c.epochs, c.steps = 0, 6",
  "c.eval.sets = {}",
  "c.checkpoint.keep_best = 0",
  "c.checkpoint.keep_latest = 9",
  "c.optimizer.moments = 'bfloat16'",
)
STEPS, ROW = 6, 2
SKIP = "--config.optimizer.nonfinite=skip"


@pytest.fixture
def run(tmp_path, monkeypatch):
  """run(folder, *arguments, bad=(3,), killed=None, signalled=None) -> (exit code, stdout, stderr).

  Steps count from 1. A bad one has a row whose trained tokens weigh infinitely; before `killed` the command fails;
  while `signalled` is at work it is told to stop.
  """
  config, real = commands.write_config(tmp_path, *LINES), job.load_batches

  def run(folder, *args, bad=(), killed=None, signalled=None):
    def load(encoded, plan, first, rows):
      for step, batch in enumerate(real(encoded, plan, first, rows), start=first + 1):
        if step == killed:
          raise UserError("killed")
        if step == signalled:
          os.kill(os.getpid(), signal.SIGTERM)
        yield poison.poisoned(batch, np.inf, ROW) if step in bad else batch

    monkeypatch.setattr(job, "load_batches", load)
    return commands.here(train, "--config", config, "--workdir", tmp_path / folder, *args)

  return run


def lines(path):
  return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def saved(workdir):
  return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def digests(workdir, step=STEPS):
  """Of every array of the state, as it was saved."""
  return read_sealed(workdir / "checkpoints" / str(step) / "meta" / "metadata")["digest"]


def ledger(workdir):
  return json.loads((workdir / "data_plan.json").read_text(encoding="utf-8"))


def test_stop_saves_nothing_of_it_and_skip_goes_on_from_there(run, tmp_path):
  root = tmp_path / "run"
  code, out, err = run("run", bad=(4,))  # step 4 was to be saved
  assert code == 2 and err.count("\n") == 1 and "Traceback" not in err, out + err
  assert saved(root) == [2] and "step 4: the loss is " in err and f"row {ROW} (" in err
  assert "optimizer.nonfinite=skip" in err
  (line,) = lines(root / "nonfinite.jsonl")
  assert (line["step"], line["action"]) == (4, "stopped")
  assert line["loss"] in ("nan", "inf") and line["grad_norm"] in ("nan", "inf")
  first, *others = line["rows"]
  assert first["row"] == ROW and isinstance(first["loss"], str)
  assert len(others) == 7 and all(isinstance(row["loss"], float) for row in others)
  assert set(line["languages"]) == {e["lang"] for e in first["examples"]}
  place, number = first["examples"][0]["place"].rsplit(":", 1)
  assert place.endswith(f"{first['examples'][0]['lang']}.jsonl") and int(number) > 0

  # The same command would stop again; told to skip, it goes on here, and says what was left out.
  code, out, err = run("run", SKIP, bad=(4,))
  assert code == 0, err
  assert "Skipped, 1 of at most 10" in out and "resumed at step 2" in out
  assert [e["action"] for e in lines(root / "nonfinite.jsonl")] == ["stopped", "skipped"]
  events = commands.events(root)
  assert [(e["step"], e["train/skipped"]) for e in events if "train/skipped" in e] == [(4, 1)]
  assert sorted(commands.train_events(root)) == [1, 2, 3, 5, 6]
  assert all(np.isfinite(e["train/loss"]) for e in commands.train_events(root).values())
  found = ledger(root)
  assert found["skipped_steps"] == [4]
  lost = {lang: e["skipped"]["examples"] for lang, e in found["languages"].items()}
  shown = [e["lang"] for row in line["rows"] for e in row["examples"]]
  assert lost == {lang: shown.count(lang) for lang in commands.COUNTS} and sum(lost.values()) > 8
  for e in found["languages"].values():
    for name in ("examples", "tokens", "trained_tokens"):
      assert e["trained"][name] + e["skipped"][name] == e[name]
  card = (root / "README.md").read_text(encoding="utf-8")
  said = f"1 steps (4); examples shown and not learned from: en {lost['en']}"
  assert said in card and said in (root / "report.html").read_text(encoding="utf-8")
  assert "differ" not in (root / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("bad, how", [(STEPS, {}), (3, {"signalled": 3})])
def test_nothing_is_saved_at_the_end_or_on_a_signal_either(run, tmp_path, bad, how):
  code, _, err = run("run", bad=(bad,), **how)
  assert code == 2 and f"step {bad}: the loss is " in err
  assert saved(tmp_path / "run") == [step for step in (2, 4) if step < bad]


@pytest.mark.slow
def test_without_a_bad_step_skip_is_stop_and_resumed_after_one_is_the_run(run, tmp_path):
  """Bit by bit; also the files: what was skipped is counted once."""
  for name, args in (("stop", ()), ("skip", (SKIP,))):
    assert run(name, *args)[0] == 0
  assert digests(tmp_path / "stop") == digests(tmp_path / "skip")
  assert ledger(tmp_path / "stop") == ledger(tmp_path / "skip")
  assert not (tmp_path / "skip" / "nonfinite.jsonl").exists()

  assert run("whole", SKIP, bad=(2, 5))[0] == 0
  assert run("parts", SKIP, bad=(2, 5), killed=4)[0] == 2  # 2 is in the checkpoint
  assert run("parts", SKIP, bad=(2, 5), killed=6)[0] == 2  # 5 was skipped after the last one
  assert saved(tmp_path / "parts") == [2, 4]
  assert run("parts", SKIP, bad=(2, 5))[0] == 0
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  assert digests(whole) == digests(parts) != digests(tmp_path / "stop")
  assert ledger(whole) == ledger(parts) and ledger(whole)["skipped_steps"] == [2, 5]
  assert [(e["step"], e["action"]) for e in lines(parts / "nonfinite.jsonl")] == [
    (2, "skipped"),
    (5, "skipped"),
  ]
  assert commands.train_events(whole) == commands.train_events(parts)
  assert [e["train/skipped"] for e in commands.events(parts) if "train/skipped" in e] == [1, 2]


@pytest.mark.slow
def test_too_many_end_the_run(run, tmp_path):
  args = (SKIP, "--config.optimizer.max_skipped=1")
  code, out, err = run("run", *args, bad=(2, 5, 6))
  assert code == 2 and err.count("\n") == 1, err
  assert "Skipped, 1 of at most 1" in out and "steps 2, 5" in err and "max_skipped is 1" in err
  assert saved(tmp_path / "run") == [2, 4]
  assert run("run", SKIP, "--config.optimizer.max_skipped=3", bad=(2, 5, 6))[0] == 0
  assert ledger(tmp_path / "run")["skipped_steps"] == [2, 5, 6]


SPIKED = 24


def spiked(workdir):
  """The one line of spikes.jsonl, held against the events and the rows of the batch."""
  (line,) = lines(workdir / "spikes.jsonl")
  assert line["step"] == SPIKED and line["loss"]["height"] > 8
  first, second, *_ = line["rows"]
  assert first["row"] == ROW and first["loss"] > 5 * first["usual"] > 5 * 0.5 * second["usual"]
  assert {row["row"] for row in line["rows"]} == set(range(8))
  most = next(iter(line["languages"]))
  assert most in {e["lang"] for e in first["examples"]}
  heights = [figure["height"] for figure in line["languages"].values()]
  assert heights == sorted(heights, reverse=True)
  events = commands.events(workdir)
  assert [e["step"] for e in events if "train/spike" in e] == [SPIKED]
  return first["examples"][0]["place"], most


@pytest.mark.slow
def test_a_spike_is_told_with_its_language_and_row(tmp_path, monkeypatch):
  """One row's tokens weigh forty times as much: nothing else of 26 steps is worth a word."""
  config, root = commands.write_config(tmp_path, *LINES, "c.steps = 26"), tmp_path / "run"
  monkeypatch.setattr(job, "load_batches", poison.poisoning(job.load_batches, {SPIKED: 40.0}, ROW))
  code, out, err = commands.here(train, "--config", config, "--workdir", root)
  assert code == 0, err
  place, most = spiked(root)
  (said,) = [line for line in out.splitlines() if "scatters above" in line]
  assert said.startswith(f"warning: step {SPIKED}: loss ") and f"most unusual is {most}, " in said
  assert f"row {ROW} at " in said and place in said and "spikes.jsonl" in said


@pytest.mark.slow
def test_a_report_without_memory_for_it_ends_no_run(tmp_path, monkeypatch):
  def no_memory(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

  real = job.make_stepping
  made = lambda *a, **k: dataclasses.replace(real(*a, **k), row_losses=no_memory)  # noqa: E731
  monkeypatch.setattr(job, "make_stepping", made)
  config, root = commands.write_config(tmp_path, *LINES), tmp_path / "run"
  monkeypatch.setattr(job, "load_batches", poison.poisoning(job.load_batches, {4: np.inf}, ROW))
  code, out, err = commands.here(train, "--config", config, "--workdir", root, SKIP)
  assert code == 0 and "its rows were not scored: RESOURCE_EXHAUSTED" in out, err
  (line,) = lines(root / "nonfinite.jsonl")
  assert len(line["rows"]) == 8 and all(row["examples"] for row in line["rows"])


@pytest.mark.slow
def test_several_processes_decide_alike(tmp_path):
  """Two with two devices each: a spike, a step that is skipped, every sixth step computed twice."""
  install = f"poison.install(job, {{{SPIKED}: 40.0, 20: float('inf')}}, {ROW})"
  only = "if __import__('os').environ['JAX_PROCESS_ID'] == '0':"  # it has rows 0 to 3
  config = commands.write_config(
    tmp_path, *LINES, "c.steps = 26", "from mlit_jax import job", "from tests import poison",
    f"{only} {install}", "c.debug.recheck_every = 6",
  )  # fmt: skip
  root = tmp_path / "run"
  both = commands.start_several(2, "train", "--config", config, "--workdir", root, SKIP, devices=2)
  for process in both:
    code, _, err = commands.ended(process, timeout=500)
    assert code == 0, err[-3000:]
  spiked(root)
  assert ledger(root)["skipped_steps"] == [20]
  assert [e["rows"][0]["row"] for e in lines(root / "nonfinite.jsonl")] == [ROW]
