import collections
import random

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from made_up import examples_of, make_encoded, names_of

from mlit_jax.data.choice import choose, take_stock
from mlit_jax.data.mixture import resolve
from mlit_jax.errors import UserError


def chosen(encoded, spec, seed=0, groups="together", **kwargs):
  """{language: names in the order of their rank}."""
  amounts = resolve(spec, take_stock(encoded), **kwargs)
  found = choose(encoded, amounts, seed=seed, groups=groups)
  out = collections.defaultdict(list)
  for (lang, _), c in found.items():
    out[lang] += names_of(encoded, c.rows)
  return dict(out)


def rows(lang, number, shift=0):
  return [(lang, f"{lang}-{i + shift}", None, 4) for i in range(number)]


def finnish(encoded, count, seed=0):
  return chosen(encoded, {"counts": {"fi": count}}, seed)["fi"]


def test_subsets_are_nested_and_go_by_the_seed():
  encoded = make_encoded(rows("fi", 200))
  for seed in range(5):
    forty, eighty = finnish(encoded, 40, seed), finnish(encoded, 80, seed)
    assert len(set(eighty)) == 80 and eighty[:40] == forty
  assert set(finnish(encoded, 40, 0)) != set(finnish(encoded, 40, 1))
  # Not the head of the file: of its first 100 rows, 40 of 80 are expected, 4.5 is a standard deviation.
  assert 22 < len(set(finnish(encoded, 80)) & {f"fi-{i}" for i in range(100)}) < 58


def test_the_choice_does_not_depend_on_the_order_of_the_file_nor_on_other_languages():
  names = rows("fi", 100)
  first = finnish(make_encoded(names), 30)
  assert first == finnish(make_encoded(names[::-1]), 30)
  more = names + rows("fi", 20, shift=100)  # new rows win places; the old ones keep their order
  old = {name for _, name, *_ in names}
  kept = [name for name in finnish(make_encoded(more), 120) if name in old]
  assert kept == finnish(make_encoded(names), 100)
  assert finnish(make_encoded(rows("en", 50) + names), 30) == first


def test_repeats_take_whole_passes_first():
  encoded = make_encoded(rows("fi", 3))
  amounts = resolve({"counts": {"fi": 7}, "max_repeats": 3}, take_stock(encoded))
  (found,) = choose(encoded, amounts, seed=0, groups="together").values()
  assert found.repeat.tolist() == [0, 0, 0, 1, 1, 1, 2]
  assert sorted(found.rows[3:6]) == [0, 1, 2] and found.rows[6] == found.rows[0]
  assert len({(r, k) for r, k in zip(found.rows.tolist(), found.repeat.tolist(), strict=True)}) == 7


def test_stock_is_counted_by_language_and_source_in_every_unit():
  encoded = make_encoded(
    [("en", "a", None, 3), ("en", "b", None, 5), ("en", "c", None, 9), ("sw", "d", None, 4)],
    sources=("lima", "dolly"),
    source_of=lambda name: int(name == "b"),
  )
  stock = take_stock(encoded).amounts
  assert stock["examples"] == {
    ("en", ""): 3, ("en", "lima"): 2, ("en", "dolly"): 1, ("sw", ""): 1, ("sw", "lima"): 1,
  }  # fmt: skip
  assert stock["tokens"]["en", ""] == 17 and stock["tokens"]["en", "dolly"] == 5
  trained = encoded.trained_counts
  assert stock["trained_tokens"]["en", "lima"] == trained[0] + trained[2]


def test_a_source_gives_exactly_what_is_asked_of_it():
  names = [("en", f"en-{i}", None, 4) for i in range(60)]
  encoded = make_encoded(
    names, sources=("lima", "dolly"), source_of=lambda name: int(name[3:]) % 3 and 1
  )
  found = chosen(encoded, {"counts": {"en": {"lima": 5, "dolly": 12}}})["en"]
  of = collections.Counter(int(name[3:]) % 3 == 0 for name in found)
  assert of == {True: 5, False: 12} and len(set(found)) == 17


# --- shares of tokens


def test_tokens_come_nearest_to_what_is_asked():
  lengths = np.random.default_rng(0).integers(2, 40, (2, 400)).tolist()
  encoded = make_encoded(
    [("en", f"en-{i}", None, n) for i, n in enumerate(lengths[0])]
    + [("sw", f"sw-{i}", None, n) for i, n in enumerate(lengths[1])]
  )
  for unit, column in (("tokens", encoded.lengths), ("trained_tokens", encoded.trained_counts)):
    for total in (4000, 6001, 9000):
      spec = {"shares": {"en": 0.7, "sw": 0.3}, "unit": unit, "total": total}
      amounts = resolve(spec, take_stock(encoded), max_repeats=2)
      found = choose(encoded, amounts, seed=1, groups="together")
      everything = resolve(spec | {"total": 12_000}, take_stock(encoded), max_repeats=9)
      longer = choose(encoded, everything, seed=1, groups="together")
      for key, c in found.items():
        sums = np.cumsum(column[longer[key].rows])
        best = np.abs(sums - amounts.of[key]).min()
        assert abs(column[c.rows].sum() - amounts.of[key]) == best
        assert longer[key].rows[: len(c)].tolist() == c.rows.tolist()  # nested


