"""`mlit report`: the folder it writes, its numbers, what it refuses, and the page in a real browser."""

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import here
from test_report import EVIL, Page, answers, make_workdir

from mlit_jax import report
from mlit_jax.reporting.plots import curves, heat_map, rendered
from mlit_jax.reporting.runs import cells, config_differences, last_cells, read_runs
from mlit_jax.reporting.tables import grid

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def mark(root: Path, **wrong: str):
  """Say in generations.jsonl which answers are in another language."""
  for path in root.glob("evals/*/generations.jsonl"):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
      right = row["id"] not in wrong.get(row["lang"], "")
      row |= {
        "set": "heldout",
        "fidelity": {"right": right, **({} if right else {"why": "too short"})},
      }
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("report")
  one = make_workdir(root / "a" / "english")
  two = make_workdir(root / "b" / "pinch", response="למה {} ב {}؟")
  for run, wrong in ((one, {"fi": "q1", "he": "q0 q1 q2"}), (two, {})):
    mark(run, **wrong)
  config = json.loads((two / "config.json").read_text())
  config["config"]["model"]["path"] = "other/base"
  (two / "config.json").write_text(json.dumps(config))
  code, out, err = here(report, one, two, "--out", root / "out")
  assert code == 0, err
  assert out.startswith("2 runs, ")
  return root / "out", one, two


def test_every_figure_is_in_the_tables_unrounded(folder):
  out, one, two = folder
  rows = list(csv.DictReader(io.StringIO((out / "figures.csv").read_text(encoding="utf-8"))))
  # 2 runs, 3 steps, 3 languages with mean and worst, 4 metrics
  assert len(rows) == 2 * 3 * 5 * 4
  (row,) = [
    r for r in rows
    if (r["run"], r["step"], r["lang"], r["metric"]) == ("pinch", "20", "fi", "bits_per_byte")
  ]  # fmt: skip
  figure = json.loads((two / "evals" / "20" / "heldout.json").read_text())["fi"]["bits_per_byte"]
  assert [float(row[k]) for k in ("value", "n", "low", "high")] == [
    figure[k] for k in ("value", "n", "low", "high")
  ]
  whole = json.loads((out / "figures.json").read_text())
  assert whole["english"]["0"]["heldout"] == json.loads((one / "evals/0/heldout.json").read_text())
  assert {r["of"] for r in rows if r["lang"] == "worst"} == {"he"}


def test_the_ledger_has_a_row_for_each_source(folder):
  out, _, _ = folder
  lines = (out / "ledger.csv").read_text().splitlines()
  assert lines[0].startswith("run,lang,source,rows_read,examples")


def test_the_page_shows_both_runs_and_where_they_differ(folder):
  out, _, _ = folder
  text = (out / "report.html").read_text(encoding="utf-8")
  page = Page(
    re.sub(
      r"<input[^>]*>", "", text.partition("<script>")[0].replace("</body>", "") + "</body></html>"
    )
  )
  for said in (
    "english",
    "pinch",
    "other/base",
    "heldout: languages",
    "Ledger: english",
    "Answers",
  ):
    assert said in page.text
  shares = [float(s) for s in re.findall(r"--share:([\d.]+)", text)]
  assert min(shares) == 0.0 and max(shares) == 1.0
  assert (
    "not in this language" in text and text.count('class="answer wrong-language"') == (1 + 3) * 2
  )


def test_plots_are_pictures_and_the_same_each_time(folder):
  out, one, two = folder
  names = {p.name for p in (out / "plots").iterdir()}
  assert {"heldout_fidelity.png", "heldout_fidelity.svg", "heldout_fidelity_steps.svg"} <= names
  assert (out / "plots" / "heldout_loss.png").read_bytes().startswith(b"\x89PNG")
  every = list(cells(read_runs([str(one), str(two)])))
  last = last_cells(read_runs([str(one), str(two)]))
  drawn = [rendered(heat_map(last, "t", "loss"), "svg") for _ in range(2)]
  assert drawn[0] == drawn[1]
  assert curves([c for c in every if c.step == 0], "t", "loss") is None


