import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from mlit_jax.data.hashing import mix, stable_hash
from mlit_jax.data.mixture import Stock, by_largest_remainder, resolve, spread, stages
from mlit_jax.errors import UserError

TWELVE = ("ar", "cs", "en", "es", "et", "fi", "he", "hi", "it", "ru", "sw", "zh")
PLENTY = dict.fromkeys(TWELVE, 5000)


def resolve_counts(spec, available, **kwargs):
  """Examples of each language."""
  amounts = resolve(spec, Stock.of_examples(available), **kwargs)
  assert amounts.unit == "examples" and not any(source for _, source in amounts.of)
  return {lang: n for (lang, _), n in amounts.of.items()}


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


@pytest.mark.parametrize(
  "spec, same",
  [
    ({"counts": {"English": 5, "swa": 7, "*": 20}}, {"counts": {"en": 5, "sw": 7, "*": 20}}),
    ({"shares": {"eng_Latn": 0.75, "fin": 0.25}, "total": 8}, {"shares": {"en": 0.75, "fi": 0.25}, "total": 8}),
    ({"uniform": {"languages": ["eng", "ces"], "total": 9}}, {"uniform": {"languages": ["en", "cs"], "total": 9}}),
    ({"pinch": {"percent": 5, "base": "english", "total": 99}}, {"pinch": {"percent": 5, "base": "en", "total": 99}}),
    (
      {"replace": {"base": "eng", "total": 90, "with": {"heb": 7}}, "leave_out": ["zho"]},
      {"replace": {"base": "en", "total": 90, "with": {"he": 7}}, "leave_out": ["zh"]},
    ),
    ({"counts": {"ces": 6000}, "max_repeats": {"ces": 2}}, {"counts": {"cs": 6000}, "max_repeats": {"cs": 2}}),
  ],
)  # fmt: skip
def test_a_language_by_any_of_its_names(spec, same):
  """As in data.train, whose rows have the tags."""
  assert resolve_counts(spec, PLENTY) == resolve_counts(same, PLENTY)


def test_two_names_of_one_language_are_refused():
  message = refused({"counts": {"ces_Latn": 3, "cs": 4}})
  assert all(part in message for part in ("data.mixture.counts", "'ces_Latn'", "'cs'", "keep one"))
  assert "data.max_repeats" in refused({"counts": {"cs": 4}}, max_repeats={"cs": 1, "Czech": 2})


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
    ({"temperature": 2, "totl": 5}, ["'totl' is none", "did you mean 'total'?"]),
    ({"max_repeats": 2}, ["exactly one of"]),
    ({}, ["exactly one of"]),
    ({"counts": {"en": 5}, "max_repeats": "2"}, ["data.mixture.max_repeats is '2'"]),
    ({"uniform": {"totl": 5}}, ["lacks ['total']", "does not know ['totl']"]),
    ({"uniform": {"total": 5.5}}, ["data.mixture.uniform.total is 5.5"]),
    ({"uniform": {"total": 10, "languages": ["en", "fi", "en"]}}, ["data.mixture.uniform.languages", "'en' twice"]),
    ({"pinch": {"percent": 101, "base": "en", "total": 9}}, ["data.mixture.pinch.percent is 101"]),
    ({"pinch": {"percent": "1", "base": "en", "total": 9}}, ["data.mixture.pinch.percent is '1'"]),
    ({"pinch": {"percent": 1, "base": "englisch", "total": 900}}, ["'englisch', which has no rows"]),
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


# --- shares of a unit


def amounts(spec, stock=None, **kwargs):
  return resolve(spec, stock or Stock.of_examples(PLENTY), **kwargs)


def by_language(spec, stock=None, **kwargs):
  return {lang: n for (lang, _), n in amounts(spec, stock, **kwargs).of.items()}


TOKENS = Stock(
  {
    "examples": {("en", ""): 100, ("sw", ""): 10},
    "tokens": {("en", ""): 9000, ("sw", ""): 2000},
    "trained_tokens": {("en", ""): 3000, ("sw", ""): 1000},
  }
)


