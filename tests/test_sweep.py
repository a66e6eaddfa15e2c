"""The command: a whole sweep of the smallest size, killed, failing, and looked at before."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from mlit_jax import sweep
from tests import commands
from tests.experiments import small


def report_of(workdir) -> dict[str, bytes]:
  return commands.contents(workdir / "report")


def test_a_dry_run_writes_nothing(tmp_path):
  """Exact trained tokens of each run, what is shared, the judge's calls and their price."""
  config = small.write_sweep(
    tmp_path,
    "c.judge = 'https://example.org/v1#m'",
    "c.judge_options = {'price_in': 1.0, 'price_out': 2.0, 'max_new_tokens': 100}",
    "c.generate_options = {'max_new_tokens': 50}",
  )
  code, out, err = commands.here(
    sweep, "--config", config, "--workdir", tmp_path / "s", "--dry-run", "--tokens_per_second", 1000
  )
  assert code == 0, err
  assert not (tmp_path / "s").exists() and not (tmp_path / "trained").exists()
  flat = " ".join(out.split())
  # English alone is P = 0 and one language; the judge adds fi, sw and zh alone.
  assert "7 runs, 6 of them different, 0 trained already" in flat
  # P=0 in fi sw zh; P=10 in en fi sw zh; 1 language is P=0; 3 languages in en fi sw zh: 11 of 20 prompts, twice.
  assert "440 calls" in flat and "44,000 to write" in flat
  assert "at 1,000 tokens/s (as given)" in flat


def test_a_sweep_that_cannot_be_read(tmp_path):
  code, _, err = commands.here(sweep, "--workdir", tmp_path)
  assert code == 2 and "--config is missing" in err
  config = small.write_sweep(tmp_path)
  for words, said in [
    (["--config.laguages=['en']"], "did you mean 'languages'"),
    (["--config.run.optimizer.learning_rat=1"], "did you mean 'run.optimizer.learning_rate'"),
    (["--jobs", "0"], "--jobs is 0"),
    (["--jobs", "2", "--devices", "0"], "--devices names those of 1 jobs"),
    # What its runs would refuse, before a row is tokenised.
    (["--config.run.optimizer.name=sgd"], "`run.`): optimizer.name is 'sgd'"),
    (["--config.run.optimizer.warmup_steps=4"], "leaves nothing of the run's 4 steps"),
    (["--config.run.checkpoint.best=heldout/en/los"], "'heldout/en/loss'"),
    (["--config.run.model.sizes={'d_modle': 32}"], "d_modle"),
    (["--config.run.mesh.tensor=0"], "'tensor': 0"),
    (["--config.budget.total=500"], ""),  # more rows than there are: train says so
  ]:
    code, _, err = commands.here(
      sweep, "--config", config, "--workdir", tmp_path / "s", "--dry-run", *words
    )
    assert code == 2 and said in err, err
  config = small.write_sweep(tmp_path, arms="[]")
  code, _, err = commands.here(sweep, "--config", config, "--workdir", tmp_path / "s")
  assert code == 2 and "must return a list of Arm" in err


