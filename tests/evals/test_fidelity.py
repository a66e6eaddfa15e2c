"""The strict score: hand-made cases in six scripts, and four models that must be ranked rightly."""

import json
import pathlib

import pytest

import mlit_jax
from mlit_jax.detect import LanguageDetector
from mlit_jax.errors import UserError
from mlit_jax.evals.fidelity import judge, prompt_text, repeats
from mlit_jax.evals.language_confusion import all_pass_rates, detector_lid
from mlit_jax.evals.summary import Record, score_responses, summarise

EVAL = pathlib.Path(mlit_jax.__file__).parent / "assets/instructions12/eval"
EN = "It is best to visit the museum in the morning, when there are fewer people."
# Language -> a right answer, and one that is too short to tell.
RIGHT = {
  "fi": ("Museossa kannattaa käydä aamulla, koska silloin kävijöitä on vähemmän.", "Joo."),
  "ru": ("Лучше всего прийти в музей утром, когда посетителей меньше.", "Да."),
  "ar": ("يمكنك زيارة المتحف في الصباح لأن عدد الزوار يكون أقل في ذلك الوقت.", "نعم."),
  "he": ("כדאי לבקר במוזיאון בבוקר, כי אז יש בו פחות אנשים.", "כן."),
  "hi": ("संग्रहालय सुबह देखना सबसे अच्छा है, क्योंकि तब वहाँ कम लोग होते हैं।", "हाँ।"),
  "zh": ("最好早上去参观博物馆，因为那时候人比较少。", "是的。"),
}
UNSPACED = {
  "ja": "博物館は毎日開いていますが、月曜日は休みです。",
  "th": "พิพิธภัณฑ์เปิดทุกวันยกเว้นวันจันทร์ และเข้าชมได้ฟรี",
  "lo": "ພິພິທະພັນເປີດທຸກມື້ຍົກເວັ້ນວັນຈັນ",
  "km": "សារមន្ទីរបើករាល់ថ្ងៃលើកលែងតែថ្ងៃច័ន្ទ",
  "my": "ပြတိုက်ကို တနင်္လာနေ့မှလွဲ၍ နေ့တိုင်းဖွင့်သည်",
}


@pytest.fixture(scope="module")
def detector():
  return LanguageDetector([*RIGHT, *UNSPACED, "en", "sr", "am"])


@pytest.mark.parametrize("lang", RIGHT)
def test_six_scripts_by_hand(lang, detector):
  text, short = RIGHT[lang]
  other = RIGHT["zh" if lang != "zh" else "ru"][0]
  answers = [text, EN, other, "", " \n", "42 🙂", short, f"{text}\n{EN}", f"{text}\n\n{text} {EN}"]
  verdicts = judge(answers, [lang] * len(answers), detector)
  whys = ["", "wrong language", "wrong language", "empty", "empty", "empty", "too short"]
  assert [v.why for v in verdicts[:7]] == whys
  assert [v.right for v in verdicts] == [True] + [False] * 8
  assert verdicts[0].language == lang and verdicts[0].confidence > 0.9
  assert verdicts[1].language == "en" and verdicts[1].reason == "wrong language en"
  assert [v.judged for v in verdicts] == [True] * 3 + [False] * 4 + [True] * 2
  assert [v.lines_right for v in verdicts] == [True, False, False] + [None] * 4 + [False] * 2
  if verdicts[7].why == "mixed lines":  # else English outweighs the language
    assert (verdicts[7].line, verdicts[7].quote) == (2, EN)
  assert verdicts[8].why == "mixed lines" and (verdicts[8].line, verdicts[8].quote) == (3, EN)


@pytest.mark.parametrize("lang", UNSPACED)
def test_scripts_without_spaces_are_judged_and_not_skipped(lang, detector):
  verdicts = judge([UNSPACED[lang], EN, ""], [lang] * 3, detector)
  assert [v.right for v in verdicts] == [True, False, False]
  assert [v.judged for v in verdicts] == [True, True, False]


def test_scripts(detector):
  serbian = "Најбоље је да дођете ујутру, јер тада у музеју има мање људи."
  croatian = "Najbolje je doći ujutro jer je tada u muzeju manje ljudi."
  amharic = "ሙዚየሙን ጠዋት መጎብኘት ይሻላል።"
  detector = LanguageDetector(["sr", "sr-Latn", "sr-Cyrl", "am", "en"])
  assert [v.why for v in judge([serbian, croatian], ["sr-Latn", "sr-Cyrl"], detector)] == [
    "wrong script"
  ] * 2
  assert [v.why for v in judge([amharic, EN], ["am", "am"], detector)] == ["", "wrong script"]


def test_degenerate_answers_are_unsegmentable(detector):
  answers = ["а" * 50, "ह" * 40, "好" * 30, "lorem" * 40]
  verdicts = judge(answers, ["ru", "hi", "zh", "fi"], detector)
  assert [v.why for v in verdicts] == ["unsegmentable"] * 4
  assert not any(v.judged for v in verdicts)


