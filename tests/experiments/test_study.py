"""The study in miniature: its rows, its base, its command; two languages, two points, one seed."""

import csv
import subprocess
import sys

import pytest

from configs.study import pinch
from mlit_jax import sweep
from mlit_jax.experiments import designs
from tests import commands

DATA = commands.ROOT.parent / "shared" / "data"

_FILE = """from configs.study import pinch

pinch.PERCENTS, pinch.SIZES = [0, 10], [1]
get_arms = pinch.get_arms


def get_config():
  c = pinch.get_config()
  c.languages, c.held_out = ["en", "fi"], []
  c.rows, c.eval_rows = {rows!r} + "/train/{{lang}}.jsonl", {rows!r} + "/eval/{{lang}}.jsonl"
  c.trained = {trained!r}
  c.budget.total = 40
  c.seeds = [(0, 0)]
  c.run.epochs, c.run.steps = 0, 6
  c.run.eval.generate_rows = 2
  c.run.eval.max_new_tokens = 8
  return c
"""


def test_its_arms():
  """P over six languages, numbers of languages of one order; the ends of the two curves are the same runs."""
  arms = {arm.name: dict(arm.amounts) for arm in pinch.get_arms(pinch.get_config())}
  assert arms["P=0"] == arms["1 language"] == {"en": 1200}
  assert arms["P=1"] == {"en": 1190, "ar": 2, "fi": 2, "it": 2, "ru": 2, "sw": 2}
  assert arms["P=50"] == {"en": 700} | dict.fromkeys(["ar", "fi", "it", "ru", "sw"], 100)
  assert arms["P=100"] == arms["6 languages"] == dict.fromkeys(pinch.SEEN, 200)
  assert arms["4 languages"] == dict.fromkeys(["en", "ar", "fi", "it"], 300)
  assert arms["12 languages"] == dict.fromkeys([*pinch.SEEN, *pinch.UNSEEN], 100)
  designs.check_names(pinch.get_arms(pinch.get_config()))
  assert len(arms) == 11


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="the public data is not here")
def test_the_whole_of_it(tmp_path):
  rows = tmp_path / "rows"
  script = commands.ROOT / "configs" / "study" / "make_rows.py"
  subprocess.run(
    [sys.executable, script, "--data", DATA, "--out", rows], check=True, cwd=commands.ROOT
  )
  config = tmp_path / "mini.py"
  config.write_text(_FILE.format(rows=str(rows), trained=str(tmp_path / "trained")))
  code, out, err = commands.here(sweep, "--config", config, "--workdir", tmp_path / "s")
  assert code == 0, err
  assert "4 runs, 3 of them different" in out
  with open(tmp_path / "s" / "report" / "cells.csv", encoding="utf-8") as file:
    cells = list(csv.DictReader(file))
  measured = {(cell["arm"], cell["lang"]) for cell in cells if cell["metric"] == "bits_per_byte"}
  assert measured == {(a, x) for a in ("P=0", "P=10", "1 language", "2 languages") for x in ("en", "fi")}  # fmt: skip
  # Six steps teach the base something of the answers' form.
  value = {c["lang"]: float(c["value"]) for c in cells if (c["arm"], c["metric"]) == ("P=10", "bits_per_byte")}  # fmt: skip
  assert value["en"] < 2.3
