"""Files of rows: every kind reads alike, as a stream, and what is broken is named."""

import gzip
import json

import pytest
from twelve import ANSWERED, ASKED, LANGUAGES
from written import messages, write

from mlit_jax.data import files
from mlit_jax.data.files import BadRow, read_rows
from mlit_jax.data.rows import read_sources
from mlit_jax.errors import UserError


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


def lines(path):
  return [
    (number, raw if isinstance(raw, BadRow) else raw.strip()) for number, raw in read_rows(path)
  ]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_giant_line_is_one_bad_row_and_the_others_are_read(ending, tmp_path, monkeypatch):
  monkeypatch.setattr(files, "MAX_LINE_BYTES", 1 << 20)
  data = (
    b'{"a": 1}\n' + b"x" * (3 << 20) + b'\n{"a": 2}\n' + b"y" * (1 << 20) + b"\n" + b"z" * (2 << 20)
  )
  path = tmp_path / f"a.jsonl{ending}"
  if ending == ".zst":
    data = pytest.importorskip("zstandard").compress(data)
  path.write_bytes(gzip.compress(data) if ending == ".gz" else data)
  found = lines(str(path))
  assert [number for number, _ in found] == [1, 2, 3, 4, 5]
  assert [raw for _, raw in found[::2]][:2] == [b'{"a": 1}', b'{"a": 2}']
  assert found[3][1] == b"y" * (1 << 20)  # exactly as long as is allowed
  for _, bad in (found[1], found[4]):
    assert bad.reason == "giant row" and "longer than 1 MiB" in bad.detail


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_file_that_expands_beyond_reason_is_refused(ending, tmp_path, monkeypatch):
  monkeypatch.setattr(files, "BOMB_BYTES", 4 << 20)
  data = b"\0" * (32 << 20)
  path = tmp_path / f"a.jsonl{ending}"
  path.write_bytes(
    gzip.compress(data) if ending == ".gz" else pytest.importorskip("zstandard").compress(data)
  )
  with pytest.raises(
    UserError, match=f"a.jsonl{ending}: decompression bomb: its .* bytes give more than"
  ):
    list(read_rows(str(path)))
  assert files.BOMB_BYTES < len(data) < 1 << 30  # nor is a small file one, however well it packs
  monkeypatch.setattr(files, "BOMB_BYTES", 1 << 30)
  assert lines(str(path)) == [(1, data)]


def test_a_zst_file_is_read_as_a_stream(tmp_path):
  zstandard = pytest.importorskip("zstandard")
  rows = b"".join(b'{"a": %d}\n' % i for i in range(200_000))
  packed = (
    zstandard.compress(rows[:1000]) + zstandard.compress(rows[1000:]) + zstandard.compress(b"")
  )
  (tmp_path / "a.jsonl.zst").write_bytes(packed)
  assert b"".join(raw for _, raw in read_rows(str(tmp_path / "a.jsonl.zst"))) == rows
  (tmp_path / "b.jsonl.zst").write_bytes(packed[:-20])  # what is whole comes before the error
  read = read_rows(str(tmp_path / "b.jsonl.zst"))
  assert next(read) == (1, b'{"a": 0}\n')
  with pytest.raises(UserError, match="b.jsonl.zst: cannot be read"):
    list(read)


def test_a_json_array_is_read_row_by_row(tmp_path):
  rows = [{"a": "ä" * (i % 700), "b": [i, {"c": "]},"}]} for i in range(5000)] + [
    {},
    {"a": "x" * (3 << 20)},
  ]
  for indent in (None, 1):
    for ending, pack in (("", bytes), (".gz", gzip.compress)):
      path = tmp_path / f"a{indent}.json{ending}"
      path.write_bytes(pack(json.dumps(rows, indent=indent, ensure_ascii=False).encode()))
      assert list(read_rows(str(path))) == list(enumerate(rows, start=1))
  numbers = list(
    range(100_000, 400_000)
  )  # each piece of the file ends within one of them, or after it
  path = tmp_path / "n.json"
  for cut in range(8):
    path.write_text("[\n" + " " * cut + ",\n".join(map(str, numbers)) + "]")
    assert [row for _, row in read_rows(str(path))] == numbers
  for text in ("[]", "[ \n ]\n\n"):
    (tmp_path / "b.json").write_text(text)
    assert list(read_rows(str(tmp_path / "b.json"))) == []


@pytest.mark.parametrize(
  "text, message",
  [
    ("[1, 2", "at row 3 .Expecting"),
    ("[1, 2] x", r"at row 2 .after the array comes 'x'"),
    ("[1 2]", "at row 1 .there is no comma"),
    ("[1, ]", "at row 2"),
    ("[" * 100_000, "at row 1 .*recursion"),
    ('[1, "\\ud8', "at row 2"),
  ],
)
def test_a_broken_array_is_named_with_its_row(text, message, tmp_path):
  (tmp_path / "a.json").write_text(text)
  with pytest.raises(UserError, match=f"a.json: broken JSON array {message}"):
    list(read_rows(str(tmp_path / "a.json")))


def test_an_array_that_is_not_utf8(tmp_path):
  (tmp_path / "a.json").write_bytes(b'[{"a": "\xff"}]')
  with pytest.raises(UserError, match="a.json: byte 0xff is not UTF-8"):
    list(read_rows(str(tmp_path / "a.json")))


def test_an_arrow_stream_that_was_cut_off_between_two_batches_is_refused(tmp_path):
  pa = pytest.importorskip("pyarrow")
  table = pa.table({"a": [1, 2, 3]})
  path = str(tmp_path / "a.arrow")
  with pa.ipc.new_stream(path, table.schema) as writer:
    writer.write_table(table, max_chunksize=1)
  assert [row["a"] for _, row in read_rows(path)] == [1, 2, 3]
  with pa.ipc.new_file(str(tmp_path / "b.arrow"), table.schema) as writer:
    writer.write_table(table)
  assert [row["a"] for _, row in read_rows(str(tmp_path / "b.arrow"))] == [1, 2, 3]
  data = (tmp_path / "a.arrow").read_bytes()
  for cut in (8, 100, len(data) - 10, len(data)):
    (tmp_path / "c.arrow").write_bytes(data[: len(data) - cut])
    with pytest.raises(UserError, match="c.arrow: row .* cannot be read"):
      list(read_rows(str(tmp_path / "c.arrow")))


def test_a_long_or_deep_value_is_shown_by_its_beginning():
  deep = []
  for _ in range(100_000):
    deep = [deep]
  for value in (
    "x" * (1 << 20),
    deep,
    [["y"] * 99] * 99,
    {str(i): i for i in range(999)},
    10**4000,
  ):
    assert len(files.shorten(value)) <= 60
  assert files.shorten(["user", "q"]) == "['user', 'q']"
