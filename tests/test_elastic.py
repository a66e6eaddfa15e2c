"""One run on four processes, then on two, then on one: the same batches row for row, each example once an epoch."""

import collections
import json

import pytest

from mlit_jax.training.checkpoint import resolve_step
from tests import commands

pytestmark = pytest.mark.slow
EPOCHS = (
  16  # 414 steps: a signal takes JAX a second and more to agree on, and the run must not end before
)
COUNTS = {"en": 70, "sw": 35, "zh": 35}
LINES = (
  f"c.epochs = {EPOCHS}",
  "c.data.mixture = {'counts': {'en': 70, '*': 70}}",
  "c.eval.sets = {}",
  "c.eval.every_steps = 0",
  "c.checkpoint.every_steps = 40",
  "c.log.batches = True",
)


def assert_ends(processes, code: int) -> list[tuple[int, str, str]]:
  ends = [commands.ended(p, timeout=300) for p in processes]
  assert [end[0] for end in ends] == [code] * len(processes), ends
  return ends


def stopped_at(processes, workdir, step: int, signalled) -> int:
  """The step that was saved, after SIGTERM to some of the processes once `step` was logged."""
  assert commands.wait_for_step(processes[0], workdir, step)
  for process in signalled:
    process.terminate()
  assert_ends(processes, 75)
  return resolve_step(workdir / "checkpoints", "latest")


def test_four_processes_then_two_then_one_are_the_unbroken_run(tmp_path):
  config = commands.write_config(tmp_path, *LINES)
  unbroken, workdir = tmp_path / "unbroken", tmp_path / "run"
  assert_ends([commands.start("train", "--config", config, "--workdir", unbroken)], 0)
  steps = json.loads((unbroken / "data_plan.json").read_text())["steps"]
  args = ("train", "--config", config, "--workdir", workdir)

  four = commands.start_several(4, *args)
  first = stopped_at(four, workdir, 7, four)
  two = commands.start_several(2, *args)
  second = stopped_at(two, workdir, first + 8, two[1:])
  ((_, out, _),) = assert_ends([commands.start(*args)], 0)
  assert 7 <= first < second < steps and f"resumed at step {second} of {steps}" in out

  given, wanted = commands.batches(workdir), commands.batches(unbroken)
  assert given == wanted  # examples and digest of every row, by step and place in the global batch
  assert set(given) == {(step, row) for step in range(1, steps + 1) for row in range(4)}
  # Each process fed what it should have: a quarter, then a half, then all of the rows.
  by_process = {
    int(path.stem): collections.Counter(json.loads(line)["step"] for line in path.open())
    for path in (workdir / "batches").iterdir()
  }
  assert sorted(by_process) == [0, 1, 2, 3]
  for process, rows in by_process.items():
    shares = [(1, range(1, first + 1)), (2, range(first + 1, second + 1))]
    shares.append((4, range(second + 1, steps + 1)))
    expected = {s: n for n, of in shares for s in of if process < 4 // n}
    assert rows == expected, process

  of_epochs = [collections.Counter() for _ in range(EPOCHS)]
  seen = 0
  for place in sorted(given):  # in the order of the run; no row spans two epochs
    for example in given[place]["examples"]:
      of_epochs[seen // sum(COUNTS.values())][example] += 1
      seen += 1
  assert seen == EPOCHS * sum(COUNTS.values())
  assert all(epoch == of_epochs[0] for epoch in of_epochs)
  assert set(of_epochs[0].values()) == {1}
  languages = collections.Counter(e.split("/")[-1].split(".")[0] for e in of_epochs[0])
  assert languages == COUNTS

  ledger = json.loads((workdir / "data_plan.json").read_text())
  for lang, entry in ledger["languages"].items():
    assert entry["examples"] == EPOCHS * COUNTS[lang]
    assert entry["trained"] == {k: entry[k] for k in ("examples", "tokens", "trained_tokens")}
  assert (workdir / "data_plan.json").read_bytes() == (unbroken / "data_plan.json").read_bytes()

  ours, theirs = commands.train_events(workdir), commands.train_events(unbroken)
  assert list(ours) == list(theirs) == list(range(1, steps + 1))
  for step, event in theirs.items():
    for name, value in event.items():
      exact = name.startswith(("step", "train/share", "train/padding", "train/learning_rate"))
      # Sums of float32 in another order: 6e-7 of a loss and 2e-6 of a gradient norm in the first 52 steps.
      # Differences feed on themselves later: 1.1e-4 of a gradient norm at step 136.
      tolerance = (1e-5 if "loss" in name else 1e-4) * (1 if step <= 52 else 100)
      tolerance = 0 if exact else tolerance
      assert ours[step][name] == pytest.approx(value, rel=tolerance), (step, name)


# --- processes that were handed different data


def begin_apart(tmp_path, change):
  """Two processes with one command, each with a home folder of its own, whose rows `change(path)` makes differ."""
  rows = commands.ROOT / "mlit_jax" / "assets" / "instructions12" / "train"
  for i in range(2):
    folder = tmp_path / f"home{i}"
    folder.mkdir()
    for lang in COUNTS:
      (folder / f"{lang}.jsonl").write_bytes((rows / f"{lang}.jsonl").read_bytes())
  change(tmp_path / "home1" / "sw.jsonl")
  files = {lang: [f"~/{lang}.jsonl"] for lang in COUNTS}
  config = commands.write_config(tmp_path, *LINES, f"c.data.train = {files!r}")
  args = ("train", "--config", config, "--workdir", tmp_path / "run")
  both = commands.start_several(2, *args, of_each=lambda i: {"HOME": str(tmp_path / f"home{i}")})
  ends = assert_ends(both, 2)
  assert not [p for p in (tmp_path / "run").iterdir() if p.name not in (".lock", "cache")]
  errors = [err for *_, err in ends]
  assert all(err.startswith("error: ") and err.count("\n") == 1 for err in errors), errors
  return errors


def test_one_row_that_differs_stops_both_processes(tmp_path):
  def change(path):
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("a", "á", 1), encoding="utf-8")

  for i, error in enumerate(begin_apart(tmp_path, change)):
    assert f"process {i} and processes [{1 - i}] differ in the plan of their data" in error
    assert "same command, checkout and files" in error


def test_a_file_that_one_process_lacks_stops_both_and_both_say_which(tmp_path):
  first, second = begin_apart(tmp_path, lambda path: path.unlink())
  assert "data.train['sw']: '~/sw.jsonl' does not exist" in second
  assert first == f"error: process 1 cannot go on: {second.removeprefix('error: ')}"
