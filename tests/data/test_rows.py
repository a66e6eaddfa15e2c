import gzip
import json

import pytest
from twelve import ANSWERED, ASKED, LANGUAGES

from mlit_jax.data.rows import Message, read_sources
from mlit_jax.errors import UserError

Q, A = Message("user", "q"), Message("assistant", "a")


def write(path, rows, *, ascii=False):
  lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=ascii) for row in rows]
  path.write_bytes("".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass"))
  return str(path)


def messages(*contents, roles=("user", "assistant")):
  return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def read_one(tmp_path, row, **kwargs):
  return read_sources({"sw": [write(tmp_path / "a.jsonl", [row])]}, **kwargs).conversations[0]


@pytest.mark.parametrize(
  "row, expected",
  [
    ({"messages": messages("q", "a")}, (Q, A)),
    ({"messages": messages("q", "a"), "prompt": "other"}, (Q, A)),
    (
      {"messages": [{"role": "system", "content": "s"}, *messages("q", "a", "q", "a")]},
      (Message("system", "s"), Q, A, Q, A),
    ),
    ({"messages": messages("q", "a", roles=("prompter", "Bot"))}, (Q, A)),
    ({"prompt": "q", "completion": "a"}, (Q, A)),
    ({"prompt": messages("q"), "completion": [{"role": "assistant", "content": "a"}]}, (Q, A)),
    ({"prompt": messages("q", "a", "q"), "completion": "a"}, (Q, A, Q, A)),
    ({"instruction": "q", "input": "", "output": "a"}, (Q, A)),
    ({"instruction": "q", "output": "a"}, (Q, A)),
    ({"instruction": "q", "input": "i", "output": "a"}, (Message("user", "q\n\ni"), A)),
    ({"inputs": "q", "targets": "a"}, (Q, A)),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, (Q, A)),
    ({"conversations": ["q", "a", "q", "a"]}, (Q, A, Q, A)),
    ({"prompt": "q", "completion": "a", "system": "s"}, (Message("system", "s"), Q, A)),
    ({"prompt": "q", "completion": "a", "system": ""}, (Q, A)),
  ],
)
def test_every_shape_becomes_the_same_record(row, expected, tmp_path):
  assert read_one(tmp_path, row).messages == expected


def test_text_is_kept_as_it_is(tmp_path):
  content = " \tq\u2028\u00a0e\u0301\r\n\n"
  found = read_one(tmp_path, {"messages": messages(content, "\n a ")})
  assert [m.content for m in found.messages] == [content, "\n a "]
  for lang in LANGUAGES:
    found = read_sources(
      {lang: [write(tmp_path / "b.jsonl", [{"messages": messages(ASKED[lang], ANSWERED[lang])}])]}
    )
    assert [m.content for m in found.conversations[0].messages] == [ASKED[lang], ANSWERED[lang]]


def test_files_plain_packed_and_in_columns_read_alike(tmp_path):
  pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
  zstandard = pytest.importorskip("zstandard")
  rows = [
    {"messages": messages(ASKED[lang], ANSWERED[lang]), "lang": lang, "group_id": 7}
    for lang in LANGUAGES
  ]
  plain = (
    tmp_path / "a.jsonl",
    tmp_path / "b.jsonl.gz",
    tmp_path / "c.jsonl.zst",
    tmp_path / "d.parquet",
    tmp_path / "e.json",
  )
  write(plain[0], rows)
  data = plain[0].read_bytes()
  plain[1].write_bytes(gzip.compress(data[:500]) + gzip.compress(data[500:]))
  plain[2].write_bytes(zstandard.compress(data[:500]) + zstandard.compress(data[500:]))
  pq.write_table(pa.Table.from_pylist(rows), plain[3])
  plain[4].write_text("\ufeff " + json.dumps(rows, indent=1), encoding="utf-8")
  read = [read_sources([str(path)]).conversations for path in plain]
  for path, found in zip(plain, read, strict=True):
    assert [c.lang for c in found] == list(LANGUAGES)
    assert [c.messages for c in found] == [c.messages for c in read[0]]
    assert [c.example_id for c in found] == [c.example_id for c in read[0]]
    assert {c.group_id for c in found} == {"7"} and {c.source for c in found} == {str(path)}
    assert [c.place for c in found] == [f"{path}:{i}" for i in range(1, 13)]


def test_columns_that_a_row_of_parquet_leaves_empty_are_not_there(tmp_path):
  pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
  rows = [
    {"messages": messages("q", "a"), "inputs": None, "targets": None},
    {"messages": None, "inputs": "q", "targets": "b"},
  ]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
  found = read_sources({"fi": [str(tmp_path / "a.parquet")]}).conversations
  assert [c.messages[-1].content for c in found] == ["a", "b"]


