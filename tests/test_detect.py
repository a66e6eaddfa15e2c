import pathlib

import pytest

from mlit_jax import detect
from mlit_jax.detect import LanguageDetector
from mlit_jax.errors import UserError
from mlit_jax.evals.fidelity import judge

TWELVE = {
  "ar": "يمكنك زيارة المتحف في الصباح لأن عدد الزوار يكون أقل في ذلك الوقت.",
  "cs": "Nejlepší je přijít ráno, protože v muzeu bývá méně návštěvníků.",
  "en": "It is best to visit the museum in the morning, when there are fewer people.",
  "es": "Lo mejor es visitar el museo por la mañana, cuando hay menos gente.",
  "et": "Muuseumi on kõige parem külastada hommikul, kui rahvast on vähem.",
  "fi": "Museossa kannattaa käydä aamulla, koska silloin kävijöitä on vähemmän.",
  "he": "כדאי לבקר במוזיאון בבוקר, כי אז יש בו פחות אנשים.",
  "hi": "संग्रहालय सुबह देखना सबसे अच्छा है, क्योंकि तब वहाँ कम लोग होते हैं।",
  "it": "Conviene visitare il museo di mattina, quando ci sono meno persone.",
  "ru": "Лучше всего прийти в музей утром, когда посетителей меньше.",
  "sw": "Ni vizuri kutembelea jumba la makumbusho asubuhi, wakati watu ni wachache.",
  "zh": "最好早上去参观博物馆，因为那时候人比较少。",
}

SERBIAN = "Најбоље је да дођете ујутру, јер тада у музеју има мање људи."
CROATIAN = "Najbolje je doći ujutro jer je tada u muzeju manje ljudi."
INDONESIAN = "Sebaiknya Anda mengunjungi museum pada pagi hari karena pengunjungnya lebih sedikit."
DANISH = "Det er bedst at besøge museet om morgenen, når der er færre mennesker."
AMHARIC = "ሙዚየሙን ጠዋት መጎብኘት ይሻላል።"


def faithful(detector, responses, langs):
  return [verdict.right for verdict in judge(responses, langs, detector)]


@pytest.fixture(scope="module")
def detector():
  return LanguageDetector(TWELVE)


def test_each_language_is_right_for_itself_alone(detector):
  langs = list(TWELVE)
  for wanted in langs:
    right = faithful(detector, list(TWELVE.values()), [wanted] * len(langs))
    assert [lang for lang, ok in zip(langs, right, strict=True) if ok] == [wanted]


def test_detect_names_the_language(detector):
  assert detector.detect(list(TWELVE.values())) == list(TWELVE)
  assert detector.detect(["", "12:30 !?", "🙂"]) == [None, None, None]


def test_answers_without_language_are_failures(detector):
  empty = ["", " \n\t", "42", "3 + 4 = 7", "🙂🙂", "…", "?!"]
  for lang in ("en", "zh", "ar"):
    assert faithful(detector, empty, [lang] * len(empty)) == [False] * len(empty)


def test_code_and_addresses_do_not_decide(detector):
  comments = "# read every line of the file and print it, or say that there is nothing\n" * 4
  code = f"```python\n{comments}for line in open(path):\n  print(line or 'nothing')\n```"
  fi = (
    f"Tässä on pyytämäsi ohjelma:\n{code}\nLisää: https://docs.python.org/3/library/functions.html"
  )
  assert faithful(detector, [fi, fi], ["fi", "en"]) == [True, False]
  # No letter of Swahili is its own: with the comments the answer would pass for English.
  assert faithful(detector, [f"Hii ni programu uliyoomba:\n{code}"], ["sw"]) == [True]
  en = f"Ohjelma:\n{code}\nHere you see how the lines of a file are printed one after the other."
  assert faithful(detector, [en], ["fi"]) == [False]


def test_a_language_that_is_not_in_play_is_wrong():
  german = "Am besten besucht man das Museum am Morgen, wenn weniger Leute da sind."
  assert faithful(LanguageDetector(["en", "fi"]), [german, german], ["en", "fi"]) == [False, False]


def test_one_language_needs_no_other():
  assert faithful(LanguageDetector(["en"]), [TWELVE["en"], TWELVE["es"]], ["en"] * 2) == [
    True,
    False,
  ]
  alone = LanguageDetector(["sw"], guards=())
  assert faithful(alone, [TWELVE["sw"], TWELVE["en"]], ["sw"] * 2) == [True, False]


