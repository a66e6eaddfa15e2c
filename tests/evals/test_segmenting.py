import pytest

from mlit_jax.evals.segmenting import (
  Piece,
  is_unsegmentable,
  latin_stretches,
  latin_words,
  pieces,
  size,
)


@pytest.mark.parametrize(
  "text, expected",
  [("Talo 1.", 4), ("дом", 3), ("بيت", 3), ("בית", 3), ("मैं ठीक", 3 + 3), ("好的", 4), ("บ้าน", 7)],
)
def test_size(text, expected):
  assert size(text) == expected


def test_short_sentences_are_joined_and_keep_their_line():
  text = (
    "Kyllä.\nMuseossa kannattaa käydä aamulla. Silloin kävijöitä on vähemmän kuin illalla.\n\nHei."
  )
  assert pieces(text) == [
    Piece(1, "Kyllä. Museossa kannattaa käydä aamulla."),
    Piece(2, "Silloin kävijöitä on vähemmän kuin illalla. Hei."),
  ]
  assert pieces("") == [] and pieces("Hei.") == [Piece(1, "Hei.")]


def test_sentences_without_spaces_between_them():
  text = "最好早上去参观博物馆，因为那时候人比较少。The museum opens at nine in the morning。"
  assert [p.text for p in pieces(text)] == [
    "最好早上去参观博物馆，因为那时候人比较少。",
    "The museum opens at nine in the morning。",
  ]
  hindi = "संग्रहालय सुबह देखना सबसे अच्छा होता है। तब वहाँ बहुत ही कम लोग होते हैं, यह सच है।"
  assert len(pieces(hindi)) == 2


@pytest.mark.parametrize(
  "text",
  ["ааааааааааааааааа", "कककककककक कककककककक", "abcdefghij" * 7, "Hei " + "ha" * 200, "ةةةةةةةة ة"],
)
def test_what_has_no_words(text):
  assert is_unsegmentable(text)


@pytest.mark.parametrize(
  "text",
  [
    "Kolmivaihekilowattituntimittari on pitkä sana.",
    "最好早上去参观博物馆因为那时候人比较少" * 5,
    "พิพิธภัณฑ์เปิดทุกวันยกเว้นวันจันทร์" * 5,
    "ພິພິທະພັນເປີດທຸກມື້" * 5,
    "សារមន្ទីរបើករាល់ថ្ងៃ" * 5,
    "ပြတိုက်ကိုနေ့တိုင်းဖွင့်သည်" * 5,
    "博物館は毎日開いています" * 5,
    "Aaah!",
    "",
  ],
)
def test_what_has(text):
  assert not is_unsegmentable(text)


@pytest.mark.parametrize(
  "text, words",
  [
    ("这个 project 很 nice", ["project", "nice"]),
    ("점점 벌widening 있다", ["widening"]),
    ("Это называется deep learning", ["deep", "learning"]),
    ("Откройте файл setup.py и iPhone от NASA, или user@example.org", []),
    ("ב-Python יש list ו-int", ["list"]),
    ("الذكاء AI و (GPU) cat", []),
  ],
)
def test_latin_words(text, words):
  assert list(latin_words(text)) == words


def test_stretches_end_where_another_script_begins():
  text = "Это, как говорят, machine learning: a way of making models, то есть обучение моделей."
  assert latin_stretches(text) == ["machine learning: a way of making models,"]
