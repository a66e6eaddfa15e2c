"""Trees of messages become their best-ranked conversations."""

import json
from pathlib import Path

import pytest
from written import write

from mlit_jax.data.rows import read_sources
from mlit_jax.data.sources import open_sources
from mlit_jax.errors import UserError

OASST = Path(__file__).parents[3] / "shared/data/oasst1_en_fi/original-data/en-validation.jsonl"


def message(name, parent, text=None, *, rank=None, lang="sw", **more):
  role = "prompter" if name.startswith("q") else "assistant"
  return {"message_id": name, "parent_id": parent, "role": role, "text": text or name, "lang": lang, "rank": rank, **more}  # fmt: skip


# The example of trees.py.
TREE = [
  message("q", None),
  message("a", "q", rank=1),
  message("b", "q", rank=0),
  message("qr", "b"),
  message("c", "qr", rank=1),
  message("d", "qr", rank=0),
]


def nested(rows):
  by = {row["message_id"]: dict(row, replies=[]) for row in rows}
  for row in rows:
    if row["parent_id"] is not None:
      by[row["parent_id"]]["replies"].append(by[row["message_id"]])
  return by[rows[0]["message_id"]]


def read(tmp_path, rows, **entry):
  path = write(tmp_path / "a.jsonl", rows)
  found = read_sources([{"path": path, **entry}], drop_bad=True)
  return [[m.content for m in c.messages] for c in found.conversations], found.dropped


def test_the_example(tmp_path):
  expected = ([["q", "b", "qr", "d"]], {})
  assert read(tmp_path, TREE) == expected  # recognised
  assert read(tmp_path, TREE, format="tree") == expected
  assert read(tmp_path, [TREE[0], *TREE[:0:-1]]) == expected  # replies before what they reply to
  assert read(tmp_path, [nested(TREE)]) == expected
  assert read(tmp_path, [{"message_tree_id": "q", "prompt": nested(TREE)}]) == expected
  assert read(tmp_path, [{"prompt": nested(TREE)}], format="tree") == expected


@pytest.mark.parametrize(
  "change, expected",
  [
    ({"b": {"deleted": True}}, ["q", "a"]),
    ({"a": {"rank": float("nan")}}, ["q", "b", "qr", "d"]),  # as a table of numbers has it
    ({"b": {"rank": None}}, ["q", "a"]),  # one without a rank comes after those with one
    ({"a": {"rank": None}, "b": {"rank": None}}, ["q", "a"]),  # without ranks the first
    ({"b": {"rank": 1}}, ["q", "a"]),
    ({"d": {"deleted": True}}, ["q", "b", "qr", "c"]),
    ({"c": {"deleted": True}, "d": {"deleted": True}}, ["q", "b"]),  # no question at the end
  ],
)
def test_the_rule(change, expected, tmp_path):
  rows = [row | change.get(row["message_id"], {}) for row in TREE]
  assert read(tmp_path, rows) == ([expected], {})
  assert read(tmp_path, [nested(rows)]) == ([expected], {})


def test_each_row_that_gives_nothing_is_counted(tmp_path):
  rows = [
    *TREE,
    message("q2", None, deleted=True),
    message("q3", None),
    message("q4", None),
    message("a4", "q4", lang="fi"),
    message("a5", "lost", lang="swh"),
    message("q6", "a6"),
    message("a6", "q6"),  # in a circle
    message("q", None),
    "{broken",
    {"message_id": "x"},
    message("q7", [1]),
  ]
  conversations, dropped = read(tmp_path, rows)
  assert conversations == [["q", "b", "qr", "d"]]
  assert dropped == {
    ("sw", "deleted"): 1,
    ("sw", "roles"): 1,
    ("sw", "other language"): 1,
    ("sw", "no parent"): 3,
    ("?", "duplicate"): 1,
    ("?", "broken JSON"): 1,
    ("?", "unknown shape"): 1,
    ("?", "not text"): 1,
  }
  path = write(tmp_path / "a.jsonl", [*TREE, message("q3", None)])
  with pytest.raises(UserError, match=r"a.jsonl:7: the tree has no answer on its best-ranked path"):
    read_sources([path])


def test_the_place_is_that_of_the_root_and_the_language_that_of_the_messages(tmp_path):
  rows = [TREE[1], *TREE[2:], TREE[0]]
  path = write(tmp_path / "a.jsonl", rows)
  (found,) = read_sources([path]).conversations
  assert (found.place, found.lang, found.group_id) == (f"{path}:6", "sw", None)
  with pytest.raises(UserError, match="a.jsonl:6: the row says lang = 'sw' .sw., but"):
    read_sources({"fi": path})
  unnamed = write(
    tmp_path / "b.jsonl", [{k: v for k, v in row.items() if k != "lang"} for row in TREE]
  )
  assert read_sources({"fi": unnamed}).conversations[0].lang == "fi"


def test_columns_of_messages_are_given_by_name(tmp_path):
  rows = [{"id": r["message_id"], "up": r["parent_id"], "who": r["role"], "says": r["text"], "order": r["rank"], "tongue": "fi"} for r in TREE]  # fmt: skip
  fields = {
    "message_id": "id",
    "parent_id": "up",
    "role": "who",
    "text": "says",
    "rank": "order",
    "group_id": "id",
  }
  path = write(tmp_path / "a.jsonl", rows)
  entry = {"path": path, "format": "tree", "fields": fields, "language_field": "tongue"}
  (found,) = read_sources([entry]).conversations
  assert [m.content for m in found.messages] == ["q", "b", "qr", "d"]
  assert (found.lang, found.group_id) == ("fi", "q")


def test_a_long_thread_needs_no_recursion(tmp_path):
  rows = [message("q0", None)]
  for i in range(1, 5000):
    rows.append(message(("qa"[i % 2]) + str(i), rows[-1]["message_id"]))
  (conversation,), dropped = read(tmp_path, rows)
  assert len(conversation) == 5000 and not dropped


def test_trees_in_a_table(tmp_path):
  pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
  pq.write_table(
    pa.Table.from_pylist(TREE), tmp_path / "a.parquet"
  )  # where a root has no parent_id
  (found,) = read_sources([str(tmp_path / "a.parquet")]).conversations
  assert [m.content for m in found.messages] == ["q", "b", "qr", "d"]


@pytest.mark.skipif(not OASST.exists(), reason="no real sources beside the checkout")
def test_real_trees():
  found = read_sources([str(OASST)], drop_bad=True)
  assert (len(found.conversations), found.dropped) == (188, {("en", "no parent"): 3})
  rows = {}
  for line in OASST.read_text("utf-8").split("\n")[:-1]:
    row = json.loads(line)
    rows[row["message_id"]] = row
  roots = [row for row in rows.values() if row["parent_id"] is None]
  assert len(roots) == len(found.conversations) + sum(
    n for (_, why), n in found.dropped.items() if why != "no parent"
  )
  assert len({c.place for c in found.conversations}) == len(found.conversations)
  for c in found.conversations:
    assert c.messages[-1].role == "assistant" and c.lang == "en"
    at = next(r["message_id"] for r in roots if r["text"] == c.messages[0].content)
    for m in c.messages[1:]:
      replies = [r for r in rows.values() if r["parent_id"] == at and not r["deleted"]]
      taken = min((r for r in replies if r["text"] == m.content), key=lambda r: r["rank"] or 0)
      others = [r["rank"] for r in replies if r is not taken and r["rank"] is not None]
      assert not others or taken["rank"] < min(others)
      at = taken["message_id"]
  assert open_sources([str(OASST)])[0].format is None
