"""The page of a run: shows the numbers that lie in the workdir, runs and loads nothing, bears what is missing."""

import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from mlit_jax import charts
from mlit_jax.training.report import write_chart, write_report

EVIL = "\"><script>alert('x')</script><img src=https://evil.example/x onerror=alert(1)>&amp;"
VOID = {"meta", "br"}
TAGS = {
  *(
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "h1",
    "h2",
    "h3",
    "h4",
    "p",
    "b",
    "code",
    "div",
    "span",
    "figure",
  ),
  *("table", "thead", "tbody", "tr", "th", "td", "small", "data", "br", "dl", "dt", "dd"),
  *("svg", "g", "path", "circle", "text"),
}


def figure(value, n=20, low=None, high=None, **more):
  return {"value": value, "n": n, "low": low, "high": high, **more}


def evaluation(shift: float, languages=("en", "fi", "he")):
  """{lang: {metric: figure}} with different numbers everywhere."""
  out = {}
  for i, lang in enumerate(languages):
    bits, share = 3.125 + i - shift, 0.25 + 0.125 * i + shift / 4
    out[lang] = {
      "loss": figure(2 * bits, 21 + i, 2 * bits - 0.1, 2 * bits + 0.2),
      "bits_per_byte": figure(bits, 21 + i, bits - 0.0625, bits + 0.125),
      "fidelity": figure(share, 5, share - 0.1, share + 0.2),
      "chrf": figure(10.25 + i + shift, 5, 9.0, 12.0 + i),
    }
  first, last = languages[0], languages[-1]
  for name, lang in (("mean", first), ("worst", last)):
    out[name] = {metric: dict(f) for metric, f in out[lang].items()}
  for f in out["worst"].values():
    f["lang"] = last
  return out


def ledger(languages=("en", "fi", "he"), trained=True):
  entries = {}
  for i, lang in enumerate(languages):
    per_epoch = 120 if i == 0 else 4 if i == 1 else 0
    entry = {
      "rows_read": 1201 + i,
      "dropped": {"too long": 7} if i == 1 else {},
      "per_epoch": per_epoch,
      "flagged": {"wrong script": 3} if i == 1 else {},
      "chosen": per_epoch,
      "examples": 3 * per_epoch,
      "repeats": 2 * per_epoch,
      "tokens": 3111 * per_epoch,
      "trained_tokens": 1011 * per_epoch,
      "share_of_trained_tokens": per_epoch / 124,
      "truncated": i,
      "bytes_per_token": 3.25 if per_epoch else None,
    }
    if trained:
      entry["trained"] = {k: entry[k] for k in ("examples", "tokens", "trained_tokens")}
    entries[lang] = entry
  return {
    "hash": "ad8dc882d9d017223eedc1262ab26678",
    "seed": 3,
    "mixture": {"counts": {"en": 120, "fi": 4}},
    "steps": 20,
    "epochs": 3,
    "rows_per_step": 8,
    "max_length": 320,
    "padding": 0.0625,
    "languages": entries,
  }


def answers(step, languages=("en", "fi", "he"), prompt="Why {}?", response="Because {} of {}."):
  return [
    {
      "id": f"q{k}",
      "lang": lang,
      "prompt": prompt.format(lang, k),
      "response": response.format(lang, step),
      "stopped": k == 0,
      "tokens": 3 + k,
      "model": "run@0",
    }
    for lang in languages
    for k in range(3)
  ]


def make_workdir(
  root, *, languages=("en", "fi", "he"), name="heldout", trained=True, path="", **text
):
  root.mkdir(parents=True)
  write(
    root / "config.json",
    {"config": {"model": {"path": path, "sizes": {"d_model": 192}}}, "versions": {"jax": "0.10.2"}},
  )
  write(root / "data_plan.json", ledger(languages, trained))
  events = []
  for step, shift in ((0, 0.0), (10, 0.5), (20, 1.0)):
    figures = evaluation(shift, languages)
    (root / "evals" / str(step)).mkdir(parents=True)
    write(root / "evals" / str(step) / f"{name}.json", figures)
    lines = [json.dumps(a) for a in answers(step, languages, **text)]
    (root / "evals" / str(step) / "generations.jsonl").write_text(
      "\n".join(lines) + "\n", encoding="utf-8"
    )
    flat = {
      f"eval/{name}/{lang}/{m}": f["value"] for lang, by in figures.items() for m, f in by.items()
    }
    events += [
      {
        "step": step,
        "time": 1.8e9 + step,
        "train/loss": 4 - shift,
        f"train/loss/{languages[0]}": 3 - shift,
      }
    ]
    events += [{"step": step, "time": 1.8e9 + step, **flat}]
  (root / "metrics.jsonl").write_text(
    "".join(json.dumps(e) + "\n" for e in events), encoding="utf-8"
  )
  return root


