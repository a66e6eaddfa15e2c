"""The rows of configs/study: their wording always, the rows themselves where the sources are."""

import collections
import importlib.util
import json
import os
import re
import shutil
import string
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import sentencepiece

from mlit_jax.data.foreign import foreign_share, scripts_of
from mlit_jax.detect import LanguageDetector
from mlit_jax.evals import fidelity

pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT.parent / "shared" / "data"
SCRIPT = ROOT / "configs" / "study" / "make_rows.py"
TOKENIZER = ROOT / "runs" / "tiny12" / "tokenizer" / "tokenizer.model"
OTHER_TOKENIZER = ROOT / "mlit_jax" / "assets" / "tokenizer12" / "tokenizer.model"
LANGUAGES = ["ar", "cs", "en", "es", "et", "fi", "he", "hi", "it", "ru", "sw", "zh"]
TASKS = ["topic", "continue", "first_words", "repeat"]
TOPICS = {
  "entertainment", "geography", "health", "politics", "science/technology", "sports", "travel",
}  # fmt: skip
COUNTS = {
  "train": {"topic": 440, "continue": 276, "first_words": 440, "repeat": 440},
  "eval": dict.fromkeys(TASKS, 12),
}
spec = importlib.util.spec_from_file_location("study_rows", SCRIPT)
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)
needs_data = pytest.mark.skipif(
  not all((DATA / name).is_dir() for name in ("ntrex128", "sib200", "tatoeba_laser")),
  reason="no real sources beside the checkout",
)