def test_globs_are_sorted_and_blank_lines_counted_but_not_read(tmp_path):
  for name in ("b", "a", "c"):
    write(tmp_path / f"{name}.jsonl", ["", {"prompt": name, "completion": "x"}, "  "])
  write(tmp_path / "odd[1].jsonl", [{"prompt": "odd", "completion": "x"}])
  found = read_sources({"en": str(tmp_path / "?.jsonl")}).conversations
  assert [c.messages[0].content for c in found] == ["a", "b", "c"]
  assert found[0].place.endswith("a.jsonl:2")
  assert len(read_sources({"en": [str(tmp_path / "odd[1].jsonl")]}).conversations) == 1


def test_the_language_comes_from_the_config_or_the_row(tmp_path):
  row = {"prompt": "q", "completion": "a"}
  assert read_one(tmp_path, row | {"lang": "swh_Latn"}).lang == "sw"
  path = write(
    tmp_path / "b.jsonl",
    [
      row | {"language": "Standard Arabic", "language_code": "arb"},
      row | {"tongue": "fin", "lang": "de"},
    ],
  )
  assert [c.lang for c in read_sources([path]).conversations] == ["ar", "de"]
  with pytest.raises(UserError, match="none of tongue is set"):
    read_sources([path], language_field="tongue")
  assert [
    c.lang for c in read_sources({"zh-CN": [write(tmp_path / "c.jsonl", [row])]}).conversations
  ] == ["zh"]


def test_the_id_is_that_of_language_and_messages_only(tmp_path):
  first = read_one(tmp_path, {"messages": messages("q", "a"), "id": 1, "group_id": "g"})
  again = read_one(tmp_path, {"inputs": "q", "targets": "a", "id": 2})
  assert first.example_id == again.example_id and len(first.example_id) == 32
  assert first.example_id != read_one(tmp_path, {"inputs": "q ", "targets": "a"}).example_id
  path = write(tmp_path / "a.jsonl", [{"inputs": "q", "targets": "a"}])
  assert first.example_id != read_sources({"fi": [path]}).conversations[0].example_id
  assert (first.group_id, again.group_id) == ("g", None)


def test_duplicates_are_dropped_and_counted_by_language(tmp_path):
  row = {"prompt": "q", "completion": "a"}
  path = write(
    tmp_path / "a.jsonl",
    [row, row | {"id": 5}, {"inputs": "q", "targets": "a"}, row | {"completion": "b"}],
  )
  rows = read_sources({"sw": [path], "fi": [path, path]})
  assert len(rows.conversations) == 4
  assert rows.dropped == {("sw", "duplicate"): 2, ("fi", "duplicate"): 6}


BAD = [
  ("{broken", "broken JSON", "broken JSON .*'{broken'.*one JSON object a line"),
  ('"text"', "unknown shape", "the row is 'text', not an object"),
  ({"text": "q"}, "unknown shape", r"unknown shape, with keys \['text'\].*Accepted: messages"),
  ({"messages": []}, "unknown shape", r"messages is \[\]"),
  ({"messages": [["user", "q"]]}, "unknown shape", r"messages\[0\] is \['user', 'q'\]"),
  ({"messages": messages("q", "a", roles=("user", "tool"))}, "unknown role", r"messages\[1\] has the role 'tool'.*Roles are system"),
  ({"messages": messages("q", "a", roles=("user", "user"))}, "roles", "turn 1 has the role 'user'; expected 'assistant'"),
  ({"messages": messages("a", "q", roles=("assistant", "user"))}, "roles", "turn 0 has the role 'assistant'"),
  ({"messages": [*messages("q", "a"), {"role": "system", "content": "s"}]}, "roles", "turn 2 has the role 'system'"),
  ({"messages": messages("q", "a", "q")}, "roles", "the last turn is 'user'.*End the conversation"),
  ({"conversations": ["q"]}, "roles", "the last turn is 'user'"),
  ({"messages": [{"role": "system", "content": "s"}]}, "roles", "the last turn is 'system'"),
  ({"messages": [{"role": "system", "content": "s"}, *messages("q", "a")], "system": "t"}, "roles", "a `system` column and"),
  ({"prompt": "q", "completion": " \n\u3000"}, "empty answer", r"turn 1 \(assistant\) is empty: ' \\n"),
  ({"prompt": "", "completion": "a"}, "empty question", r"turn 0 \(user\) is empty"),
  ({"prompt": "q", "completion": 3}, "not text", "completion is 3, not text"),
  ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]}, "not text", "content is None"),
  ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tool_calls": [1]}]}, "tool calls", "calls tools"),
  ('{"prompt": "q \\ud83d", "completion": "a"}', "lone surrogate", r"the lone surrogate '\\ud83d'"),
  ({"prompt": "q", "completion": "a", "lang": "fi"}, "other language", "says lang = 'fi' .fi., but its file is listed under 'sw'"),
  ({"prompt": "q", "completion": "a", "lang": "swahilli"}, "unknown language", "'swahilli' is not a language.*Did you mean 'sw'"),
]  # fmt: skip


