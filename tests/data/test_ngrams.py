import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlit_jax.data.ngrams import gram_hashes, normalise, text_hash, unit_hashes

# Letters, marks, digits and punctuation of several scripts, joiners and white space.
TEXTS = st.text("ab9_ .,!\u00a0\u200b\u200d\u00adÉe\u0301ß你好กิ้한ा", max_size=30)


def hashes(text):
  return unit_hashes(text).tolist()


@pytest.mark.parametrize(
  "text, units",
  [
    ("Hello, world!", ["hello", "world"]),
    ("don't STOP", ["don", "t", "stop"]),
    ("你好 world", ["你", "好", "world"]),
    ("カーテンを2枚", ["カ", "ー", "テ", "ン", "を", "2", "枚"]),
    ("コーヒー2", ["コ", "ー", "ヒ", "ー", "2"]),
    ("กิ้ง abc", ["กิ้", "ง", "abc"]),
    ("한국어 말", ["한국어", "말"]),
    ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
    ("می\u200cخواهم", ["میخواهم"]),
    ("co\u00adop", ["coop"]),
    ("a\u200bb", ["a", "b"]),
    ("ｆｕｌｌ　ＷＩＤＴＨ", ["full", "width"]),
    ("e\u0301te", ["éte"]),
    ("STRASSE", ["straße"]),
    ("…!? —", []),
    ("", []),
  ],
)
def test_units_are_words_and_characters_of_unspaced_scripts(text, units):
  assert hashes(text) == [h for unit in units for h in hashes(unit)]
  assert len(hashes(text)) == len(units)


def test_hashes_never_change():
  assert [hex(h) for h in hashes("Straße 你好!")] == [
    "0xe866ef3dc739fc96", "0xc4dc7ca123fae049", "0x22d71886f6b23d5d"
  ]  # fmt: skip
  assert hex(text_hash("Straße  A")) == "0x578bd77ef674b190"
  assert hex(gram_hashes(unit_hashes("a b c d"), 3)[0]) == "0xa7aedd345fec7e68"


@given(TEXTS, TEXTS)
def test_a_unit_has_the_same_hash_wherever_it_stands(a, b):
  assert hashes(f"{a} . {b}") == hashes(a) + hashes(b)


@given(TEXTS)
def test_normalising_changes_no_hash(text):
  assert hashes(normalise(text)) == hashes(text)
  assert text_hash(normalise(text)) == text_hash(text)


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(1, 6))
def test_equal_grams_and_no_others_have_equal_hashes(numbers, n):
  words = np.concatenate([unit_hashes(f"w{i}") for i in numbers] or [np.zeros(0, np.uint64)])
  found = gram_hashes(words, n).tolist()
  grams = [tuple(numbers[i : i + n]) for i in range(len(numbers) - n + 1)]
  assert len(found) == len(grams)
  assert len(set(zip(grams, found))) == len(set(grams)) == len(set(found))


def test_many_words_collide_nowhere():
  words = [
    f"{a}{b}{c}{d}" for a in "abcdefghij" for b in "klmnopqrst" for c in "0123456" for d in "éüöß"
  ]
  assert len(set(hashes(" ".join(words)))) == len(words) == 2800