def make(out, hash_seed, tokenizer=OTHER_TOKENIZER, data=DATA):
  words = [sys.executable, SCRIPT, "--data", data, "--out", out, "--tokenizer", tokenizer]
  environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
  return subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def detector():
  return LanguageDetector(LANGUAGES)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(folder, what was printed): written as a user writes it."""
  out = tmp_path_factory.mktemp("rows")
  done = make(out, "1")
  assert done.returncode == 0, done.stderr
  return out, done.stdout


@pytest.fixture(scope="module")
def rows(made):
  """{split: {lang: rows}}"""
  return {
    split: {lang: read(made[0] / split / f"{lang}.jsonl") for lang in LANGUAGES} for split in COUNTS
  }


def read(path):
  return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def placeholders(template):
  return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def wrong(texts, lang, detector):
  verdicts = fidelity.judge(texts, [lang] * len(texts), detector)
  return [(t, v.reason) for t, v in zip(texts, verdicts, strict=True) if not v.right]


# ------------------------------------------------------------------------------------ the wording


def test_every_task_has_its_wording_in_every_language():
  assert list(study.INSTRUCTIONS) == TASKS
  for task in TASKS:
    assert list(study.INSTRUCTIONS[task]) == LANGUAGES == list(study.LANGUAGES)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_placeholders_stand_once_and_on_a_line_of_their_own(lang):
  for task in TASKS:
    wording = study.INSTRUCTIONS[task][lang]
    for prompt in wording["prompts"]:
      assert placeholders(prompt) == ["text"] and "{text}" in prompt.split("\n")
    if task == "repeat":  # or an answer would be the beginning of its prompt
      assert all(prompt.endswith("\n{text}") for prompt in wording["prompts"])
    if task != "topic":
      name = {"continue": "next", "first_words": "words", "repeat": "text"}[task]
      assert placeholders(wording["answers"]) == [name]
  answers = study.INSTRUCTIONS["topic"][lang]["answers"]
  assert set(answers) == TOPICS and not any(map(placeholders, answers.values()))


@pytest.mark.parametrize("lang", LANGUAGES)
def test_no_wording_twice_and_all_of_it_clean(lang):
  prompts = [prompt for task in TASKS for prompt in study.INSTRUCTIONS[task][lang]["prompts"]]
  assert len(set(prompts)) == len(prompts) == 3 * len(TASKS)
  answers = list(study.INSTRUCTIONS["topic"][lang]["answers"].values())
  assert len(set(answers)) == 7
  for text in prompts + answers + [study.INSTRUCTIONS["first_words"][lang]["answers"]]:
    assert text == text.strip() == unicodedata.normalize("NFC", text) and "  " not in text
    assert foreign_share(re.sub(r"\{\w+\}", "", text), scripts_of(lang)) == 0


@pytest.mark.parametrize("lang", LANGUAGES)
def test_topics_and_instructions_are_judged_as_their_language(lang, detector):
  topic = study.INSTRUCTIONS["topic"][lang]
  assert not wrong(list(topic["answers"].values()), lang, detector)
  frame = study.INSTRUCTIONS["first_words"][lang]["answers"].replace("{words}", "")
  assert not wrong([frame], lang, detector)
  prompts = [p for task in TASKS for p in study.INSTRUCTIONS[task][lang]["prompts"]]
  assert not wrong([" ".join(prompts).replace("{text}", "")], lang, detector)


@pytest.mark.parametrize(
  "text, lang, words",
  [
    ("“We can do more,” he said.", "en", "We can do"),
    ("Well, we can do more.", "en", None),  # what is between the words would be lost
    ("In 2018 we went.", "en", None),
    ("Two words", "en", None),
    ("सैकड़ों प्रवासी बच्चे चले गए", "hi", "सैकड़ों प्रवासी बच्चे"),
    ("„Už to není možné“, řekl.", "cs", "Už to není"),
    ("“我们可以做得更多。", "zh", "我们可以"),
    ("我们，可以做得更多。", "zh", None),
    ("FBI的报告", "zh", None),
  ],
)
def test_first_words(text, lang, words):
  assert study.first_words(text, lang) == (words and {"text": text, "words": words})


@pytest.mark.parametrize(
  "text, lang, start",
  [
    ("one two three four five six seven, eight", "en", "one two three four five six seven"),
    ("one two three four five six seven.", "en", "one two three four five six seven."),
    ("one two three four five six", "en", None),
    ('one two "three four five six seven eight"', "en", None),
    ("واحد اثنان ثلاثة أربعة خمسة ستة سبعة، ثم", "ar", "واحد اثنان ثلاثة أربعة خمسة ستة سبعة"),
    ("今年夏天的天气，特别热。", "zh", "今年夏天的天气"),
    ("今年夏天的天气特别热。然后", "zh", "今年夏天的天气特别热。"),
    ("今年，特别热。", "zh", None),
    ("今年夏天的“天气，特别热。", "zh", None),
  ],
)
def test_beginning(text, lang, start):
  assert study.beginning(text, lang) == (start and {"text": start})


@pytest.mark.parametrize(
  "raw, text",
  [
    ('"a ""b"" c"', 'a "b" c'),
    ('"""a"""', '"a"'),
    ('"a," he said, "b"', '"a," he said, "b"'),
    ("a\u00ad\u200bb  c\u00a0d ", "ab c d"),
    ("e\u0301", "\u00e9"),
  ],
)
def test_clean(raw, text):
  assert study.clean(raw) == text


def test_a_group_is_left_out_for_one_of_its_languages():
  def choose(known={}, **other):  # noqa: B006
    fields = {lang: {"text": "abc", "topic": "sports"} for lang in LANGUAGES}
    fields |= {"zh": other} if other else {}
    fields = fields if other != {"text": ""} else {k: v for k, v in fields.items() if k != "zh"}
    groups, left_out = study.choose({"topic": [("first", fields), ("second", fields)]}, 5, known)
    return [group["zh"]["group_id"] for group in groups], left_out

  assert choose() == (["topic/first"], {("topic", "twice"): 1})
  assert choose(text="字" * 200, topic="sports") == ([], {("topic", "long"): 2})
  assert choose(text="") == ([], {("topic", "unfit"): 2})
  assert choose(known={"fi": "x abc y"}) == ([], {("topic", "read"): 2})
  assert choose(known={"fi": "x ab y"})[0] == ["topic/first"]


# --------------------------------------------------------------------------------------- the rows


@needs_data
def test_counts(rows):
  for split, counts in COUNTS.items():
    for lang in LANGUAGES:
      assert collections.Counter(row["task"] for row in rows[split][lang]) == counts
  held_out = [row["completion"] for row in rows["eval"]["en"] if row["task"] == "topic"]
  assert len(set(held_out)) == 7


@needs_data
def test_the_same_groups_in_every_language_and_none_in_both_splits(rows):
  for split in COUNTS:
    groups = [(row["group_id"], row["task"]) for row in rows[split]["en"]]
    assert len(set(groups)) == len(groups)
    for lang in LANGUAGES:
      assert [(row["group_id"], row["task"]) for row in rows[split][lang]] == groups
  known = [{row["group_id"].split("/", 1)[1] for row in rows[split]["en"]} for split in COUNTS]
  assert not known[0] & known[1]  # nor their sentences, whatever the task


@needs_data
def test_a_group_has_the_same_wording_everywhere_and_all_are_used(rows):
  def wording(row):
    prompts = study.INSTRUCTIONS[row["task"]][row["lang"]]["prompts"]
    parts = [prompt.split("{text}") for prompt in prompts]
    fits = [row["prompt"].startswith(a) and row["prompt"].endswith(b) for a, b in parts]
    assert sum(fits) == 1, row
    return fits.index(True)

  for split, counts in COUNTS.items():
    used = [wording(row) for row in rows[split]["en"]]
    for lang in LANGUAGES:
      assert [wording(row) for row in rows[split][lang]] == used, (split, lang)
    for task, number in counts.items():
      of_task = collections.Counter(
        n for n, row in zip(used, rows[split]["en"], strict=True) if row["task"] == task
      )
      assert sorted(of_task) == [0, 1, 2] and min(of_task.values()) >= number // 3


@needs_data
@pytest.mark.parametrize("lang", LANGUAGES)
def test_rows_are_distinct_and_in_the_right_script(rows, lang):
  everything = rows["train"][lang] + rows["eval"][lang]
  assert len({row["prompt"] for row in everything}) == len(everything)
  for row in everything:
    assert list(row) == ["lang", "group_id", "task", "prompt", "completion"]
    assert row["lang"] == lang
    for text in (row["prompt"], row["completion"]):
      assert text == text.strip() == unicodedata.normalize("NFC", text) != ""
      assert foreign_share(text, scripts_of(lang)) <= 0.5, row


@needs_data
@pytest.mark.parametrize("lang", LANGUAGES)
def test_answers_are_those_of_their_prompts(rows, lang):
  """From the sources read again, by line number alone."""
  code, sib, _, _ = study.base_rows.CODES[lang]
  kind = "src" if lang == "en" else "ref"
  ntrex = DATA / "ntrex128" / "NTREX-128" / f"newstest2019-{kind}.{code}.txt"
  lines = [study.clean(line) for line in ntrex.read_text(encoding="utf-8").splitlines()]
  documents = (DATA / "ntrex128" / "DOCUMENT_IDS.tsv").read_text(encoding="utf-8").splitlines()
  topics = {}
  for name in ("train", "dev"):
    path = DATA / "sib200" / "data" / "annotated" / sib / f"{name}.tsv"
    for line in path.read_text(encoding="utf-8").split("\n")[1:]:
      if line:
        index, topic, text = line.split("\t")
        topics[index] = topic, study.clean(text)
  for row in rows["train"][lang] + rows["eval"][lang]:
    _, source, index = row["group_id"].split("/")
    answers = study.INSTRUCTIONS[row["task"]][lang]["answers"]
    if source == "sib":
      topic, text = topics[index]
    else:
      line = documents.index(source) + int(index)
      assert documents[line] == source
      text = lines[line]
    if row["task"] == "repeat":
      assert text.startswith(row["completion"])
      assert row["prompt"].endswith("\n" + row["completion"])
      continue
    assert text in row["prompt"].split("\n")
    if row["task"] == "topic":
      assert row["completion"] == answers[topic]
    elif row["task"] == "continue":
      assert documents[line + 1] == source and row["completion"] == lines[line + 1]
    else:
      before, words = row["completion"].split(answers.replace("{words}", ""))
      assert before == "" and text.lstrip("\"'“”„«‘(「《").startswith(words)
      assert len(words) == 4 if lang == "zh" else len(words.split(" ")) == 3


@needs_data
@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_base_has_not_read_what_eval_asks(rows, lang):
  base = study.base_rows
  train = [*base.ntrex(DATA, lang), *base.sib(DATA, lang, "train"), *base.tatoeba(DATA, lang)]
  train += [*base.home(DATA, lang), *base.bible(DATA, lang)]
  train += [*base.oasst(DATA, lang), *base.chatterbot(DATA, lang)]
  known = "\n".join(map(study.clean, train))
  read_before = [row for row in rows["train"][lang] if all(t in known for t in lines_of(row))]
  assert len(read_before) > 0.9 * len(rows["train"][lang])  # so it would be seen
  for row in rows["eval"][lang]:
    for text in lines_of(row):
      assert text not in known, row


def lines_of(row):
  """What of a row is of the source."""
  if row["task"] == "repeat":
    return {row["completion"]}
  wording = study.INSTRUCTIONS[row["task"]][row["lang"]]["prompts"]
  instructions = {line for prompt in wording for line in prompt.split("\n")}
  texts = set(row["prompt"].split("\n")) - instructions
  return texts | ({row["completion"]} if row["task"] == "continue" else set())


@needs_data
@pytest.mark.slow
def test_two_runs_are_byte_for_byte_equal(made, tmp_path):
  tokenizer = TOKENIZER if TOKENIZER.exists() else OTHER_TOKENIZER
  assert make(tmp_path, "2", tokenizer).returncode == 0
  for split in COUNTS:
    for lang in LANGUAGES:
      name = f"{split}/{lang}.jsonl"
      assert (tmp_path / name).read_bytes() == (made[0] / name).read_bytes(), name


@needs_data
def test_all_rows_fit(rows):
  if not TOKENIZER.exists():
    pytest.skip("the tokenizer of examples/tiny12 was not trained")
  model = sentencepiece.SentencePieceProcessor(str(TOKENIZER))
  for split in COUNTS:
    for lang in LANGUAGES:
      for row in rows[split][lang]:
        prompt, answer = (len(model.encode(row[key])) for key in ("prompt", "completion"))
        assert answer <= 64 and prompt + answer + study.MARKS <= study.MOST_TOKENS, row


@needs_data
def test_nearly_all_answers_of_eval_are_judged_right(rows, made, detector):
  for lang in LANGUAGES:
    found = collections.Counter()
    for row in rows["eval"][lang]:
      found[row["task"]] += not wrong([row["completion"]], lang, detector)
    shares = [found[task] / COUNTS["eval"][task] for task in TASKS]
    assert min(shares) >= 0.9, (lang, found)
    printed = made[1].split("judged right")[1]
    assert re.search(rf"^{lang} +" + " +".join(f"{s:.2f}" for s in shares) + "$", printed, re.M)


@needs_data
def test_sentences_that_are_not_parallel_are_refused(tmp_path):
  shutil.copytree(DATA / "sib200", tmp_path / "sib200")
  (tmp_path / "ntrex128").symlink_to(DATA / "ntrex128")
  path = tmp_path / "sib200" / "data" / "annotated" / "fin_Latn" / "train.tsv"
  path.chmod(0o644)
  head, first, second, *rest = path.read_text(encoding="utf-8").split("\n")
  path.parent.chmod(0o755)
  path.write_text("\n".join([head, second, first, *rest]), encoding="utf-8")
  done = make(tmp_path / "out", "1", data=tmp_path)
  assert done.returncode == 2 and str(path) in done.stderr and "Traceback" not in done.stderr


def test_missing_sources_are_named(tmp_path):
  done = make(tmp_path / "out", "1", data=tmp_path)
  assert done.returncode == 2 and str(tmp_path / "ntrex128") in done.stderr
