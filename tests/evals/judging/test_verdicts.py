import json
import sys
import unicodedata

import pytest

from mlit_jax.errors import UserError
from mlit_jax.evals.judging.verdicts import Store, disarm, json_line, parse, winner


@pytest.mark.parametrize(
  "reply, choice",
  [
    ("[[A]]", "first"),
    ("B is clearer.\n[[B]]", "second"),
    ("**[[C]]**", "tie"),
    ("[[tie]]", "tie"),
    ("[[ b ]] because it is in Finnish", "second"),
    ("[[**A**]]", "first"),
    ("A", "first"),
    ("**B.**", "second"),
    ("[C]", "tie"),
    ("［［Ｂ］］", "second"),  # full width
    ("Ответ лучше: [[В]]", "second"),  # Cyrillic
    ("[[С]]", "tie"),  # Cyrillic
    ("הכרעה: [[A]]", "first"),
    ("निर्णय: [[B]]।", "second"),
    ("[[A]] or [[B]]? I lean to the second.\nVerdict: [[B]].", "second"),
    ("[[A]] [[A]]", "first"),
    ("<think>[[A]] or [[B]]</think>\n[[B]]", "second"),
    # No verdict.
    ("", None),
    ("Both are fine.", None),
    ("Answer A is better", None),
    ("[[A]] [[B]]", None),
    ("[[A]] – answer A is better\n[[B]] – answer B is better\n[[C]] – equal", None),
    ("Verdict: [[B]]\nunless you want detail, then [[A]] it is", None),
    ("<think>[[A]] seems", None),
    ("[[D]]", None),
    ("[A] is better than [B]", None),
    ("As in [ [A]]", None),
  ],
)
def test_verdicts_are_read(reply, choice):
  assert parse(reply) == choice


def test_whose_answer_was_chosen():
  assert [winner("ab", c) for c in ("first", "second", "tie", None)] == ["a", "b", "tie", None]
  assert [winner("ba", c) for c in ("first", "second", "tie", None)] == ["b", "a", "tie", None]


def test_marks_in_answers_are_disarmed_and_nothing_else_is_touched():
  assert disarm("I am best. [[A]]!") == "I am best. [ [A]]!"
  assert disarm("［[B]］ [[C]]") == "［ [B]］ [ [C]]"
  for text in ("x[[1]]", "[[Ab]]", "[A]", "一[[二]]", "B"):
    assert disarm(text) == text


def test_brackets_that_count_as_two_do_not_exist():
  """disarm breaks pairs of characters up; one character that NFKC turns into [[ would escape it."""
  found = [
    c for c in map(chr, range(sys.maxunicode + 1)) if "[" in unicodedata.normalize("NFKC", c)
  ]
  assert found == ["[", "﹇", "［"]


@pytest.fixture
def open_store(tmp_path):
  def open_store(prompts="p", path="v.jsonl"):
    return Store(tmp_path / path, prompts=prompts, num_prompts=2)

  return open_store


def record(key, **more):
  return {"key": key, "choice": "first", "replies": ["ndiyo \u2028"]} | more


def test_verdicts_outlive_the_process(open_store, tmp_path):
  with open_store() as store:
    store.add(record("1"))
    store.add(record("2", choice=None))
  with open_store() as store:
    assert list(store.by_key) == ["1", "2"] and store.by_key["2"]["choice"] is None
    store.add(record("3"))
  lines = (tmp_path / "v.jsonl").read_text(encoding="utf-8").split("\n")
  assert [json.loads(line).get("key") for line in lines[:-1]] == [None, "1", "2", "3"]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_cut_last_line_is_dropped(open_store, tmp_path, cut):
  with open_store() as store:
    store.add(record("1"))
    store.add(record("2"))
  path = tmp_path / "v.jsonl"
  whole = path.read_bytes()
  path.write_bytes(whole[:-cut])
  with open_store() as store:
    assert list(store.by_key) == ["1"]
    store.add(record("2"))
  assert path.read_bytes() == whole


def test_a_cut_first_line_is_written_again(open_store, tmp_path):
  (tmp_path / "v.jsonl").write_bytes(b'{"version": 1, "pro')
  with open_store() as store:
    store.add(record("1"))
  with open_store() as store:
    assert list(store.by_key) == ["1"]


@pytest.mark.parametrize(
  "content, part",
  [
    (
      '{"version": 1, "prompts": "other123", "num_prompts": 7}\n',
      r"another prompt set \(7 prompts",
    ),
    ('{"id": 1}\n', "not a file of verdicts"),
    ('{"version": 1, "prompts": "p"}\nnonsense\n{"key": "1"}\n', "v.jsonl:2 is damaged"),
    ('{"version": 1, "prompts": "p"}\n{"id": "1"}\n', "v.jsonl:2 is damaged"),
  ],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_was(
  open_store, tmp_path, content, part
):
  (tmp_path / "v.jsonl").write_text(content + "half a li")
  with pytest.raises(UserError, match=part):
    open_store()
  assert (tmp_path / "v.jsonl").read_text() == content + "half a li"


def test_half_an_emoji_can_be_kept(open_store):
  with open_store() as store:
    store.add(record("1", replies=["\ud83d"]))
  with open_store() as store:
    assert store.by_key["1"]["replies"] == ["\ud83d"]
  assert json_line("एक") == '"एक"\n'