def test_shares_come_out_by_the_largest_remainder():
  assert by_largest_remainder(10, {"en": 2, "fi": 1}) == {"en": 7, "fi": 3}
  assert by_largest_remainder(1, {"b": 1, "a": 1}) == {"a": 1, "b": 0}  # ties by name
  thirds = {"shares": {"en": 0.7, "fi": 0.2, "sw": 0.1}, "total": 10}
  assert by_language(thirds) == {"en": 7, "fi": 2, "sw": 1}  # .7 as written, not 0.6999...
  assert by_language({"shares": {"en": 0.9, "*": 0.1}, "total": 1000}) == {"en": 900} | {
    lang: 9 + (lang == "ar") for lang in TWELVE if lang != "en"
  }


def test_shares_are_of_the_unit_that_is_named():
  spec = {"shares": {"en": 0.75, "sw": 0.25}, "unit": "trained_tokens", "total": 2000}
  found = amounts(spec, TOKENS)
  assert found.unit == "trained_tokens" and found.of == {("en", ""): 1500, ("sw", ""): 500}
  # Without a total, the most that the rows allow: 1,000 Swahili tokens are a quarter of 4,000.
  del spec["total"]
  assert sum(amounts(spec, TOKENS).of.values()) == 4000
  assert sum(amounts(spec | {"max_repeats": {"sw": 2}}, TOKENS).of.values()) == 4000  # English ends
  even = {"shares": {"en": 0.5, "sw": 0.5}}
  assert by_language(even, TOKENS) == {"en": 10, "sw": 10}
  assert by_language(even | {"max_repeats": {"sw": 3, "*": 1}}, TOKENS) == {"en": 30, "sw": 30}


def test_temperature_flattens_and_what_is_full_gives_way():
  stock = Stock.of_examples({"en": 10_000, "fi": 100, "sw": 1})
  assert by_language({"temperature": 1, "total": 10_101}, stock) == {
    "en": 10_000,
    "fi": 100,
    "sw": 1,
  }
  # T = 2: 100 : 10 : 1.
  assert by_language({"temperature": 2, "total": 111}, stock) == {"en": 100, "fi": 10, "sw": 1}
  # More than Swahili has: its rest is shared 100 : 10 by the others.
  assert by_language({"temperature": 2, "total": 331}, stock) == {"en": 300, "fi": 30, "sw": 1}
  assert by_language({"temperature": 2, "total": 333, "max_repeats": 3}, stock)["sw"] == 3
  # Hot enough, all are even.
  plenty = by_language({"temperature": 1e6, "total": 120})
  assert set(plenty.values()) == {10}
  cold = by_language({"temperature": 0.01, "total": 50}, stock)
  assert cold == {"en": 50}


def test_unimax_is_algorithm_1_of_chung_et_al():
  """Sizes 10, 40, 100, 1000 with a budget of 200 and one pass: 10, 40, then 150 in halves."""
  stock = Stock.of_examples({"a": 1000, "b": 40, "c": 10, "d": 100})
  assert by_language({"unimax": {"budget": 200}}, stock) == {"a": 75, "b": 40, "c": 10, "d": 75}
  twice = {"unimax": {"budget": 200, "max_repeats": 2}}
  assert by_language(twice, stock) == {"a": 60, "b": 60, "c": 20, "d": 60}
  assert amounts(twice, stock).max_repeats == dict.fromkeys("abcd", 2)
  assert by_language({"unimax": {"budget": 1150}}, stock) == {"a": 1000, "b": 40, "c": 10, "d": 100}
  assert "1151" in refused({"unimax": {"budget": 1151}}, {"a": 1000, "b": 40, "c": 10, "d": 100})


def test_replace_keeps_the_total_and_augment_adds():
  others = {"fi": 5, "sw": 0, "*": 20}
  kept = by_language({"replace": {"base": "en", "total": 500, "with": others}})
  assert sum(kept.values()) == 500 and kept["en"] == 475 and kept["fi"] == 5 and "sw" not in kept
  added = by_language({"augment": {"base": "en", "total": 500, "with": others}})
  assert added == kept | {"en": 500}
  assert kept["ar"] == 3 and kept["zh"] == 2  # 20 over the nine that are not named


