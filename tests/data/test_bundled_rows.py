"""The bundled rows: parallel, distinct, in the right script and language."""

import collections
import json
import re
import unicodedata
from pathlib import Path

import pytest
from lingua import IsoCode639_1, Language, LanguageDetectorBuilder

import mlit_jax

ROWS = Path(mlit_jax.__file__).parent / "assets" / "instructions12"
LANGUAGES = ["ar", "cs", "en", "es", "et", "fi", "he", "hi", "it", "ru", "sw", "zh"]
SCRIPTS = {"ar": "ARABIC", "he": "HEBREW", "hi": "DEVANAGARI", "ru": "CYRILLIC", "zh": "CJK"}
CATEGORIES = [
  "explanation",
  "list",
  "rewriting",
  "advice",
  "reasoning",
  "facts",
  "classification",
  "creative",
]
SURE = 25  # letters from which the detector's opinion counts


def read(split, lang):
  lines = (ROWS / split / f"{lang}.jsonl").read_text(encoding="utf-8").splitlines()
  return [json.loads(line) for line in lines]


def texts(lang):
  for split in ("train", "eval"):
    for row in read(split, lang):
      yield row["group_id"], row["prompt"]
      yield row["group_id"], row["completion"]


def letters(text):
  return [c for c in text if c.isalpha()]


def test_the_same_groups_in_every_language():
  for split, least in (("train", 100), ("eval", 20)):
    groups = [(r["group_id"], r["category"]) for r in read(split, "en")]
    assert len(groups) == len(set(groups)) >= least
    for lang in LANGUAGES:
      assert [(r["group_id"], r["category"]) for r in read(split, lang)] == groups
  assert len(read("train", "en")) + len(read("eval", "en")) >= 120


def test_train_and_eval_share_no_group_and_all_categories_are_there():
  train, held_out = read("train", "en"), read("eval", "en")
  assert not {r["group_id"] for r in train} & {r["group_id"] for r in held_out}
  assert set(CATEGORIES) == {r["category"] for r in train} == {r["category"] for r in held_out}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_rows_are_clean_and_distinct(lang):
  prompts = collections.Counter()
  for split in ("train", "eval"):
    for row in read(split, lang):
      assert set(row) == {"group_id", "category", "lang", "prompt", "completion"}
      assert row["lang"] == lang
      prompts[row["prompt"]] += 1
      for text in (row["prompt"], row["completion"]):
        assert text == text.strip() == unicodedata.normalize("NFC", text) != ""
        assert not re.search(r"[\x00-\x09\x0b-\x1f\ufffd]", text), row
  assert max(prompts.values()) == 1, prompts.most_common(3)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_right_script(lang):
  script = SCRIPTS.get(lang, "LATIN")
  for group, text in texts(lang):
    other = [c for c in letters(text) if script not in unicodedata.name(c, "")]
    assert len(other) <= 0.2 * len(letters(text)), (group, text)


@pytest.mark.parametrize("lang", [lang for lang in LANGUAGES if lang != "en"])
def test_no_english_left_over(lang):
  english = {r["group_id"]: r["completion"] for s in ("train", "eval") for r in read(s, "en")}
  for group, text in texts(lang):
    assert text != english[group] or len(text) < 12
  if lang in SCRIPTS:
    words = [w for _, text in texts(lang) for w in re.findall(r"[A-Za-z]{4,}", text)]
    assert not words, words


@pytest.mark.parametrize("lang", LANGUAGES)
def test_detector_agrees(lang):
  codes = [getattr(IsoCode639_1, code.upper()) for code in LANGUAGES]
  detector = LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()
  wanted = Language.from_iso_code_639_1(getattr(IsoCode639_1, lang.upper()))
  long = [(group, text) for group, text in texts(lang) if len(letters(text)) > SURE]
  found = detector.detect_languages_in_parallel_of([text for _, text in long])
  wrong = [entry for entry, language in zip(long, found, strict=True) if language != wanted]
  assert not wrong, wrong[:3]