def test_latin_words_in_another_script(detector):
  few = f"{RIGHT['ru'][0]} Это называется deep learning."
  stretch = "Самое важное здесь, как говорят специалисты этого музея, making decisions from data without rules."
  code = f"{RIGHT['ru'][0]} Напишите `print every line of that file` или откройте setup.py."
  verdicts = judge([few, stretch, code], ["ru"] * 3, detector)
  assert [v.why for v in verdicts] == ["", "Latin words", ""]
  assert verdicts[0].words == ("deep", "learning") and verdicts[2].words == ()
  assert verdicts[1].quote.startswith("making decisions")
  assert [v.words_right for v in verdicts] == [False, False, True]
  assert [v.lines_right for v in verdicts] == [True] * 3
  finnish = judge([RIGHT["fi"][0]], ["fi"], detector)[0]
  assert finnish.words_right is None  # not looked for among Latin letters


def test_a_short_foreign_name_is_no_foreign_sentence(detector):
  text = f"{RIGHT['fi'][0]} Elokuva on The Matrix. {RIGHT['fi'][0]}"
  assert judge([text], ["fi"], detector)[0].right


PROMPT = "Milloin museossa kannattaa käydä, ja mitä siellä voi nähdä?"


@pytest.mark.parametrize(
  "answer, again",
  [
    (PROMPT, True),
    (f"{PROMPT}\n{PROMPT}", True),
    (f"{PROMPT} {PROMPT[:20]}", True),
    ("MILLOIN museossa  kannattaa käydä ja mitä siellä voi", True),  # cut short
    ("Milloin museossa", False),
    ("museossa kannattaa käydä, ja mitä siellä voi nähdä", False),
    (f"{PROMPT} Aamulla.", False),
    ("", False),
  ],
)
def test_what_repeats_a_prompt(answer, again):
  assert repeats(answer, PROMPT) == again


def test_prompts_as_messages():
  messages = [{"role": "system", "content": "x"}, {"role": "user", "content": PROMPT}]
  assert repeats(PROMPT, messages) and prompt_text(messages) == PROMPT
  assert not repeats(PROMPT, None) and not repeats(PROMPT, []) and not repeats("", "")
  assert not repeats("Helsinki", "Turku vai Helsinki")


def rows():
  return {
    lang: [json.loads(line) for line in (EVAL / f"{lang}.jsonl").read_text("utf-8").splitlines()]
    for lang in ("en", *RIGHT)
  }


def test_four_models_are_ranked_as_they_should_be():
  """And the published formulas call the one that says nothing perfect."""
  asked = rows()
  english = {row["group_id"]: row["completion"] for row in asked["en"]}
  models = {
    "perfect": lambda row: row["completion"],
    "english": lambda row: english[row["group_id"]],
    "nothing": lambda row: "",
    "repeats": lambda row: row["prompt"],
  }
  detector = LanguageDetector(list(asked))
  figures, published = {}, {}
  for name, answer in models.items():
    records = [
      Record("s", lang, row["group_id"], prompt=row["prompt"], response=answer(row))
      for lang in asked
      for row in asked[lang]
    ]
    figures[name] = summarise(score_responses(records, detector))["s"]
    answers = [("s", r.lang, r.response) for r in records if r.lang != "zh"]  # jieba is optional
    published[name] = all_pass_rates(answers, detector_lid(detector), frozenset())["all", "all"]
  fidelity = {name: f["mean"]["fidelity"]["value"] for name, f in figures.items()}
  assert fidelity["perfect"] == 1.0
  assert fidelity["english"] == pytest.approx(1 / 7)
  assert fidelity["nothing"] == fidelity["repeats"] == 0.0
  assert {name: f["worst"]["fidelity"]["value"] for name, f in figures.items()} == {
    "perfect": 1.0, "english": 0.0, "nothing": 0.0, "repeats": 0.0,
  }  # fmt: skip
  coverage = {name: f["mean"]["coverage"]["value"] for name, f in figures.items()}
  assert coverage == {"perfect": 1.0, "english": 1.0, "nothing": 0.0, "repeats": 1.0}
  assert published["nothing"]["lpr"] == 1.0 >= published["perfect"]["lpr"]
  assert published["nothing"]["skipped"] == 1.0


def test_verdicts_as_they_are_written(detector):
  mixed, empty = judge([f"{RIGHT['ru'][0]}\n{RIGHT['ru'][0]}\n{EN}", ""], ["ru"] * 2, detector)
  assert mixed.row() == {
    "right": False,
    "language": "ru",
    "confidence": mixed.row()["confidence"],
    "why": "mixed lines",
    "line": 3,
    "quote": EN,
    "words": list(mixed.words),
  }
  assert empty.row() == {"right": False, "language": None, "confidence": 0.0, "why": "empty"}
  json.dumps(mixed.row())


def test_a_language_that_was_not_announced_is_named(detector):
  with pytest.raises(UserError, match="'de'"):
    judge(["Guten Tag, wie geht es Ihnen?"], ["de"], detector)