def test_close_pairs_count_within_their_group():
  detector = LanguageDetector(["hr", "sr", "bs", "id", "ms", "no", "nb", "nn", "da", "en"])
  for text, right, wrong in [
    (CROATIAN, ["hr", "bs", "sr"], ["id", "en", "da"]),
    (SERBIAN, ["sr", "bs"], ["hr", "en"]),  # the group's, but not in the letters of Croatian
    (INDONESIAN, ["id", "ms"], ["en", "hr"]),
    (DANISH, ["da", "no", "nb", "nn"], ["en", "id"]),
  ]:
    assert faithful(detector, [text] * len(right), right) == [True] * len(right), text
    assert faithful(detector, [text] * len(wrong), wrong) == [False] * len(wrong), text


def test_a_script_in_the_tag_is_asked_for():
  detector = LanguageDetector(["sr", "sr-Latn", "sr-Cyrl"])
  assert faithful(detector, [CROATIAN] * 3, ["sr", "sr-Latn", "sr-Cyrl"]) == [True, True, False]
  assert faithful(detector, [SERBIAN] * 3, ["sr", "sr-Latn", "sr-Cyrl"]) == [True, False, True]


def test_other_tags_of_the_same_language():
  detector = LanguageDetector(["arb", "swh", "pt-BR", "zh-Hant", "fil"])
  assert faithful(detector, [TWELVE["ar"], TWELVE["sw"]], ["arb", "swh"]) == [True, True]
  texts = [
    "É melhor visitar o museu de manhã.",
    "最好早上去參觀博物館。",
    "Mas mainam bumisita sa umaga.",
  ]
  assert faithful(detector, texts, ["pt-BR", "zh-Hant", "fil"]) == [True, True, True]


def test_a_script_of_its_own_decides_for_an_unknown_language():
  detector = LanguageDetector(["am", "en"])
  mixed = f"{AMHARIC} Of course the museum is also open in the afternoon."
  answers = [AMHARIC, TWELVE["en"], mixed, "", "12"]
  assert faithful(detector, answers, ["am"] * 5) == [True, False, False, False, False]
  assert faithful(detector, [AMHARIC], ["en"]) == [False]


@pytest.mark.parametrize(
  "langs, named",
  [
    (["ig", "en"], "'ig'"),
    (["am", "ti"], "'am'"),
    (["not a tag"], "'not a tag'"),
    (["ne", "hi"], "'ne'"),
  ],
)
def test_a_language_that_cannot_be_told_is_named(langs, named):
  with pytest.raises(UserError) as e:
    LanguageDetector(langs)
  assert named in str(e.value)


def test_a_language_that_was_not_announced_is_named(detector):
  with pytest.raises(UserError, match="'de'"):
    faithful(detector, ["Guten Tag"], ["de"])


def test_models_are_shared_between_detectors(detector):
  again = LanguageDetector(reversed(TWELVE))
  assert detect.lingua_detector(again._known) is detect.lingua_detector(detector._known)


def test_many_real_sentences(detector):
  folder = pathlib.Path(__file__).parents[2] / "shared/data/ntrex128/NTREX-128"
  if not folder.exists():
    pytest.skip("NTREX-128 is not here")
  files = dict(
    ar="ref.arb",
    cs="ref.ces",
    en="src.eng",
    es="ref.spa",
    et="ref.est",
    fi="ref.fin",
    he="ref.heb",
    hi="ref.hin",
    it="ref.ita",
    ru="ref.rus",
    sw="ref.swa",
    zh="ref.zho-CN",
  )
  for lang, name in files.items():
    lines = (folder / f"newstest2019-{name}.txt").read_text("utf-8").splitlines()[5::20]
    right = faithful(detector, lines, [lang] * len(lines))
    assert len(lines) > 90
    assert sum(right) / len(right) > 0.95, (
      lang,
      [t for t, ok in zip(lines, right, strict=True) if not ok],
    )


@pytest.mark.slow
def test_a_guess_comes_with_its_confidence():
  lang, sure = detect.guess_language(TWELVE["fi"])
  assert lang == "fi" and sure > 0.99
  lang, unsure = detect.guess_language("hello")
  assert 0 < unsure < 0.5
  assert detect.guess_language("42 🙂") == (None, 0.0)
  some = LanguageDetector(["fi", "en"])
  assert some.guess(TWELVE["fi"])[0] == "fi" and some.guess("…") == (None, 0.0)
  assert some.guess("Am besten besucht man das Museum am Morgen.")[0] == "de"  # a guard
