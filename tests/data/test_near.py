import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlit_jax.data import near
from mlit_jax.data.near import SIGNATURE, near_duplicates, signature


def text(first, last):
  return " ".join(f"w{i}" for i in range(first, last))


def signatures(*texts, lang="en"):
  return np.stack([signature([t], lang) for t in texts])


def test_a_signature_never_changes():
  found = signature(["one two three four five six", "yes"], "en")
  assert found.dtype == np.uint32 and found.shape == (SIGNATURE,)
  assert found[:4].tolist() == [3435593285, 3337454599, 3305584576, 3264718170]


@pytest.mark.parametrize("jaccard", [0.5, 0.8, 0.95])
def test_signatures_estimate_the_share_of_common_grams(jaccard):
  errors = []
  for trial in range(40):
    start, n = 10_000 * trial, 400
    shift = round(n * (1 - jaccard) / (1 + jaccard))
    a, b = signatures(text(start, start + n + 4), text(start + shift, start + shift + n + 4))
    errors.append((a == b).mean() - (n - shift) / (n + shift))
  assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.05


def test_rows_that_repeat_an_earlier_one_are_found_in_order():
  rows = [text(0, 200), text(500, 700), text(3, 203), text(0, 200), text(900, 1100), text(504, 704)]
  assert near_duplicates(signatures(*rows), 0.8).tolist() == [False, False, True, True, False, True]
  assert near_duplicates(signatures(*rows), 1.0).tolist() == [False] * 3 + [True] + [False] * 2


def test_a_row_near_only_to_a_dropped_one_stays():
  rows = [text(0, 400), text(30, 430), text(60, 460)]  # 0.86 between neighbours, 0.74 over two
  assert near_duplicates(signatures(*rows), 0.8).tolist() == [False, True, False]


def test_languages_share_nothing():
  both = np.concatenate([signatures(text(0, 99), lang="en"), signatures(text(0, 99), lang="sw")])
  assert not near_duplicates(both, 0.5).any()


@pytest.mark.parametrize("a, b", [("Yes!", "yes"), ("你好", "你好。"), ("👍", "👍"), ("", "")])
def test_short_rows_repeat_when_their_words_do(a, b):
  assert near_duplicates(signatures(a, "other", b), 0.8).tolist() == [False, False, True]


def test_case_spaces_and_punctuation_do_not_matter():
  assert near_duplicates(signatures("One, two\nthree.", "ONE TWO  THREE", "one two"), 1.0).tolist() == [
    False, True, False,
  ]  # fmt: skip


def test_the_bound_is_exact_where_rows_share_a_band():
  first = np.arange(SIGNATURE, dtype=np.uint32)
  for equal, expected in ((104, True), (103, True), (102, False)):  # of 128: 0.8125, 0.805, 0.797
    other = np.where(np.arange(SIGNATURE) < equal, first, first + 1000)
    assert near_duplicates(np.stack([first, other]), 0.8).tolist() == [False, expected]


def test_in_a_crowd_of_one_template_repeats_are_still_found(monkeypatch):
  rows = [f"{text(0, 40)} {text(100 * i, 100 * i + 12)}" for i in range(1, 60)]
  found = signatures(*rows, *rows[::7])
  expected = [False] * len(rows) + [True] * len(rows[::7])
  monkeypatch.setattr(near, "_CROWD", 3)
  assert near_duplicates(found, 0.8).tolist() == expected
  monkeypatch.setattr(near, "_CROWD", 0)  # the bound holds: nothing to compare with
  assert not near_duplicates(found, 0.8).any()


def test_none_and_one_row():
  assert near_duplicates(np.zeros((0, SIGNATURE), np.uint32), 0.8).tolist() == []
  assert near_duplicates(signatures("a"), 0.8).tolist() == [False]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_stays_is_unlike_and_what_goes_has_a_like_that_stays(data):
  n = data.draw(st.integers(2, 30))
  rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
  pool = rng.integers(0, 2**32, (4, SIGNATURE), dtype=np.uint32)
  noise = rng.random((n, SIGNATURE)) < rng.choice([0, 0.05, 0.15, 0.4], n)[:, None]
  rows = np.where(
    noise, rng.integers(0, 2**32, noise.shape, dtype=np.uint32), pool[rng.integers(0, 4, n)]
  )
  repeats = near_duplicates(rows, 0.8)
  alike = (rows[:, None] == rows[None]).mean(-1)
  for row in range(n):
    before = [alike[row, i] for i in range(row) if not repeats[i]]
    if repeats[row]:
      assert max(before) >= 0.8
    else:
      assert max(before, default=0) < 0.88  # bands may miss what is only just alike
