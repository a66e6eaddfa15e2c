import unicodedata

import pytest

from mlit_jax.evals.overlap import chrf_scores, exact

TEXTS = [
  "مرحبا بالعالم",
  "שלום עולם",
  "नमस्ते दुनिया",
  "世界你好",
  "สวัสดีชาวโลก",
  "Dobrý den",
  "👍🏽 ok",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_reference_itself_scores_100_in_every_script(text):
  assert chrf_scores([text], [text]) == [pytest.approx(100.0)]
  assert exact(text, text)


@pytest.mark.parametrize("text", TEXTS)
def test_half_an_answer_scores_between(text):
  (score,) = chrf_scores([text[: len(text) // 2 + 1]], [text])
  assert 5 < score < 95


def test_score_by_hand():
  # ab for abc. Characters: precision 2/2, recall 2/3; pairs: 1/1 and 1/2; longer: none in the answer.
  # Mean precision 1, mean recall 7/12;
  # F with beta 2 = 5 * 1 * 7/12 / (4 * 1 + 7/12).
  assert chrf_scores(["ab"], ["abc"]) == [pytest.approx(100 * (35 / 12) / (55 / 12), abs=1e-6)]
  assert chrf_scores(["abcdefg"], ["hijklmnop"]) == [pytest.approx(0.0, abs=1e-6)]


def test_an_empty_answer_is_zero():
  assert chrf_scores(["", " \n", "x"], ["abc", "abc", ""]) == [0.0, 0.0, 0.0]
  assert not exact("", "")
  assert not exact(" ", "\n")


def test_decomposed_and_composed_text_are_the_same():
  text = "Příliš žluťoučký kůň"
  decomposed = unicodedata.normalize("NFD", text)
  assert decomposed != text
  assert chrf_scores([decomposed], [text]) == [pytest.approx(100.0)]
  assert exact(decomposed, text)


def test_exact_ignores_whitespace_but_not_case_or_marks():
  assert exact(" ndiyo,\n asante ", "ndiyo, asante")
  assert not exact("Ndiyo", "ndiyo")
  assert not exact("kun", "kůň")


def test_one_score_for_each_pair():
  with pytest.raises(ValueError):
    chrf_scores(["a"], ["a", "b"])