def write(path, value):
  path.write_text(json.dumps(value), encoding="utf-8")


class Page(HTMLParser):
  """Tags, attributes and text of a page; text of <data> beside its value."""

  def __init__(self, text: str):
    super().__init__()
    self.tags, self.attributes, self.text, self.data, self.open = set(), [], "", [], []
    self.feed(text)
    assert not self.open, f"not closed: {self.open}"

  def handle_starttag(self, tag, attributes):
    self.tags.add(tag)
    self.attributes += attributes
    if tag not in VOID:
      self.open.append(tag)
    if tag == "data":
      self.data.append([dict(attributes)["value"], ""])

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, text):
    self.text += text
    if self.open[-1:] == ["data"]:
      self.data[-1][1] += text


def read(root) -> Page:
  path = write_report(root)
  assert path == root / "report.html"
  return Page(path.read_text(encoding="utf-8"))


def test_strings_of_data_and_models_are_shown_and_not_run(tmp_path):
  evil = EVIL.replace("/", "\u2215")  # a file name cannot hold a slash
  root = make_workdir(
    tmp_path / evil, languages=("en", EVIL, "he"), name=evil, path=EVIL, prompt=EVIL, response=EVIL
  )
  page = read(root)
  assert page.tags <= TAGS
  assert not [
    key
    for key, _ in page.attributes
    if key.startswith("on") or key in ("href", "src", "srcdoc", "xlink:href")
  ]
  assert (
    page.text.count(EVIL) >= 2 * 3 * 2 + 3
  )  # two prompts, four answers of each language; language, model
  assert page.text.count(evil) >= 3  # title, heading, set
  chart = write_chart(root, tmp_path / "chart.svg").read_text(encoding="utf-8")
  tags = {element.tag.split("}")[1] for element in ElementTree.fromstring(chart).iter()}
  assert tags <= {"svg", "style", "rect", "g", "title", "text", "path", "circle"}


def test_the_page_needs_nothing_but_itself(tmp_path):
  root = make_workdir(tmp_path / "run")
  text = write_report(root).read_text(encoding="utf-8")
  assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link|<iframe|javascript:", text)
  policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
  assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
  assert text.index("Content-Security-Policy") < text.index("<style")
  chart = write_chart(root, tmp_path / "chart.svg").read_text(encoding="utf-8")
  assert re.findall(r"https?://[^\"]*", chart) == ["http://www.w3.org/2000/svg"]


def test_every_figure_of_the_last_evaluation_is_shown(tmp_path):
  root = make_workdir(tmp_path / "run")
  page = read(root)
  figures = json.loads((root / "evals/20/heldout.json").read_text())
  form = {"loss": "{:.3f}", "bits_per_byte": "{:.3f}", "fidelity": "{:.0%}", "chrf": "{:.1f}"}
  rows = [figures[lang] for lang in ("en", "fi", "he", "mean", "worst")]
  wanted = [[repr(row[m]["value"]), form[m].format(row[m]["value"])] for row in rows for m in form]
  assert page.data == wanted
  assert "3.062 – 3.250, n 22" in page.text  # bits per byte of fi, 3.125
  assert "worsthe 8.250" in page.text.replace("\n", "")