def test_leave_out_takes_a_language_away_before_anything_is_spread():
  spec = {"pinch": {"percent": 10, "base": "en", "total": 400}}
  left = by_language(spec | {"leave_out": ["fi", "zh"]})
  assert left.keys() == set(TWELVE) - {"fi", "zh"}
  assert sum(left.values()) == 400 and 400 - left["en"] == 36  # 40 * 9/10
  assert "leaves it out" in refused({"counts": {"fi": 3, "*": 9}, "leave_out": ["fi"]})
  assert "leaves it out" in refused(spec | {"leave_out": ["en"]})
  assert "did you mean 'fi'" in refused(spec | {"leave_out": ["fi9"]})


SOURCED = Stock(
  {
    "examples": {
      ("en", ""): 30,
      ("en", "lima"): 10,
      ("en", "dolly"): 20,
      ("fi", ""): 5,
      ("fi", "x"): 5,
    }
  }
)


def test_a_language_may_be_split_by_source():
  spec = {"counts": {"en": {"lima": 4, "dolly": 11}, "*": 2}}
  found = resolve(spec, SOURCED)
  assert found.of == {("en", "lima"): 4, ("en", "dolly"): 11, ("fi", ""): 2}
  shares = {"shares": {"en": {"lima": 0.5, "dolly": 0.25}, "fi": 0.25}, "total": 8}
  assert resolve(shares, SOURCED).of == {("en", "lima"): 4, ("en", "dolly"): 2, ("fi", ""): 2}
  for bad, part in (
    ({"counts": {"en": {"lina": 4}}}, "did you mean 'lima'?"),
    ({"counts": {"en": {}}}, "names no source"),
    ({"counts": {"en": {"lima": 11}}}, "11 examples of 'en' from 'lima', but data.train has 10"),
    ({"counts": {"*": {"lima": 1}}}, "cannot be split by source"),
  ):
    with pytest.raises(UserError) as e:
      resolve(bad, SOURCED)
    assert part in str(e.value), (bad, str(e.value))


@pytest.mark.parametrize(
  "spec, parts",
  [
    ({"shares": {"en": 0.9, "fi": 0.2}, "total": 9}, ["shares sum to 1.1"]),
    ({"shares": {"en": 1.2}, "total": 9}, ["shares['en'] is 1.2; a share lies between 0 and 1"]),
    ({"shares": {"en": "1"}, "total": 9}, ["shares['en'] is '1'"]),
    ({"shares": {"en": 0.5, "xx": 0.5}, "total": 8}, ["4 examples of 'xx'", "no rows"]),
    ({"shares": {"en": 1}, "unit": "token", "total": 9}, ["data.mixture.unit is 'token'", "trained_tokens"]),
    ({"shares": {"en": 1}, "total": 5001}, ["5001 examples of 'en'", "5000 usable rows"]),
    ({"counts": {"en": 5}, "total": 5}, ["data.mixture.total does not go with counts"]),
    ({"counts": {"en": 5}, "unit": "tokens"}, ["data.mixture.unit does not go with counts"]),
    ({"unimax": {"budget": 5}, "total": 5}, ["data.mixture.total does not go with unimax"]),
    ({"temperature": 0, "total": 5}, ["temperature is 0; it must be above 0"]),
    ({"temperature": "hot", "total": 5}, ["temperature is 'hot'"]),
    ({"temperature": 2}, ["needs `total`", "60000"]),
    ({"temperature": 2, "total": 60_001}, ["60001 examples", "allow 60000"]),
    ({"unimax": {"budgt": 5}}, ["lacks ['budget']"]),
    ({"replace": {"base": "en", "total": 5, "with": {"fi": 6}}}, ["6 examples in the place of 5 of 'en'"]),
    ({"replace": {"base": "en", "total": 5, "with": {"en": 1}}}, ["names 'en', which is the base"]),
    ({"counts": {"en": 5}, "max_repeats": {"xx": 2}}, ["max_repeats names 'xx'"]),
    ({"counts": {"en": 5}, "max_repeats": 0}, ["data.mixture.max_repeats is 0; it must be a whole number, 1"]),
    ({"counts": {"en": 5}, "leave_out": "fi"}, ["leave_out is 'fi'; it must be a list"]),
    ({"counts": {"en": 5}, "steps": 5}, ["'steps' belongs in a list of stages"]),
    ([{"counts": {"en": 5}}], ["it must be a mapping"]),
  ],
)  # fmt: skip
def test_what_cannot_be_met_in_the_other_kinds_is_refused(spec, parts):
  message = refused(spec)
  for part in parts:
    assert part in message


