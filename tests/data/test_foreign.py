import json
from pathlib import Path

import pytest
from langcodes.data_dicts import LIKELY_SUBTAGS

import mlit_jax
from mlit_jax.data.foreign import cost_of_languages, in_other_language, in_other_script, scripts_of

ROWS = Path(mlit_jax.__file__).parent / "assets" / "instructions12" / "eval"
LANGUAGES = ("ar", "cs", "en", "es", "et", "fi", "he", "hi", "it", "ru", "sw", "zh")
TEXTS = {
  lang: [json.loads(line)["completion"] for line in (ROWS / f"{lang}.jsonl").read_text("utf-8").splitlines()]
  for lang in LANGUAGES
}  # fmt: skip


@pytest.mark.parametrize(
  "lang, expected",
  [
    ("en", "Latn"), ("ru", "Cyrl"), ("sr", "Cyrl Latn"), ("sr-Latn", "Latn"), ("uz", "Arab Cyrl Latn"),
    ("uz-Cyrl", "Cyrl"), ("ja", "Hani Hira Kana"), ("ko", "Hang Hani"), ("zh", "Bopo Hani"),
    ("zh-Hant", "Bopo Hani"), ("pa", "Arab Guru"), ("hi", "Deva"), ("hi-Latn", "Latn"), ("am", "Ethi"),
    ("pt-BR", "Latn"), ("yue", "Bopo Hani"), ("iu", "Cans Latn"), ("qqq", ""),
  ],
)  # fmt: skip
def test_scripts_of_a_language(lang, expected):
  assert scripts_of(lang) == tuple(expected.split())


def test_the_scripts_of_hundreds_of_languages_are_known():
  languages = [lang for lang in LIKELY_SUBTAGS if "-" not in lang and lang != "und"]
  unknown = [lang for lang in languages if not scripts_of(lang)]
  assert len(languages) > 1000 and len(unknown) < 0.01 * len(languages), unknown


def test_answers_in_a_foreign_script():
  latin = {"cs", "en", "es", "et", "fi", "it", "sw"}
  for lang in LANGUAGES:
    script = "latin" if lang in latin else lang
    for text in TEXTS[lang]:
      letters = sum(c.isalpha() for c in text)
      for row in LANGUAGES:
        foreign = ("latin" if row in latin else row) != script
        if not foreign or letters >= 30:
          assert in_other_script(text, row) == foreign, (lang, row, text)


@pytest.mark.parametrize(
  "text, lang, expected",
  [
    (
      "我用 TensorFlow 和 PyTorch 训练模型",
      "zh",
      False,
    ),  # more Latin letters than Han, but fewer words
    ("Используйте `import numpy as np; print(np.arange(10))`", "ru", False),
    ("Вот:\n```python\nfor line in open(path):\n  print(line.strip().split())\n```", "ru", False),
    (
      "См. https://example.org/some/very/long/path/to/read и www.example.org/other/path",
      "ru",
      False,
    ),
    ("I cannot answer this question.", "ru", True),
    ("I cannot: не могу", "ru", False),  # too few foreign words to tell
    ("I can not say: не могу сказать это вам", "ru", False),
    ("Ok, yes.", "ru", False),  # few letters
    ("12345 67890 11121314", "ru", False),
    ("Ovo je na latinici, a ne na ćirilici.", "sr", False),
    ("Ово је на ћирилици, а не на латиници.", "sr-Latn", True),
    ("ー・ーーーーーーーーーーーーーー", "en", False),  # letters of no one script
    ("I cannot answer this question.", "qqq", False),
  ],
)
def test_names_code_and_addresses_are_no_foreign_script(text, lang, expected):
  assert in_other_script(text, lang) == expected


def test_answers_in_another_language():
  right = wrong = pairs = 0
  for i, lang in enumerate(LANGUAGES):
    for text in TEXTS[lang]:
      if len(text) < 60:
        continue
      assert not in_other_language(text, lang, LANGUAGES), (lang, text)
      right += 1
      other = LANGUAGES[(i + 1 + right) % len(LANGUAGES)]
      if other != lang:
        pairs += 1
        wrong += in_other_language(text, other, LANGUAGES)
  assert right > 100 and wrong >= 0.97 * pairs


@pytest.mark.parametrize(
  "text, lang",
  [
    # Danish, not told apart from Norwegian, nor Croatian from Serbian.
    ("Jeg kunne godt tænke mig at bede om en kop kaffe, selvom det er blevet sent.", "nb"),
    ("Dobar dan, kako ste danas? Nadam se da je sve u redu.", "sr"),
    ("Saya ingin tahu jam berapa kereta berangkat hari ini.", "ms"),
    ("Ich weiß es nicht", "fi"),  # short
    ("Me gusta la musica italiana moderna", "es"),  # some think Italian, but not for sure
    ("`for line in open(path): print(line.strip().split(sep))`", "fi"),
    ("This language is none that the detector knows.", "tlh"),
    ("12345, 67890", "fi"),
  ],
)
def test_what_cannot_be_told_is_not_judged(text, lang):
  assert not in_other_language(text, lang, (*LANGUAGES, "da", "hr", "id"))


def test_whether_it_was_judged_at_all():
  german = "Ich weiß es leider auch nicht so genau."
  assert in_other_language(german, "fi", LANGUAGES) is True
  assert in_other_language(german, "de", LANGUAGES) is False
  assert in_other_language("Ich weiß es nicht", "fi", LANGUAGES) is None
  assert in_other_language(german, "tlh", LANGUAGES) is None


def test_what_may_be_the_language_of_the_row_is_not_judged():
  text = "No problem, señor Martinez, see you mañana"  # Spanish 0.54, English 0.13, the rest less
  assert in_other_language(text, "it", LANGUAGES)
  assert not in_other_language(text, "en", LANGUAGES)


def test_more_languages_cost_more():
  assert cost_of_languages(()) == cost_of_languages(LANGUAGES) == 1
  assert cost_of_languages(LIKELY_SUBTAGS.keys() & {
    "af", "be", "bg", "bn", "ca", "da", "el", "eu", "fa", "ga", "gu", "hr", "hu", "hy", "id", "is", "ja",
    "ka", "kk", "ko", "lt", "lv", "mk", "mn", "mr", "nl", "pa", "pl", "ro", "sk", "sl", "so", "sq", "sv",
  }) == 4  # fmt: skip
