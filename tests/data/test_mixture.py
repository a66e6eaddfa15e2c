import hypothesis
import hypothesis.strategies as st
import pytest

from mlit_jax.data.mixture import choose, resolve_counts, spread, stable_hash
from mlit_jax.errors import UserError

TWELVE = ("ar", "cs", "en", "es", "et", "fi", "he", "hi", "it", "ru", "sw", "zh")
PLENTY = dict.fromkeys(TWELVE, 5000)


def refused(spec, available=PLENTY, **kwargs) -> str:
  with pytest.raises(UserError) as e:
    resolve_counts(spec, available, **kwargs)
  return str(e.value)


# --- counts


def test_counts_are_exact_and_the_star_is_spread_over_the_others():
  counts = resolve_counts({"counts": {"en": 4350, "*": 40}}, PLENTY)
  assert counts == {"ar": 4, "cs": 4, "en": 4350, "es": 4, "et": 4, "fi": 4, "he": 4, "hi": 4} | {
    "it": 3, "ru": 3, "sw": 3, "zh": 3,
  }  # fmt: skip
  assert list(counts) == sorted(counts)
  assert resolve_counts({"counts": {"en": 3, "fi": 0, "zh": 2}}, PLENTY) == {"en": 3, "zh": 2}
  # A language named with 0 takes no part of the star.
  assert resolve_counts({"counts": {"en": 1, "fi": 0, "*": 4}}, {"en": 9, "fi": 9, "sw": 9, "zh": 9}) == {
    "en": 1, "sw": 2, "zh": 2,
  }  # fmt: skip


def test_uniform():
  assert resolve_counts({"uniform": {"languages": ["fi", "en"], "total": 4641}}, PLENTY) == {
    "en": 2321, "fi": 2320,
  }  # fmt: skip
  everyone = resolve_counts({"uniform": {"total": 50}}, PLENTY)
  assert everyone == dict.fromkeys(TWELVE, 4) | {"ar": 5, "cs": 5}


