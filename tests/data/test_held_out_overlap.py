import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlit_jax.data.overlap import GRAM, SHARED, make_held_out
from mlit_jax.data.rows import Conversation, Message

ROLES = {"s": "system", "u": "user", "a": "assistant"}


def conversation(roles, *texts, lang="en"):
  messages = tuple(Message(ROLES[r], t) for r, t in zip(roles, texts, strict=True))
  return Conversation(messages, lang, f"{lang}{messages}", None, "made up", "made up:1")


def words(first, last):
  return " ".join(f"w{i}" for i in range(first, last))


HELD = make_held_out(
  [
    conversation("sua", words(900, 930), "What is the capital of France?", "Paris."),
    conversation("ua", words(0, 40), words(100, 140)),
    conversation("uaua", "Hello there", "Hi", "And of Spain?", "Madrid"),
    conversation("ua", "今天天气怎么样，我们要不要一起去公园散步呢？", "好"),
  ]
)


@pytest.mark.parametrize(
  "roles, texts, expected",
  [
    ("ua", ["What is the capital of France?", "Lyon."], "exact"),
    ("ua", ["  WHAT is the\ncapital of ｆrance?", "Lyon."], "exact"),
    ("sua", ["Be brief.", "What is the capital of France?", "Lyon."], "exact"),
    ("uaua", ["What is the capital of France?", "Paris.", "Thanks", "."], "exact"),
    ("uaua", ["Hello there", "Hi", "And of Spain?", "I do not know"], "exact"),
    ("ua", [words(900, 930) + " What is the capital of France?", "Paris."], "exact"),
    ("ua", ["Hello there", "Hi"], None),  # no question of theirs, only how one began
    ("uaua", ["Hello", "Hi", "What is the capital of France?", "Paris."], None),
    ("ua", ["Tell me: what is the capital of France?", "Paris."], None),
    ("ua", [words(900, 930), "of a system text"], None),
    ("ua", ["Go on", "x " + words(3, 3 + GRAM) + " y"], "13-gram"),
    ("ua", ["Go on", "x " + words(3, 3 + GRAM - 1) + " y"], None),
    ("ua", ["x, " + words(110, 110 + GRAM).upper() + "!", "y"], "13-gram"),
    ("sua", [words(0, 40), "Go on", "y"], None),  # what a system text shares is not asked
    ("ua", [words(35, 40), words(100, 105)], None),
    ("ua", ["他说今天天气怎么样，我们要不要一起去", "好"], "13-gram"),
    ("ua", ["他说今天天气怎么样，我们要不要", "好"], None),
  ],
)
def test_overlap(roles, texts, expected):
  assert HELD.overlap(conversation(roles, *texts)) == expected


def test_every_held_out_row_overlaps_itself_in_any_language():
  for lang in ("en", "sw"):
    assert HELD.overlap(conversation("ua", words(0, 40), "x", lang=lang)) == "exact"


@pytest.mark.parametrize("rows, expected", [(SHARED, "13-gram"), (SHARED + 1, None)])
def test_the_wording_of_a_task_is_no_overlap(rows, expected):
  held = [conversation("ua", f"{words(0, 20)} : {i}", f"a{i}") for i in range(rows)]
  row = conversation("ua", f"{words(0, 20)} : new", "b")
  assert make_held_out(held).overlap(row) == expected
  assert make_held_out(held * 3).overlap(row) == expected  # the same rows in several sets


def test_no_held_out_rows():
  assert make_held_out([]).overlap(conversation("ua", words(0, 40), "x")) is None


@given(
  st.lists(st.sampled_from("abcd"), min_size=0, max_size=40),
  st.lists(st.sampled_from("abcd"), min_size=1, max_size=40),
)
def test_overlap_is_a_common_gram_or_the_same_prompt(theirs, ours):
  def grams(units):
    return {tuple(units[i : i + GRAM]) for i in range(len(units) - GRAM + 1)}

  held = make_held_out([conversation("ua", " ".join(theirs) or "?", "answer")])
  found = held.overlap(conversation("ua", " ".join(ours), "other"))
  expected = "exact" if theirs == ours else "13-gram" if grams(theirs) & grams(ours) else None
  assert found == expected
