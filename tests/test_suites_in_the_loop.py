"""Suites while a run trains, and on a finished one: files, events, the best checkpoint by a suite's metric."""

import json

import pytest
from commands import events, here, write_config

from mlit_jax import evaluate, train

SUITE = '''"""Does the answer say anything? And which end is likelier?"""

from mlit_jax.evals.suites.suite import Item, Suite, ask

ASKED = {"en": ("Hello?", ("yes", "no")), "sw": ("Habari?", ("ndiyo", "hapana"))}


def get_suite():
  items = [Item("open", lang, ask(q)) for lang, (q, _) in ASKED.items()]
  items += [Item("choice", lang, ask(q), c, 1, "c") for lang, (q, c) in ASKED.items()]
  return Suite("ends", items, lambda item, r: {"says": bool(r.strip())}, ("stopped",), max_new_tokens=3)
'''


@pytest.fixture
def config(tmp_path):
  (tmp_path / "ends.py").write_text(SUITE)
  return write_config(
    tmp_path, f"c.eval.suites = ['{tmp_path}/ends.py']", "c.mesh.fsdp = 4", "c.mesh.tensor = 2",
    "c.checkpoint.best = 'ends/mean/accuracy'",
  )  # fmt: skip


def test_suites_are_run_at_every_evaluation(config, tmp_path):
  root = tmp_path / "run"
  code, out, err = here(train, "--config", config, "--workdir", root)
  assert code == 0, err
  measured = [e for e in events(root) if "eval/ends/mean/accuracy" in e]
  assert [e["step"] for e in measured] == [0, 2, 4] or len(measured) >= 2
  wanted = {"accuracy", "accuracy_per_byte", "says", "stopped"}
  for e in measured:
    assert {k.rpartition("/")[2] for k in e if k.startswith("eval/ends/sw/")} == wanted
  last = json.loads((root / "evals" / str(measured[-1]["step"]) / "ends.json").read_text())
  assert last["en"]["accuracy"]["n"] == 1 and last["mean"]["says"]["n"] == 2
  assert "ends  " in out and "accuracy" in out

  code, out, err = here(
    evaluate, "--model", f"{root}@best", "--suite", tmp_path / "ends.py", "--out", tmp_path / "out", "--languages", "sw"
  )  # fmt: skip
  assert code == 0, err
  figures = json.loads((tmp_path / "out" / "summary.json").read_text())["ends"]
  assert set(figures) == {"sw", "mean", "worst"} and set(figures["sw"]) == wanted


@pytest.mark.parametrize(
  "line, says",
  [
    ("c.checkpoint.best = 'ends/mean/acuracy'", "'ends/mean/accuracy'"),
    ("c.eval.suites = ['nowhere.py']", "nowhere.py: no such file"),
    ("c.eval.suites = c.eval.suites * 2", "two evaluation sets or suites are named ends"),
  ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(config, tmp_path, line, says):
  config.write_text(config.read_text().replace("  return c\n", f"  {line}\n  return c\n"))
  code, _, err = here(train, "--config", config, "--workdir", tmp_path / "run")
  assert code == 2 and says in err, err
  assert not (tmp_path / "run" / "config.json").exists()