def test_a_grid_has_runs_or_steps_by_languages(folder):
  _, one, two = folder
  both = read_runs([str(one), str(two)])
  rows, languages, found = grid(last_cells(both), "loss")
  assert rows == ["english", "pinch"] and languages == ["en", "fi", "he", "mean", "worst"]
  assert found["pinch", "fi"].step == 20
  rows, _, _ = grid(list(cells(both[:1])), "loss")
  assert rows == ["step 0", "step 10", "step 20"]
  assert config_differences(both) == {"model.path": ["", "other/base"]}


def test_strings_of_data_and_models_are_shown_and_not_run(tmp_path):
  evil = EVIL.replace("/", "\u2215")
  root = make_workdir(
    tmp_path / evil, languages=("en", EVIL, "he"), name=evil, path=EVIL, prompt=EVIL, response=EVIL
  )
  code, _, err = here(report, root, "--out", tmp_path / "out", "--no-plots")
  assert code == 0, err
  text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
  assert text.count("<script>") == 1 and "<img" not in text and "onerror=alert(1)>" not in text
  assert re.search(r"script-src 'sha256-[\w+/=]{44}'", text)


def test_names_tell_runs_apart(tmp_path):
  for name in ("a/x", "b/x"):
    make_workdir(tmp_path / name)
  assert [r.name for r in read_runs([str(tmp_path / "a/x"), str(tmp_path / "b/x")])] == [
    "a/x",
    "b/x",
  ]


@pytest.mark.parametrize(
  "make, says",
  [
    (lambda p: ["nowhere"], "nowhere: no such workdir"),
    (lambda p: [str(p)], "holds nothing of a run"),
    (lambda p: [str(make_workdir(p / "x"))] * 2, "is named twice"),
  ],
)
def test_what_is_no_run_is_refused(tmp_path, make, says):
  code, _, err = here(report, *make(tmp_path), "--out", tmp_path / "out")
  assert code == 2 and says in err and not (tmp_path / "out").exists()


# --- in a browser


def dom(page: Path, fragment: str = "", width: int = 1200) -> tuple[str, str]:
  """(the page after its script ran, what the console said)"""
  done = subprocess.run(
    [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--enable-logging=stderr",
     "--v=0", "--virtual-time-budget=4000", "--dump-dom", f"file://{page}{fragment}"],
    capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def shown(text: str) -> list[str]:
  """The languages of the samples that are not hidden."""
  found = re.findall(r'<div class="sample" data-set="[^"]*" data-lang="(\w+)"([^>]*)>', text)
  return [lang for lang, rest in found if "hidden" not in rest]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize(
  "fragment, wanted, says",
  [
    ("", ["en"] * 3 + ["fi"] * 3 + ["he"] * 3, "9 of 9 prompts"),
    ("#lang=he", ["he"] * 3, "3 of 9 prompts"),
    ("#wrong=on", ["fi"] + ["he"] * 3, "4 of 9 prompts"),
    ("#lang=fi&wrong=on", ["fi"], "1 of 9 prompts"),
    ("#text=WHY%20fi", ["fi"] * 3, "3 of 9 prompts"),
  ],
)
def test_filters_work_in_a_browser_without_a_word_on_the_console(
  folder, tmp_path, fragment, wanted, says
):
  text, console = dom(folder[0] / "report.html", fragment)
  assert console == ""
  assert shown(text) == wanted and says in text
  assert 'id="answer-controls"' in text and 'id="answer-controls" hidden' not in text


def test_every_answer_of_the_runs_is_there_without_a_script(folder):
  text = (folder[0] / "report.html").read_text(encoding="utf-8")
  assert text.count('class="answer') - text.count('class="answers"') == 2 * 2 * 9
  assert all(a["prompt"] in text for a in answers(0))