def test_tokens_over_several_passes():
  encoded = make_encoded([("en", "a", None, 9), ("en", "b", None, 9), ("en", "c", None, 9)])
  whole = int(encoded.lengths.sum())
  for total, rows_wanted in ((27, 3), (28, 3), (40, 4), (41, 5), (54, 6), (63, 7)):
    spec = {"shares": {"en": 1}, "unit": "tokens", "total": total, "max_repeats": 3}
    amounts = resolve(spec, take_stock(encoded))
    if abs(rows_wanted * 9 - total) > 0.005 * total:
      with pytest.raises(UserError, match="misses the share"):
        choose(encoded, amounts, seed=0, groups="together")
    else:
      (found,) = choose(encoded, amounts, seed=0, groups="together").values()
      assert len(found) == rows_wanted and encoded.lengths[found.rows].sum() == total
  assert whole == 27


def test_a_share_that_whole_rows_cannot_give_is_refused():
  encoded = make_encoded([("en", f"e{i}", None, 1) for i in range(99)] + [("sw", "s", None, 20)])
  spec = {"shares": {"en": 0.95, "sw": 0.05}, "unit": "tokens", "total": 100}
  with pytest.raises(UserError, match=r"asks for 5 tokens of 'sw'; whole rows give 0"):
    chosen(encoded, spec)


# --- parallel groups

ROWS = {"ar": 60, "en": 120, "fi": 60, "hi": 60, "zh": 60}
PARALLEL = make_encoded(examples_of(ROWS, parallel=True))


def groups_of(found):
  return {lang: [name.split("-")[1] for name in names] for lang, names in found.items()}


def test_together_gives_languages_the_same_groups_and_independent_does_not():
  spec = {"counts": {"*": 48, "en": 30}}
  together = groups_of(chosen(PARALLEL, spec))
  assert together["ar"] == together["fi"] == together["hi"] == together["zh"]
  apart = groups_of(chosen(PARALLEL, spec, groups="independent"))
  assert len({frozenset(g) for g in apart.values()}) == 5


def disjoint(spec, **kwargs):
  return groups_of(chosen(PARALLEL, spec, groups="disjoint", **kwargs))


@pytest.mark.parametrize("seed", range(4))
def test_disjoint_puts_no_group_into_two_languages_and_nests(seed):
  found = {
    n: disjoint({"replace": {"base": "en", "total": 100, "with": {"*": n}}}, seed=seed)
    for n in (8, 20, 40)
  }
  for n, by_lang in found.items():
    everything = [g for groups in by_lang.values() for g in groups]
    assert len(everything) == len(set(everything)) == 100
    assert len(by_lang["en"]) == 100 - n
  for lang in ("ar", "fi", "hi", "zh"):
    assert found[8][lang] == found[20][lang][:2] and found[20][lang] == found[40][lang][:5]
  # Nor does a language lose its rows when another joins the mixture: nested over sets of languages.
  fewer = disjoint({"counts": {"fi": 5, "en": 80}}, seed=seed)
  assert fewer["fi"] == found[20]["fi"]


def test_disjoint_that_cannot_be_met_is_refused():
  with pytest.raises(UserError, match=r"61 examples of 'zh'|asks for 60 examples"):
    disjoint({"counts": {"ar": 60, "fi": 60}})
  with pytest.raises(UserError, match="max_repeats 1"):
    disjoint({"counts": {"ar": 6}, "max_repeats": 2})


def test_disjoint_takes_a_language_with_two_rows_of_a_group_once():
  examples = examples_of({"en": 20, "fi": 20}, parallel=True)
  examples += [("fi", f"again-{i}", f"g{i}", 4) for i in range(20)]
  encoded = make_encoded(examples)
  found = chosen(encoded, {"counts": {"en": 10, "fi": 10}}, groups="disjoint")
  everything = [g for groups in groups_of(found).values() for g in groups]
  assert len(set(everything)) == 20


@hypothesis.given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40), st.randoms())
@hypothesis.settings(deadline=None, max_examples=40, database=None)
def test_nested_over_sizes_seeds_and_sets_of_languages(seed, a, b, shuffle):
  """Five orders of languages and any sizes: what the smaller mixture has, the larger has."""
  order = list(ROWS)
  shuffle.shuffle(order)
  small, large = sorted((a, b))
  for groups in ("together", "independent"):
    one = chosen(PARALLEL, {"uniform": {"languages": order[:2], "total": 2 * small}}, seed, groups)
    two = chosen(PARALLEL, {"uniform": {"languages": order[:4], "total": 4 * large}}, seed, groups)
    for lang in order[:2]:
      assert one[lang] == two[lang][: len(one[lang])]


def test_the_order_of_rows_decides_nothing_in_any_mode():
  examples = examples_of(ROWS, parallel=True)
  shuffled = make_encoded(random.Random(1).sample(examples, len(examples)))
  for groups in ("together", "disjoint", "independent"):
    spec = {"counts": {"en": 50, "*": 17}}
    assert chosen(PARALLEL, spec, 3, groups) == chosen(shuffled, spec, 3, groups)