@pytest.mark.parametrize("num_languages, others", [(12, 40), (6, 37), (2, 22), (1, 0)])
def test_pinch_is_the_published_definition(num_languages, others):
  """N * P/100 * (L-1)/L of 4,390 with P = 1: 40.24, 36.58, 21.95."""
  available = dict.fromkeys(("en", *(lang for lang in TWELVE if lang != "en"))[:1], 5000)
  available |= dict.fromkeys([lang for lang in TWELVE if lang != "en"][: num_languages - 1], 5000)
  counts = resolve_counts({"pinch": {"percent": 1, "base": "en", "total": 4390}}, available)
  assert counts.pop("en") == 4390 - others
  assert sum(counts.values()) == others
  assert set(counts.values()) <= {
    others // len(available),
    *(others // max(1, num_languages - 1) + i for i in (0, 1)),
  }


def test_pinch_of_100_percent_is_uniform_and_of_0_is_the_base_alone():
  whole = resolve_counts({"pinch": {"percent": 100, "base": "en", "total": 4390}}, PLENTY)
  assert sum(whole.values()) == 4390 and set(whole.values()) == {365, 366}
  assert resolve_counts({"pinch": {"percent": 0, "base": "en", "total": 4390}}, PLENTY) == {
    "en": 4390
  }
  named = {"percent": 10, "base": "en", "total": 400, "languages": ["fi", "sw", "zh"]}
  assert resolve_counts({"pinch": named}, PLENTY) == {"en": 370, "fi": 10, "sw": 10, "zh": 10}


@pytest.mark.parametrize(
  "spec, parts",
  [
    ({"counts": {"enn": 5}}, ["5 examples of 'enn'", "did you mean 'en'?", "fi, he, hi"]),
    ({"counts": {"en": 5001}}, ["5001 examples of 'en'", "5000 usable rows", "data.max_repeats is 1"]),
    ({"counts": {"en": 0}}, ["no example at all"]),
    ({"counts": {}}, ["no example at all"]),
    ({"counts": {"*": 0}}, ["no example at all"]),
    ({"counts": {"en": -1}}, ["data.mixture.counts['en'] is -1"]),
    ({"counts": {"en": 2.0}}, ["data.mixture.counts['en'] is 2.0"]),
    ({"counts": {"en": True}}, ["data.mixture.counts['en'] is True"]),
    ({"counts": {**dict.fromkeys(TWELVE, 1), "*": 4}}, ["every language with rows is named already"]),
    ({"counts": 40}, ["data.mixture.counts is 40"]),
    ({"count": {"en": 5}}, ["exactly one of counts, uniform, pinch", "did you mean 'counts'?"]),
    ({"counts": {"en": 5}, "uniform": {"total": 5}}, ["exactly one of"]),
    ({"max_repeats": 2}, ["exactly one of"]),
    ({}, ["exactly one of"]),
    ({"counts": {"en": 5}, "max_repeats": "2"}, ["data.mixture.max_repeats is '2'"]),
    ({"uniform": {"totl": 5}}, ["lacks ['total']", "does not know ['totl']"]),
    ({"uniform": {"total": 5.5}}, ["data.mixture.uniform.total is 5.5"]),
    ({"uniform": {"total": 10, "languages": ["en", "fi", "en"]}}, ["data.mixture.uniform.languages", "'en' twice"]),
    ({"pinch": {"percent": 101, "base": "en", "total": 9}}, ["data.mixture.pinch.percent is 101"]),
    ({"pinch": {"percent": "1", "base": "en", "total": 9}}, ["data.mixture.pinch.percent is '1'"]),
    ({"pinch": {"percent": 1, "base": "english", "total": 900}}, ["'english', which has no rows"]),
    ({"pinch": {"percent": 1, "base": "en"}}, ["lacks ['total']"]),
  ],
)  # fmt: skip
def test_a_spec_that_cannot_be_met_is_refused(spec, parts):
  message = refused(spec)
  for part in parts:
    assert part in message


def test_no_rows_at_all_is_one_message():
  for spec in (
    {"uniform": {"total": 5}},
    {"counts": {"en": 5}},
    {"pinch": {"percent": 1, "base": "en", "total": 5}},
  ):
    assert "no rows" in refused(spec, {})


def test_more_than_the_rows_needs_leave_to_repeat():
  few = {"en": 10}
  assert "11 examples" in refused({"counts": {"en": 11}}, few)
  assert resolve_counts({"counts": {"en": 20}}, few, max_repeats=2) == {"en": 20}
  assert resolve_counts({"counts": {"en": 20}, "max_repeats": 2}, few) == {"en": 20}
  assert "21 examples" in refused({"counts": {"en": 21}}, few, max_repeats=2)
  assert "11 examples" in refused({"counts": {"en": 11}, "max_repeats": 1}, few, max_repeats=2)


@hypothesis.given(
  st.sets(st.sampled_from(TWELVE), min_size=1), st.integers(0, 500), st.integers(0, 500)
)
@hypothesis.settings(deadline=None, max_examples=60, database=None)
def test_spread_is_exact_even_and_grows_with_its_total(languages, a, b):
  small, large = (
    spread(min(a, b), sorted(languages)),
    spread(max(a, b), sorted(languages, reverse=True)),
  )
  assert sum(small.values()) == min(a, b) and sum(large.values()) == max(a, b)
  assert max(small.values()) - min(small.values()) <= 1
  assert all(small[lang] <= large[lang] for lang in languages)


# --- which rows


def rows(lang, number, shift=0):
  return [f"{lang} {i + shift}" for i in range(number)]


def picked(keys, count, seed=0, lang="fi"):
  return [keys[i] for i, _ in choose({lang: keys}, {lang: count}, seed)[lang]]


def test_subsets_are_nested_and_go_by_the_seed():
  keys = rows("fi", 200)
  for seed in range(5):
    forty, eighty = picked(keys, 40, seed), picked(keys, 80, seed)
    assert len(set(eighty)) == 80 and eighty[:40] == forty
  assert set(picked(keys, 40, 0)) != set(picked(keys, 40, 1))
  # Not the head of the file: of its first 100 rows, 40 of 80 are expected, 4.5 is a standard deviation.
  assert 22 < len(set(picked(keys, 80)) & set(keys[:100])) < 58


def test_the_choice_does_not_depend_on_the_order_of_the_file_nor_on_other_languages():
  keys = rows("fi", 100)
  assert picked(keys, 30) == picked(keys[::-1], 30) == picked(keys[37:] + keys[:37], 30)
  more = keys + rows("fi", 20, shift=100)  # new rows win places; the old ones keep their order
  assert [k for k in picked(more, 120) if k in set(keys)] == picked(keys, 100)
  both = choose({"en": rows("en", 50), "fi": keys}, {"en": 20, "fi": 30}, 0)
  assert [keys[i] for i, _ in both["fi"]] == picked(keys, 30)


def test_parallel_rows_are_chosen_together():
  english, finnish = rows("group", 100), rows("group", 100)[::-1]
  assert picked(english, 25) == picked(finnish, 25)


def test_repeats_take_whole_passes_first():
  keys = rows("fi", 3)
  chosen = choose({"fi": keys}, {"fi": 7}, 0)["fi"]
  assert [repeat for _, repeat in chosen] == [0, 0, 0, 1, 1, 1, 2]
  assert sorted(row for row, repeat in chosen if repeat == 1) == [0, 1, 2]
  assert len(set(chosen)) == 7
  assert chosen[6][0] == chosen[0][0]


def test_the_hash_is_the_same_everywhere():
  assert stable_hash(0, "fi क्ष 你好") == 409456903746498583
  assert stable_hash(1, 23) != stable_hash(12, 3)
