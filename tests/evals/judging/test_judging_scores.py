import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlit_jax.evals.judging.bias import score_of
from mlit_jax.evals.judging.scores import (
  Judged,
  agreement_of,
  gated,
  length,
  length_difference,
  summarise,
)


def judged(id, ab, ba, lang="sw", **more):
  winners = () if ab == "same" else (("ab", ab), ("ba", ba))
  return Judged(id, lang, id, winners, **{"length_a": 10, "length_b": 10} | more)


def test_the_published_score():
  expected = {
    ("a", "a"): 1, ("b", "b"): 0, ("a", "b"): 0.5, ("b", "a"): 0.5, ("tie", "tie"): 0.5,
    ("a", "tie"): 0.5, ("tie", "b"): 0.5, (None, "a"): None, ("b", None): None, (): 0.5,
    ("a",): 1, ("b",): 0, ("tie",): 0.5,
  }  # fmt: skip
  assert {winners: score_of(winners) for winners in expected} == expected


def test_the_gate():
  """An answer in another language than the prompt's loses against one that is in it; two draw."""
  for score in (1.0, 0.5, 0.0, None):
    assert gated(score, True, True) == score
    assert gated(score, True, False) == 1.0
    assert gated(score, False, True) == 0.0
    assert gated(score, False, False) == 0.5


TABLE = [
  judged("1", "a", "a", length_a=30),
  judged("2", "a", "a"),
  judged("3", "b", "b", length_b=0),
  judged("4", "a", "b"),  # first slot twice
  judged("5", "a", "b"),
  judged("6", "b", "a"),  # second slot twice
  judged("7", "tie", "tie"),
  judged("8", "a", "tie"),
  judged("9", "a", None),
  judged("10", "same", "same"),
]


def test_figures_by_hand():
  figures = summarise(TABLE)["sw"]
  value = {name: (f["value"], f["n"]) for name, f in figures.items()}
  assert value.pop("win_score") == (pytest.approx(100 * (2 + 0 + 6 * 0.5) / 9), 9)
  assert value.pop("decided_win_rate") == (pytest.approx(2 / 3), 3)
  assert value.pop("tie_rate") == (pytest.approx(6 / 9), 9)
  assert value.pop("order_consistency") == (pytest.approx(4 / 8), 8)
  # First slot: one of two in 1, 2, 3; two of two in 4, 5; none of two in 6; one of one in 8 and 9.
  assert value.pop("first_slot_rate") == (pytest.approx((3 + 4 + 0 + 1 + 1) / 14), 8)
  assert value.pop("invalid_rate") == (pytest.approx(1 / 9), 9)
  assert value.pop("length_difference") == (pytest.approx((0.5 + 1) / 10), 10)
  # Of eight pairs of verdicts three name one slot twice: 4, 5 and 6. Five are left, too few for a score.
  assert value.pop("follows_position") == (pytest.approx(3 / 8), 8)
  assert value.pop("win_score_length_controlled")[1] == 9
  assert not value
  assert all(f["low"] <= f["value"] <= f["high"] for f in figures.values())


def test_figures_with_the_gate_by_hand():
  faithful = {"1": (False, True), "3": (True, False), "4": (False, False), "9": (True, False)}
  table = [
    dataclasses.replace(x, faithful_a=a, faithful_b=b)
    for x in TABLE
    for a, b in [faithful.get(x.id, (True, True))]
  ]
  figures = summarise(table)["sw"]
  # 1: 0, 2: 1, 3: 1, 9: 1 (unread, but decided by language), the other six 0.5
  assert figures["win_score_gated"]["value"] == pytest.approx(100 * (0 + 1 + 1 + 1 + 6 * 0.5) / 10)
  assert figures["win_score"]["value"] == pytest.approx(100 * 5 / 9)
  assert (figures["fidelity_a"]["value"], figures["fidelity_b"]["value"]) == (0.8, 0.7)


def test_mean_and_worst_weigh_languages_equally():
  table = [judged(str(i), "a", "a", "fi") for i in range(30)]
  table += [judged("0", "b", "b", "he"), judged("1", "a", "b", "he")]
  summary = summarise(table)
  assert summary["fi"]["win_score"]["value"] == 100 and summary["he"]["win_score"]["value"] == 25
  assert summary["mean"]["win_score"]["value"] == 62.5
  assert summary["worst"]["win_score"]["value"] == 25
  assert summary["worst"]["win_score"]["lang"] == "he"
  assert "tie_rate" not in summary["worst"]  # no end of that scale is bad
  assert summary["mean"]["win_score"]["n"] == 32


def test_a_mean_over_some_of_the_languages_is_not_given():
  """Hebrew has only ties: W / (W + L) says nothing there, so nothing about the mean of both."""
  summary = summarise([judged("1", "a", "a", "fi"), judged("1", "tie", "tie", "he")])
  assert summary["fi"]["decided_win_rate"]["value"] == 1
  assert summary["he"]["decided_win_rate"]["value"] is None
  assert summary["mean"]["decided_win_rate"]["value"] is None
  assert summary["worst"]["decided_win_rate"]["lang"] == "fi"