def test_the_chart_shows_before_and_after(tmp_path):
  root = make_workdir(tmp_path / "run")
  tree = ElementTree.fromstring(write_chart(root, tmp_path / "c.svg").read_text(encoding="utf-8"))
  titles = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}title")]
  assert titles[:5] == [
    "en English: 25% → 50%",
    "fi Finnish: 38% → 62%",
    "he Hebrew: 50% → 75%",
    "mean: 25% → 50%",
    "worst: 50% → 75%",
  ] or (
    titles[:5]
    == ["en: 25% → 50%", "fi: 38% → 62%", "he: 50% → 75%", "mean: 25% → 50%", "worst: 50% → 75%"]
  )  # without the package language_data there are no names
  assert titles[5].endswith("3.125 → 2.125")
  dots = [
    (e.get("class"), float(e.get("cx")))
    for e in tree.iter("{http://www.w3.org/2000/svg}circle")
    if e.get("r") == "4"
  ]
  (old, x_old), (new, x_new) = dots[3:5]  # after the three of the key: fidelity of en, 25% → 50%
  assert (old, new) == ("old", "new") and x_new - x_old == pytest.approx(
    (charts.WIDTH - 92 - 180) / 4, abs=0.11
  )
  texts = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
  assert {"120", "4", "0", "before (step 0)", "step 20", "per epoch"} <= set(texts)


def test_dots_and_intervals_lie_where_the_axis_says():
  row = charts.Row("en", "4", "", figure(0.25, 5, 0.0, 0.5), figure(1.0, 5, 0.75, 1.0))
  body = charts.dumbbells("t", "n", [row], "{:.0%}".format, ends=(0, 1)).body
  ticks = {float(v): float(x) for x, v in re.findall(r'x="([\d.]+)" y="36">(\d+)%<', body)}
  at = lambda share: ticks[0] + (ticks[100] - ticks[0]) * share  # noqa: E731
  old, new = re.findall(r'<circle class="(\w+)" cx="([\d.]+)"', body)
  assert old == ("old", f"{at(0.25):g}") and new == ("new", f"{at(1):g}")
  bars = re.findall(r'<path class="(?:old|new)" d="M([\d.]+) [\d.]+H([\d.]+)"', body)
  assert [[float(a), float(b)] for a, b in bars] == [[at(0), at(0.5)], [at(0.75), at(1)]]


def test_what_got_worse_is_marked(tmp_path):
  root = make_workdir(tmp_path / "run")
  old, new = root / "evals/0/heldout.json", root / "evals/20/heldout.json"
  assert "new worse" not in re.sub("key new worse", "", charts_of(root))
  a, b = old.read_text(), new.read_text()
  old.write_text(b)
  new.write_text(a)
  assert charts_of(root).count('circle class="new worse"') == 2 * 5


def charts_of(root):
  return "".join(re.findall(r"<svg.*?</svg>", write_report(root).read_text(encoding="utf-8")))


@pytest.mark.parametrize("lacks", ["trained_tokens", "per_epoch", "dropped"])
def test_a_ledger_of_an_earlier_version_is_said_and_the_rest_shown(tmp_path, lacks):
  root, found = make_workdir(tmp_path / "run"), ledger()
  del found["languages"]["fi"][lacks]
  write(root / "data_plan.json", found | {"steps_done": 20})
  text = write_report(root).read_text(encoding="utf-8")
  assert "data_plan.json lacks counts of a language" in text
  assert found["hash"] in text and "Not finished" not in text
  write(root / "data_plan.json", found)
  assert "Not finished" in write_report(root).read_text(encoding="utf-8")


def test_the_ledger_is_shown_planned_beside_trained(tmp_path):
  root = make_workdir(tmp_path / "run")
  text = write_report(root).read_text(encoding="utf-8")
  row = re.search(r'<tr><td class="lang">fi.*?</tr>', text)[0]
  cells = re.findall(r">([^<>]*)</td>", row)[1:]
  assert cells == [
    "1,202",
    "too long 7",
    "wrong script 3",
    "4",
    "12",
    "12",
    "12,444",
    "12,444",
    "4,044",
    "4,044",
    "3.23%",
    "8",
    "1",
    "3.25",
  ]
  assert "agree in every language" in text and "Not finished" not in text
  plan = json.loads((root / "data_plan.json").read_text())
  plan["languages"]["fi"]["trained"]["tokens"] -= 1
  write(root / "data_plan.json", plan)
  text = write_report(root).read_text(encoding="utf-8")
  assert '<td class="wrong">12,443</td>' in text and "differ: fi." in text
  assert "judged on a sample" not in text
  plan["language_judged_every"] = 8
  for entry in plan["languages"].values():
    entry |= {"language_judged": 150, "available": 1200}
  write(root / "data_plan.json", plan)
  text = write_report(root).read_text(encoding="utf-8")
  assert "judged on a sample, one row in 8: en 150 of 1,200, fi 150 of 1,200" in text


