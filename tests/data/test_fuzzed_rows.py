"""10,000 damaged rows: each is used, or counted under a named reason; nothing else is ever raised."""

import copy
import json
import random

import pytest
from twelve import ANSWERED, ASKED, LANGUAGES
from written import messages

from mlit_jax.data.rows import BadRow, Conversation, parse_row, read_sources
from mlit_jax.data.sources import FORMATS, open_sources
from mlit_jax.errors import UserError

REASONS = {
  "broken JSON", "bad UTF-8", "unknown shape", "unknown role", "roles", "empty answer", "empty question",
  "not text", "tool calls", "lone surrogate", "other language", "unknown language", "no language",
  "duplicate", "deleted", "unsure language",
}  # fmt: skip
ODD = [
  None, True, 0, -1, 10**30, 1e308, float("nan"), float("inf"), "", " \u3000", "\ud83d", "\x00", "\u2028", "a" * 5000, [], {}, [[]],
  [None], {"a": {}}, ["q", "a"], ["q", 3], [{}], {"role": ["user"], "content": ["q"]}, {"role": [], "content": []}, "xx", "en-", "und",
]  # fmt: skip


def shapes(lang):
  """One good row of every shape."""
  q, a = ASKED[lang], ANSWERED[lang]
  tree = {
    "message_id": "1",
    "parent_id": None,
    "role": "prompter",
    "text": q,
    "lang": lang,
    "rank": None,
    "deleted": False,
  }
  reply = {**tree, "message_id": "2", "parent_id": "1", "role": "assistant", "text": a, "rank": 0}
  return [
    {"messages": [{"role": "system", "content": "s"}, *messages(q, a, q, a)], "lang": lang, "group_id": "g1"},
    {"messages": {"role": ["user", "assistant"], "content": [q, a]}, "language": lang},
    {"prompt": q, "completion": a, "lang": lang, "system": "s", "id": 7},
    {"prompt": messages(q), "completion": [{"role": "assistant", "content": a}], "language_code": lang},
    {"instruction": q, "input": "", "output": a, "lang": lang},
    {"inputs": q, "targets": a, "lang": lang, "group_id": 3},
    {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}], "lang": lang},
    {"conversations": [q, a, q, a], "lang": lang},
    {"message_tree_id": "1", "prompt": {**tree, "replies": [reply, {**reply, "rank": 1}]}},
    {**tree, "replies": [reply]},
  ]  # fmt: skip


def damaged(row, rng) -> bytes:
  """A line of JSON made from a row, with one to three faults."""
  row = copy.deepcopy(row)
  for _ in range(rng.randint(1, 3)):
    at, key = rng.choice(list(places(row)) or [(row, "messages")])
    old, odd = (at.get(key) if isinstance(at, dict) else at[key]), copy.deepcopy(rng.choice(ODD))
    fault = rng.randrange(9)
    if fault == 0 and at:
      del at[key]
    elif fault == 1:
      at[key] = odd
    elif fault == 2:
      at[key] = rng.choice([[old], {"x": old}, {"role": old}, str(old), [old, old]])
    elif fault == 3 and isinstance(at, dict):
      at[rng.choice(["role", "messages", "lang", "prompt", "replies", "rank", "content", "\ud83d"])] = odd  # fmt: skip
    elif fault == 4 and isinstance(at, list):
      rng.shuffle(at)
    elif fault > 4:
      break
  text = json.dumps(row, ensure_ascii=rng.random() < 0.5)
  data = (damaged_text(text, fault, rng) if fault > 4 else text).encode("utf-8", "surrogatepass")
  if fault == 8:
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
      data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  return bytes(data)


def damaged_text(text, fault, rng):
  at = rng.randrange(len(text) + 1)
  if fault == 5:
    return text[:at]
  if fault == 6:
    return (
      text[:at]
      + rng.choice(["{", "[" * 3000, "9" * 5000, '"', "\\ud800", "NaN", "\u2028", ","])
      + text[at:]
    )
  if fault == 8:
    return text
  return text[:-1] + ', "lang": "sw", "messages": ["q", "a"]}'  # keys twice