@pytest.mark.slow
def test_a_failing_run_is_named_and_the_others_go_on(tmp_path):
  """`other` asks for rows that do not exist."""
  arms = "[designs.Arm('other', {'fi': 500}), designs.Arm('en', {'en': 60})]"
  config = small.write_sweep(tmp_path, "c.curves = []", arms=arms)
  code, out, err = commands.here(sweep, "--config", config, "--workdir", tmp_path / "s")
  assert code == 1, err
  assert "2 tasks done" in out and "1 failed" in out  # English and the report
  (name,) = [line for line in (out + err).splitlines() if line.startswith("warning: ")]
  log = name.split("see ")[1]
  log, _, quoted = log.partition(": ")
  assert "500" in quoted and "500" in Path(log).read_text(encoding="utf-8")
  assert "other" in (tmp_path / "s" / "report" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_killed_twice_it_ends_with_the_same_report(tmp_path):
  """kill -9, then SIGTERM; the third command ends as one that was never stopped, byte for byte."""
  folders = [tmp_path / "whole", tmp_path / "killed"]
  for folder in folders:
    folder.mkdir()
    small.write_sweep(folder, "r.steps = 12", "c.seeds = [0, 1]")
  args = [["--config", f / "small.py", "--workdir", f / "s", "--jobs", 2] for f in folders]
  code, out, err = commands.ended(commands.start("sweep", *args[0]))
  assert code == 0, err
  assert "8 runs, 6 of them different" in out
  assert len(list((folders[0] / "trained").glob("[0-9a-f]*[0-9a-f]/checkpoints"))) == 6

  process = commands.start("sweep", *args[1])
  begun = wait_for_steps(process, folders[1] / "trained", runs=2)
  process.kill()
  process.wait()
  deadline = time.monotonic() + 30  # its runs go with it: nothing holds a workdir
  process = commands.start("sweep", *args[1])
  begun = wait_for_steps(process, folders[1] / "trained", runs=begun + 2)
  assert time.monotonic() < deadline + 120
  process.send_signal(signal.SIGTERM)
  code, out, err = commands.ended(process)
  assert code == 75, err
  code, out, err = commands.ended(commands.start("sweep", *args[1]))
  assert code == 0, err
  whole, killed = map(report_of, (f / "s" for f in folders))
  assert whole.keys() == killed.keys()
  for name in whole:
    assert whole[name] == killed[name], name

  before = report_of(folders[1] / "s")
  code, out, err = commands.here(sweep, *args[1])  # nothing is left to do but the report
  assert code == 0 and "1 tasks done, 6 were done before" in out
  assert report_of(folders[1] / "s") == before


def wait_for_steps(process, trained, runs: int) -> int:
  """Until so many runs have logged a step; how many have."""
  deadline = time.monotonic() + 240
  while process.poll() is None and time.monotonic() < deadline:
    begun = sum(bool(commands.train_events(f)) for f in trained.glob("*") if f.is_dir())
    if begun >= runs:
      return begun
    time.sleep(0.05)
  raise AssertionError(f"{runs} runs did not begin; exit code {process.poll()}")


@pytest.mark.slow
def test_answers_are_judged_against_each_languages_own_model(tmp_path):
  """Answers are written for each run, compared with each language's own model, and the IF score is reported."""
  config = small.write_sweep(
    tmp_path,
    "c.curves = []",
    "c.matrix = True",
    f"c.judge = 'model:{roomy_judge(tmp_path)}'",
    "c.judge_options = {'max_new_tokens': 4, 'rubric_language': 'en', 'template': " + repr(str(template(tmp_path))) + "}",
    "c.generate_options = {'max_new_tokens': 8}",
    "c.languages = ['en', 'fi']",
    "c.held_out = []",
    arms="designs.monolingual(c.languages, c.budget.total)",
  )  # fmt: skip
  code, out, err = commands.here(sweep, "--config", config, "--workdir", tmp_path / "s")
  assert code == 0, err + out
  swept = json.loads((tmp_path / "s" / "sweep.json").read_text())
  assert len(swept["comparisons"]) == 2
  for pair in swept["comparisons"]:
    found = json.loads((tmp_path / "s" / pair["out"] / "summary.json").read_text())
    assert list(found["judging"]) == [*pair["languages"], "mean", "worst"]


def roomy_judge(folder):
  """The bundled base, said to read more than it was trained on: scraps of random models are long in tokens."""
  shutil.copytree(small.ASSETS / "tiny12", folder / "judge")
  path = folder / "judge" / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 4096}))
  return folder / "judge"


def template(folder):
  """A question short enough for the small model's positions."""
  path = folder / "template.txt"
  path.write_text("{question}\n{answer_a}\n{answer_b}\n[[A]] [[B]] [[C]]")
  return path