def test_answers_stand_beside_each_other_in_their_own_direction(tmp_path):
  root = make_workdir(tmp_path / "run", response="תשובה {} {}\x1f\ud83d")
  text = write_report(root).read_text(encoding="utf-8")
  assert text.count('<div class="said" dir="auto" lang="he">') == 2 * 2
  assert "תשובה he 0␟?" in text and "תשובה he 20␟?" in text
  assert "Why he?" in text and "cut at the length limit" in text


@pytest.mark.parametrize(
  "missing",
  [
    ["config.json"],
    ["data_plan.json"],
    ["metrics.jsonl"],
    ["evals"],
    ["evals/0", "evals/10"],
    ["evals/20"],
    ["evals/0/generations.jsonl", "evals/10/generations.jsonl"],
    ["evals/20/heldout.json"],
    ["evals/0/generations.jsonl", "evals/10/generations.jsonl", "evals/20/generations.jsonl"],
    ["config.json", "data_plan.json", "metrics.jsonl", "evals"],
  ],
  ids=",".join,
)
def test_missing_files_leave_a_page(tmp_path, missing):
  root = make_workdir(tmp_path / "run")
  for name in missing:
    shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()
  page = read(root)
  assert page.text.count("Ledger") == 1 and "Over steps" in page.text
  ElementTree.fromstring(write_chart(root, tmp_path / "chart.svg").read_text(encoding="utf-8"))


def test_a_killed_run_leaves_a_page_that_says_so(tmp_path):
  root = make_workdir(tmp_path / "run", trained=False)
  shutil.rmtree(root / "evals/20")
  lines = (root / "metrics.jsonl").read_text().splitlines(keepends=True)
  (root / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:40])
  (root / "evals/10/heldout.json").write_text('{"en": {"lo')
  (root / "evals/last").mkdir()
  page = read(root)
  assert "Not finished: the last event is of step 10 of 20." in page.text
  assert "nothing stands beside it" in page.text


def test_figures_that_are_not_finite_are_named(tmp_path):
  root = make_workdir(tmp_path / "run")
  figures = json.loads((root / "evals/20/heldout.json").read_text())
  figures["fi"]["bits_per_byte"] = figures["mean"]["bits_per_byte"] = figure(None)
  figures["he"] = {"loss": figure(2.5, 1)}
  write(root / "evals/20/heldout.json", figures)
  write(root / "evals/20/other.json", {"heldout": {"en": {"loss": 3}}})  # not figures
  with open(root / "metrics.jsonl", "a") as file:
    file.write('{"step": 21, "train/loss": NaN, "eval/heldout/fi/bits_per_byte": null}\n')
  page = read(root)
  assert "not finite" in page.text and "2.500n 1" in page.text and "nan" not in page.text.lower()


def test_labels_keep_their_distance():
  assert charts.spread([10, 11, 30], 5, 0, 100) == [8, 13, 30]
  out = charts.spread([50, 1, 2, 1, 99, 98, 97], 6, 0, 100)
  assert min(b - a for a, b in zip(sorted(out), sorted(out)[1:])) >= 6 - 1e-9
  assert min(out) >= 0 and max(out) <= 100
  assert (
    sorted(range(7), key=out.__getitem__)[3] == 0
  )  # the order of the lines is the order of the labels
  lines = [charts.Line(f"l{i}", [(0, 1.0), (9, 2.0 + i / 100)], i) for i in range(40)]
  ys = [float(y) for y in re.findall(r'y="([\d.]+)">l\d+<', charts.lines("t", lines).body)]
  assert (
    len(ys) == 40
    and min(b - a for a, b in zip(sorted(ys), sorted(ys)[1:])) >= charts.LABEL_GAP - 0.11
  )


@pytest.mark.parametrize(
  "low, high", [(0, 1), (2.1, 5.9), (-3, 7), (5, 5), (0, 12345), (0.00012, 0.00031)]
)
def test_ticks_enclose_the_values(low, high):
  ticks = charts.nice_ticks(low, high)
  assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 8