sizes = st.dictionaries(st.sampled_from(TWELVE), st.integers(1, 400), min_size=1)


@hypothesis.given(sizes, st.floats(0.2, 50), st.integers(1, 3), st.data())
@hypothesis.settings(deadline=None, max_examples=80, database=None)
def test_temperature_and_unimax_are_exact_and_keep_to_the_caps(available, hot, repeats, data):
  stock = Stock.of_examples(available)
  total = data.draw(st.integers(1, sum(available.values()) * repeats))
  for spec in (
    {"temperature": hot, "total": total, "max_repeats": repeats},
    {"unimax": {"budget": total, "max_repeats": repeats}},
  ):
    found = by_language(spec, stock)
    assert sum(found.values()) == total
    assert all(n <= available[lang] * repeats for lang, n in found.items())
    # A language with more rows gets no fewer, but for the one of a remainder.
    for a, b in itertools.permutations(available, 2):
      assert available[a] < available[b] or found.get(a, 0) >= found.get(b, 0) - 1
  even = by_language({"unimax": {"budget": total, "max_repeats": repeats}}, stock)
  open_ = [n for lang, n in even.items() if n < available[lang] * repeats]
  assert not open_ or (max(open_) - min(open_) <= 1 and max(even.values()) <= max(open_))


# --- stages


def test_a_list_of_mixtures_is_a_curriculum():
  one, two = {"counts": {"en": 5}}, {"uniform": {"total": 6}}
  assert stages(one, epochs=2, steps=0) == [(one, 2, 0)]
  assert stages([one | {"epochs": 1}, two | {"steps": 9}], epochs=0, steps=0) == [
    (one, 1, 0), (two, 0, 9),
  ]  # fmt: skip


@pytest.mark.parametrize(
  "mixture, kwargs, part",
  [
    ([{"counts": {"en": 5}}], {}, "exactly one of epochs and steps"),
    ([{"counts": {"en": 5}, "epochs": 1, "steps": 1}], {}, "exactly one of epochs and steps"),
    ([{"counts": {"en": 5}, "epochs": 0}], {}, "data.mixture[0].epochs is 0"),
    ([{"counts": {"en": 5}, "epochs": 1}], {"epochs": 1}, "set both to 0"),
    ([{"counts": {"en": 5}, "epochs": 1}, 7], {}, "data.mixture[1] is 7"),
    ([], {}, "empty list"),
  ],
)
def test_a_stage_without_a_length_is_refused(mixture, kwargs, part):
  with pytest.raises(UserError) as e:
    stages(mixture, **{"epochs": 0, "steps": 0} | kwargs)
  assert part in str(e.value)


def test_the_hash_is_the_same_everywhere():
  assert stable_hash(0, "fi क्ष 你好") == 409456903746498583
  assert stable_hash(1, 23) != stable_hash(12, 3)
  keys = np.array([0, 1, 2**64 - 1], np.uint64)
  assert mix(keys, "choice", 7).tolist() == MIXED
  assert len(set(mix(np.arange(10_000, dtype=np.uint64), "x").tolist())) == 10_000


MIXED = [4807395656158673473, 12874472974297294595, 3079351093456119482]