def places(value):
  """(container, key) of everything in a JSON value."""
  for key in list(value) if isinstance(value, dict) else range(len(value)):
    yield value, key
    if isinstance(value[key], dict | list):
      yield from places(value[key])


def fuzzed(count, seed):
  rng = random.Random(seed)
  rows = [row for lang in LANGUAGES for row in shapes(lang)]
  return [damaged(rng.choice(rows), rng) for _ in range(count)]


def test_every_shape_is_good_before_it_is_damaged(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in shapes("fi")))
  rows = read_sources({"fi": str(path)})
  assert len(rows.conversations) + sum(rows.dropped.values()) == 10
  assert {reason for _, reason in rows.dropped} == {"duplicate"}


def test_ten_thousand_damaged_rows_are_used_or_counted(tmp_path):
  good = json.dumps(shapes("en")[2]).encode()  # an array in the first line would be a whole file
  data = b"\n".join([good, *fuzzed(10_000, seed=1)])
  (tmp_path / "a.jsonl").write_bytes(data)
  rows = read_sources([str(tmp_path / "a.jsonl")], drop_bad=True)
  lines = [line for line in data.split(b"\n") if line.strip()]
  assert len(lines) >= 9_900
  assert len(rows.conversations) + sum(rows.dropped.values()) == len(lines)
  found = {reason for _, reason in rows.dropped}
  assert found <= REASONS
  assert len(found) >= 14  # the damage is of every kind
  assert len(rows.conversations) > 200
  for c in rows.conversations:
    json.dumps([c.lang, c.group_id, *(m.content for m in c.messages)], ensure_ascii=False).encode()


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_rows_of_an_explicit_format(form, tmp_path):
  (tmp_path / "a.jsonl").write_text(json.dumps(shapes("en")[9] | shapes("en")[0] | shapes("en")[2] | shapes("en")[4] | shapes("en")[5] | shapes("en")[7]))  # fmt: skip
  (source,) = open_sources([{"path": str(tmp_path / "a.jsonl"), "format": form}])
  used = 0
  for number, line in enumerate(fuzzed(1000, seed=form), start=1):
    try:
      assert isinstance(parse_row(line, source, number), Conversation)
      used += 1
    except BadRow as bad:
      assert bad.reason in REASONS and bad.detail and bad.remedy
  assert used > 10


def test_damaged_messages_of_trees(tmp_path):
  rng = random.Random(2)
  lines = []
  for i in range(1000):
    row = {"message_id": str(i), "parent_id": str(i - 1) if i % 5 else None, "role": ("prompter", "assistant")[i % 5 % 2], "text": f"x{i}", "lang": "fi", "rank": 0, "deleted": False}  # fmt: skip
    lines.append(json.dumps(row).encode() if i == 0 or rng.random() < 0.5 else damaged(row, rng))
  (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
  rows = read_sources([str(tmp_path / "a.jsonl")], drop_bad=True)
  assert {reason for _, reason in rows.dropped} <= REASONS | {"no parent"}
  assert len(rows.conversations) > 10 and sum(rows.dropped.values()) > 100


def test_damaged_files_raise_only_the_documented_error(tmp_path):
  rng = random.Random(3)
  for i in range(300):
    rows = [rng.choice(shapes(rng.choice(LANGUAGES))) for _ in range(3)]
    data = bytearray(json.dumps(rows, indent=rng.choice([None, 1])).encode())
    for _ in range(rng.randint(0, 2)):
      data[rng.randrange(len(data))] = rng.randrange(256)
    path = tmp_path / f"{i}.json"
    path.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
    try:
      read_sources([str(path)], drop_bad=True)
    except UserError as error:
      assert str(path) in str(error)