def test_parallel_prompts_are_drawn_together():
  """The same prompt is won or lost in all languages: their mean is as uncertain as one of them."""
  rng = np.random.default_rng(0)
  wins = ["a" if x else "b" for x in rng.random(60) < 0.5]
  parallel = [
    judged(str(i), w, w, lang) for lang in ("fi", "he", "sw", "zh") for i, w in enumerate(wins)
  ]
  alone = [dataclasses.replace(x, group=f"{x.lang} {x.id}") for x in parallel]

  def width(table):
    figure = summarise(table)["mean"]["win_score"]
    return figure["high"] - figure["low"]

  assert 1.6 < width(parallel) / width(alone) < 2.4  # the root of four languages


def test_one_seed_gives_the_same_bytes_in_any_order_of_rows():
  assert repr(summarise(TABLE, seed=3)) == repr(summarise(TABLE[::-1], seed=3))
  assert repr(summarise(TABLE, seed=3)) != repr(summarise(TABLE, seed=4))


def test_a_judge_that_follows_the_order_scores_parity():
  """And can be told by its consistency and its slot."""
  figures = summarise([judged(str(i), "a", "b") for i in range(20)])["sw"]
  assert figures["win_score"]["value"] == 50 and figures["tie_rate"]["value"] == 1
  assert figures["order_consistency"]["value"] == 0 and figures["first_slot_rate"]["value"] == 1


def test_length_and_position_are_taken_out_of_a_score():
  """A judge that takes the longer answer has nothing to say at equal length; one that takes the first slot, nothing."""
  long = [judged(f"l{i}", "a", "a", length_a=90 + i) for i in range(30)]
  short = [judged(f"s{i}", "b", "b", length_a=2 + i % 5) for i in range(10)]
  figures = summarise(long + short)["sw"]
  assert figures["win_score"]["value"] == 75
  assert figures["win_score_length_controlled"]["value"] < 60
  slots = [judged(f"p{i}", "a", "b") for i in range(20)]
  true = [judged(f"t{i}", *("aa" if i < 15 else "bb")) for i in range(20)]
  figures = summarise(slots + true)["sw"]
  assert figures["follows_position"]["value"] == 0.5
  assert figures["win_score"]["value"] == 62.5
  assert figures["win_score_without_position"]["value"] == 75
  mean = summarise(slots + true)["mean"]["win_score_without_position"]
  assert (mean["value"], mean["low"]) == (75, None)


def test_agreement_discounts_ties():
  values = (1.0, 0.5, 0.0)
  assert [[agreement_of(x, y) for y in values] for x in values] == [
    [1, 0.5, 0],
    [0.5, 1, 0.5],
    [0, 0.5, 1],
  ]
  table = [
    judged("1", "a", "a", other=1.0),
    judged("2", "a", "b", other=0.0),
    judged("3", "b", "b"),
  ]
  found = summarise(table)["sw"]["agreement"]
  assert (found["value"], found["n"]) == (0.75, 2) and 0 < found["low"] < 0.5 and found["high"] < 1


def test_kappa_is_agreement_beyond_chance():
  """Of 40 that another judge scored too, 30 alike; by chance 20 would be. Those it did not score have no part."""
  table = [judged(f"a{i}", "a", "a", other=1.0) for i in range(15)]
  table += [judged(f"b{i}", "b", "b", other=0.0) for i in range(15)]
  table += [judged(f"c{i}", "a", "a", other=0.0) for i in range(5)]
  table += [judged(f"d{i}", "b", "b", other=1.0) for i in range(5)]
  table += [judged(f"e{i}", "a", "b") for i in range(9)]
  found = summarise(table)["sw"]["kappa"]
  assert (found["value"], found["n"]) == (pytest.approx(0.5), 40)
  assert found["low"] < 0.3 < 0.7 < found["high"]
  assert "kappa" not in summarise(TABLE)["sw"]


def test_a_language_without_a_readable_verdict_has_no_score_and_leaves_no_mean():
  out = summarise([judged(str(i), "a", "a", "en") for i in range(3)] + [judged("0", None, "a")])
  assert (out["sw"]["win_score"]["value"], out["sw"]["win_score"]["n"]) == (None, 0)
  assert out["mean"]["win_score"]["value"] is None
  assert out["sw"]["invalid_rate"]["value"] == 1.0


VERDICTS = st.sampled_from(["a", "b", "tie", None])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(VERDICTS, VERDICTS), min_size=1, max_size=30))
def test_exchanging_the_models_turns_the_score_round_and_leaves_the_rates(verdicts):
  name = {"a": "b", "b": "a", "tie": "tie", None: None}
  mine = summarise([judged(str(i), ab, ba) for i, (ab, ba) in enumerate(verdicts)])["sw"]
  # What was b shown first is now a shown first.
  theirs = [judged(str(i), name[ba], name[ab]) for i, (ab, ba) in enumerate(verdicts)]
  theirs = summarise(theirs)["sw"]
  assert mine.keys() == theirs.keys()
  if "win_score" in mine:
    x, y = mine["win_score"], theirs["win_score"]
    ends = 100 - y["value"], 100 - y["high"], 100 - y["low"]
    assert (x["value"], x["low"], x["high"]) == pytest.approx(ends)
  for metric in ("tie_rate", "order_consistency", "first_slot_rate", "invalid_rate"):
    x, y = mine.get(metric), theirs.get(metric)
    assert x == pytest.approx(y, abs=1e-9)


def test_lengths_count_characters_in_every_script():
  assert length(" é ") == length("e\u0301") == 1
  assert length("你好吗") == 3
  assert length_difference(30, 10) == 0.5 and length_difference(0, 4) == -1
  assert length_difference(0, 0) == 0