@pytest.mark.parametrize("row, reason, message", BAD)
def test_a_bad_row_is_one_clear_error_or_one_counted_drop(row, reason, message, tmp_path):
  good = {"prompt": "good", "completion": "a"}
  path = write(tmp_path / "a.jsonl", [good, row, good | {"prompt": "too"}])
  with pytest.raises(UserError, match=rf"a\.jsonl:2: .*{message}"):
    read_sources({"sw": [path]})
  rows = read_sources({"sw": [path]}, drop_bad=True)
  assert [c.messages[0].content for c in rows.conversations] == ["good", "too"]
  assert rows.dropped == {("sw", reason): 1}


def test_bytes_that_are_not_utf8(tmp_path):
  for bad in (
    b"\xff",
    b"\xed\xa0\x80",
  ):  # the second is a surrogate, which a lenient reader lets through
    (tmp_path / "a.jsonl").write_bytes(
      b'{"prompt": "' + bad + b'", "completion": "a"}\n{"prompt": "q", "completion": "a"}'
    )
    with pytest.raises(
      UserError, match=rf"a\.jsonl:1: byte {bad[0]:#x} at 12 of the line is not UTF-8"
    ):
      read_sources({"sw": [str(tmp_path / "a.jsonl")]})
    rows = read_sources({"sw": [str(tmp_path / "a.jsonl")]}, drop_bad=True)
    assert len(rows.conversations) == 1 and rows.dropped == {("sw", "bad UTF-8"): 1}


def test_a_row_without_language(tmp_path):
  path = write(
    tmp_path / "a.jsonl",
    [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "", "lang": "fin"}],
  )
  with pytest.raises(
    UserError, match=r"a\.jsonl:1: the row has no language: none of lang, language_code, language"
  ):
    read_sources([path])
  assert read_sources([path], drop_bad=True).dropped == {
    ("?", "no language"): 1,
    ("fi", "empty answer"): 1,
  }


def test_files_that_cannot_be_read(tmp_path):
  write(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a"}] * 50)
  data = (tmp_path / "a.jsonl").read_bytes()
  for name, message in {
    "missing.jsonl": r"data.train\['sw'\]: .*missing.jsonl' does not exist",
    "*.jsonl.gz": r"data.train\['sw'\]: .*matches no file",
    "": "is a folder. Name its files",
  }.items():
    with pytest.raises(UserError, match=message):
      read_sources({"sw": [str(tmp_path / name)]})
  (tmp_path / "a.csv").write_text("x")
  (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(data)[:-12])
  (tmp_path / "no.jsonl.gz").write_bytes(data)
  (tmp_path / "no.parquet").write_bytes(data)
  (tmp_path / "no.json").write_bytes(b"[{]")
  for name in ("a.csv", "cut.jsonl.gz", "no.jsonl.gz", "no.parquet", "no.json"):
    with pytest.raises(UserError, match=f"{name}: "):
      read_sources({"sw": [str(tmp_path / name)]}, drop_bad=True)


def test_a_zst_file_that_was_cut_off_is_not_taken_for_a_whole_one(tmp_path):
  zstandard = pytest.importorskip("zstandard")
  data = b"".join(
    json.dumps({"prompt": str(i), "completion": "a"}).encode() + b"\n" for i in range(40000)
  )
  packed = zstandard.compress(data)
  (tmp_path / "a.jsonl.zst").write_bytes(packed[: len(packed) // 2])
  with pytest.raises(
    UserError, match="a.jsonl.zst: cannot be read .the compressed data ends too early"
  ):
    read_sources({"sw": [str(tmp_path / "a.jsonl.zst")]}, drop_bad=True)
  (tmp_path / "b.jsonl.zst").write_bytes(b"not packed")
  with pytest.raises(UserError, match="b.jsonl.zst: cannot be read"):
    read_sources({"sw": [str(tmp_path / "b.jsonl.zst")]})


def test_the_config_must_make_sense(tmp_path):
  path = write(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a"}])
  for train, message in [
    ({}, "is {}; expected"),
    (path, "expected {language: .files.}"),
    ({"sw": []}, r"data.train\['sw'\] lists no file"),
    ({"sw": [path], "swh": [path]}, "names the language 'sw' twice, as 'sw' and 'swh'"),
    ({"swahilli": [path]}, "data.train: 'swahilli' is not a language"),
  ]:
    with pytest.raises(UserError, match=message):
      read_sources(train)
  with pytest.raises(UserError, match=r"eval.sets\['x'\]: "):
    read_sources({"swahilli": [path]}, where="eval.sets['x']")
