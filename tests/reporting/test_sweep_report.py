"""`mlit report SWEEP`: the folder it writes, what its page says, and the page in a real browser."""

import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from commands import contents, here

from mlit_jax import report
from tests.experiments.made_sweeps import pinch, write_judging, write_run, write_sweep

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
EVIL = "\"><script>alert('x')</script><img src=https://evil.example/x onerror=alert(1)>&amp;$x^2$"
FEW = ("ar", "en", "cs")
VOID = {"meta", "br"}


class Shown(HTMLParser):
  """The text of a page; refuses what is not closed."""

  def __init__(self, text):
    super().__init__()
    self.open, self.parts, self.tags = [], [], set()
    self.feed(text)
    assert self.open == []
    self.text = re.sub(r"\s+", " ", "".join(self.parts))

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.add(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] != "style":
      self.parts.append(data + ("" if self.open[-1] in ("b", "data") else " "))


def monolingual(root, title="One language each"):
  """A judged transfer matrix of three languages and one more that is missing, with covariates."""
  langs = (*FEW, "fi")
  arms = {f"only {x}": ((x,), {}) for x in langs}
  comparisons = [
    {"run": a, "baseline": b, "languages": [b], "out": f"judged/{a}--{b}"}
    for a in langs[:3] for b in langs if a != b
  ]  # fmt: skip
  covariates = [
    {"name": "near", "kind": "pair", "values": {a: {b: len(a + b) + (a < b) for b in langs if b != a} for a in langs}}
  ]  # fmt: skip
  folder = write_sweep(
    root / "sweep", arms, [(x, f"only {x}", 0, 0) for x in langs], languages=list(langs), matrix=True,
    curves=[], groups={}, comparisons=comparisons, covariates=covariates, title=title, about="",
  )  # fmt: skip
  for x in FEW:
    goodness = {lang: 0.5 + 0.3 * (lang == x) for lang in langs}
    write_run(root / "trained" / x, goodness, languages=langs, prompts=6)
  for c in comparisons[1:]:
    write_judging(folder / c["out"], c["run"], c["languages"], 0.4, prompts=12)
  return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(folder of the curve's report, folder of the matrix's report)"""
  root = tmp_path_factory.mktemp("sweeps")
  curve = pinch(root / "a", percents=(0, 1, 10), replicates=4, languages=FEW)
  matrix = monolingual(root / "b")
  for folder, name in ((curve, "a"), (matrix, "b")):
    code, out, err = here(report, folder, "--out", root / name / "out")
    assert code == 0, err
    assert "runs finished" in out
  return root / "a" / "out", root / "b" / "out"


def page(out) -> Shown:
  return Shown((out / "report.html").read_text(encoding="utf-8"))


def test_the_page_leads_with_the_answer(made):
  text = page(made[0]).text
  claim = "There is an effect. The smallest point not significantly below the best: multilingual part P, % = 1."
  assert text.index("A pinch of multilinguality") < text.index(claim) < text.index("Arms and runs")
  assert "paired t test over 4 draws of examples, p" in text
  assert "Every planned run is finished" in text
  assert re.search(r"At 0 it is \d+\.\d worse than at (1|10) \(p", text)


def test_the_page_fetches_nothing_and_runs_nothing(made):
  for out in made:
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|<script|<link|<img|@import|url\(", text)


def test_what_is_missing_stands_before_the_figures(made):
  text = page(made[1]).text
  gone, unjudged = (
    "run fi (only fi, draw 0, seed 0) is missing",
    "run ar against en in en: not judged yet",
  )
  assert text.index(gone) < text.index("From language to language")
  assert unjudged in text and "Every planned run" not in text
  (row,) = [
    r
    for r in read(made[1] / "matrix.csv")
    if (r["metric"], r["arm"], r["lang"]) == ("win_score", "only cs", "cs")
  ]
  assert (float(row["value"]), row["own"], row["low"]) == (50.0, "True", "")
  assert "50 by definition, not measured" in text


def read(path) -> list[dict]:
  return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_every_figure_is_in_the_tables_unrounded(made):
  out = made[0]
  rows = {(r["run"], r["lang"], r["metric"]): r for r in read(out / "cells.csv")}
  whole = json.loads((out / "../trained/p1r0/evals/20/heldout.json").read_text())
  figure = whole["cs"]["loss"]
  row = rows["p1r0", "cs", "loss"]
  assert [float(row[k]) for k in ("value", "n", "low", "high")] == [
    figure[k] for k in ("value", "n", "low", "high")
  ]
  assert (row["arm"], row["group"], row["tuned"]) == ("P=1", "unseen", "False")
  found = json.loads((out / "figures.json").read_text())
  (line,) = [
    x for x in found["curves"]["percent"]["lines"] if (x["metric"], x["group"]) == ("chrf", "macro")
  ]
  assert line["verdict"]["smallest"] == 1 and line["verdict"]["moves"]["units"] == 4
  points = [r for r in read(out / "curves.csv") if (r["metric"], r["group"]) == ("chrf", "macro")]
  assert [float(r["value"]) for r in points] == [p["figure"]["value"] for p in line["points"]]
  assert len(found["cells"]) == len(rows) and found["faults"] == []
  judged = json.loads((made[1] / "figures.json").read_text())
  assert {g["metric"] for g in judged["gate"]} == {"win_score", "chrf", "exact"}
  assert judged["correlations"] and judged["matrix"]["win_score"]["only ar"]["tuned"] == ["ar"]


def test_plots_are_pictures(made):
  names = {p.name for p in (made[0] / "plots").iterdir()}
  assert {"percent_chrf.png", "percent_chrf.svg", "percent_loss.svg"} <= names
  assert (made[1] / "plots" / "matrix_win_score.png").read_bytes().startswith(b"\x89PNG")
  ElementTree.parse(made[0] / "plots" / "percent_chrf.svg")


def test_charts_in_the_page_are_whole(made):
  text = (made[0] / "report.html").read_text(encoding="utf-8")
  drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
  assert len(drawn) >= 5
  for chart in drawn:
    root = ElementTree.fromstring(chart)
    width, height = (float(x) for x in root.get("viewBox").split()[2:])
    for mark in root.iter("circle"):
      assert 0 <= float(mark.get("cx")) <= width and 0 <= float(mark.get("cy")) <= height
  # three points of five groups, four replicates behind each: dots and the mean
  assert len(list(ElementTree.fromstring(drawn[0]).iter("circle"))) == 3 * 5 * (4 + 1)


@pytest.mark.slow
def test_the_same_files_give_the_same_bytes(made, tmp_path):
  for out in made:
    code, _, err = here(report, out.parent / "sweep", "--out", tmp_path / out.parent.name)
    assert code == 0, err
    assert contents(tmp_path / out.parent.name) == contents(out)


def test_strings_of_data_are_shown_and_not_run(tmp_path):
  arms = {f"{EVIL}{x}": (("en", "ar"), {"percent": f"{EVIL}{x}", EVIL: EVIL}) for x in (0, 1)}
  runs = [(f"r{x}{k}", f"{EVIL}{x}", k, k) for x in (0, 1) for k in range(3)]
  folder = write_sweep(
    tmp_path / "sweep", arms, runs, languages=list(FEW), title=EVIL, about=EVIL, matrix=True,
    groups={"seen": ["ar"], "unseen": ["cs"]}, curves=[{"key": "percent", "label": EVIL}],
    covariates=[{"name": EVIL, "kind": "language", "values": {"ar": 1}}],
  )  # fmt: skip
  for run, *_ in runs[:-1]:
    write_run(
      tmp_path / "trained" / run, dict.fromkeys(FEW, 0.5), languages=FEW, prompts=4, response=EVIL
    )
  code, _, err = here(report, folder, "--out", tmp_path / "out")
  assert code == 0, err
  text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
  assert "<script" not in text and "<img" not in text
  shown = Shown(text)
  assert {"script", "img"} & shown.tags == set() and "<script>alert('x')</script>" in shown.text
  for path in (tmp_path / "out" / "plots").glob("*.svg"):
    assert "<script" not in path.read_text(encoding="utf-8")


def test_a_sweep_of_which_nothing_ran_has_a_page(tmp_path):
  folder = write_sweep(
    tmp_path / "sweep", {"P=0": (("en",), {"percent": 0})}, [("a", "P=0", 0, 0)], matrix=True
  )
  code, out, err = here(report, folder, "--out", tmp_path / "out")
  assert code == 0, err
  assert "0 of 1 runs finished" in out
  text = page(tmp_path / "out").text
  assert (
    "run a (P=0, draw 0, seed 0) is missing" in text and "No finished run has a point here" in text
  )


def test_a_sweep_is_reported_alone(made, tmp_path):
  code, _, err = here(
    report, made[0].parent / "sweep", made[1].parent / "sweep", "--out", tmp_path / "o"
  )
  assert code == 2 and "is a sweep" in err and not (tmp_path / "o").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1200, 420])
def test_a_browser_shows_it_without_a_word_on_the_console(made, width):
  done = subprocess.run(
    [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--enable-logging=stderr",
     "--v=0", "--virtual-time-budget=4000", "--dump-dom", f"file://{made[0] / 'report.html'}"],
    capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  assert "There is an effect" in done.stdout
  assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
