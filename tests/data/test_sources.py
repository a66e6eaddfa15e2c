"""Entries of the config become sources, or one clear error before anything is read."""

import gzip
import json
import pickle

import pytest
from written import messages, write

from mlit_jax.data.rows import read_sources
from mlit_jax.data.sources import Source, open_sources
from mlit_jax.errors import UserError


def test_globs_are_sorted_and_blank_lines_counted_but_not_read(tmp_path):
  for name in ("b", "a", "c"):
    write(tmp_path / f"{name}.jsonl", ["", {"prompt": name, "completion": "x"}, "  "])
  write(tmp_path / "odd[1].jsonl", [{"prompt": "odd", "completion": "x"}])
  found = read_sources({"en": str(tmp_path / "?.jsonl")}).conversations
  assert [c.messages[0].content for c in found] == ["a", "b", "c"]
  assert found[0].place.endswith("a.jsonl:2")
  assert len(read_sources({"en": [str(tmp_path / "odd[1].jsonl")]}).conversations) == 1


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


ROW = {"prompt": "q", "completion": "a"}


def test_an_entry_is_a_source_with_a_name(tmp_path):
  a = write(tmp_path / "a.jsonl", [ROW])
  b = write(tmp_path / "b.jsonl", [ROW | {"prompt": "p"}])
  pattern = str(tmp_path / "*.jsonl")
  sources = open_sources({"swh": [{"path": a, "name": "small"}, pattern], "fi": b})
  assert [(s.name, s.lang, s.path) for s in sources] == [
    ("small", "sw", a), (pattern, "sw", a), (pattern, "sw", b), (b, "fi", b),
  ]  # fmt: skip
  found = read_sources({"sw": [{"path": b, "name": "small"}]}).conversations
  assert [(c.source, c.place) for c in found] == [("small", f"{b}:1")]
  assert open_sources([a, {"path": b}])[1] == Source(b, None, b, "json")
  assert open_sources([a])[0] == pickle.loads(pickle.dumps(open_sources([a])[0]))
  assert len(pickle.dumps(sources[0])) < 600


def test_rows_come_as_they_stand_and_json_is_not_parsed(tmp_path):
  path = write(tmp_path / "a.jsonl", [ROW, "", "{broken"])
  (source,) = open_sources([path])
  assert list(source.rows()) == [(1, json.dumps(ROW).encode() + b"\n"), (3, b"{broken\n")]
  source.rows().close()


def test_columns_are_given_by_name(tmp_path):
  rows = [{"question": "q", "reply": "a", "more": "i", "tongue": "fin", "set": 3, "messages": "no"}]
  path = write(tmp_path / "a.jsonl", rows)

  def read(entry):
    (found,) = read_sources([{"path": path, "language_field": "tongue", **entry}]).conversations
    return [m.content for m in found.messages], found.lang, found.group_id

  fields = {"instruction": "question", "output": "reply"}
  assert read({"fields": fields}) == (["q", "a"], "fi", None)  # `messages` is another column here
  assert read({"fields": fields | {"input": "more", "group_id": "set"}}) == (
    ["q\n\ni", "a"],
    "fi",
    "3",
  )
  assert read({"fields": {"prompt": "question", "completion": "reply", "lang": "tongue", "system": "more"}, "language_field": "lang"}) == (["i", "q", "a"], "fi", None)  # fmt: skip
  swapped = {"inputs": "reply", "targets": "question"}
  assert read({"fields": swapped, "format": "inputs_targets"})[0] == ["a", "q"]


def test_turns_may_have_their_own_keys(tmp_path):
  turns = [{"who": "human", "says": "q", "role": "?"}, {"who": "gpt", "says": "a", "role": "?"}]
  path = write(tmp_path / "a.jsonl", [{"dialogue": turns}])
  entry = {"path": path, "fields": {"messages": "dialogue", "role": "who", "content": "says"}}
  (found,) = read_sources({"sw": entry}).conversations
  assert [(m.role, m.content) for m in found.messages] == [("user", "q"), ("assistant", "a")]
  turns = {"role": ["user", "assistant"], "content": ["q", "a"]}  # as tables keep a list of objects
  (found,) = read_sources({"sw": write(tmp_path / "b.jsonl", [{"messages": turns}])}).conversations
  assert [(m.role, m.content) for m in found.messages] == [("user", "q"), ("assistant", "a")]


def test_an_explicit_format_overrides_what_a_row_looks_like(tmp_path):
  row = {**ROW, "messages": messages("other", "x"), "conversations": ["c", "d"]}
  path = write(tmp_path / "a.jsonl", [row, {"messages": messages("q", "b")}])

  def read(form):
    entry = {"path": path} | ({"format": form} if form else {})
    found = read_sources({"sw": [entry]}, drop_bad=True)
    return [c.messages[0].content for c in found.conversations], found.dropped

  assert read(None) == (["other", "q"], {})
  assert read("messages") == (["other", "q"], {})
  assert read("prompt_completion") == (["q"], {("sw", "unknown shape"): 1})
  assert read("lima") == (["c"], {("sw", "unknown shape"): 1})
  with pytest.raises(
    UserError, match=r"a.jsonl:1: conversations is \['c', 'd'\], which the format 'sharegpt'"
  ):
    read_sources({"sw": {"path": path, "format": "sharegpt"}})
  with pytest.raises(
    UserError, match="a.jsonl:2: the row has no prompt and no completion, which the format"
  ):
    read_sources({"sw": {"path": path, "format": "prompt_completion"}})


@pytest.mark.parametrize(
  "entry, message",
  [
    ({"format": "sharegtp"}, "the format 'sharegtp' is unknown. Did you mean 'sharegpt'"),
    ({"format": "text"}, "the format 'text' is unknown"),
    ({"fileds": {}}, "'fileds' in .* is unknown. Did you mean 'fields'"),
    ({"fields": ["prompt"]}, "fields is .*expected our names and theirs"),
    ({"fields": {"promt": "prompt"}}, "'promt' is no column. Did you mean 'prompt'"),
    ({"fields": {"text": "prompt"}, "format": "messages"}, "'text' is no column of the format 'messages'"),
    ({"fields": {"prompt": 3}}, r"fields\['prompt'\] is 3"),
    ({"fields": {"prompt": "promtp"}}, r"a.jsonl: fields\['prompt'\] is 'promtp', which none of the first .*Did you mean 'prompt'"),
    ({"fields": {"input": "promptt"}}, r"fields\['input'\] is 'promptt'"),
    ({"format": "instruction"}, "none of the first .* rows is of the format 'instruction', which needs instruction and output. Their keys are completion, prompt"),
    ({"format": "tree"}, "is of the format 'tree', which needs message_id and role and text"),
    ({"data_dir": "x"}, "data_dir is for tfds"),
    ({"config": "x"}, "config is for hf"),
    ({"name": 3}, "name is 3, not text"),
    ({"path": None}, 'has no "path"'),
    ({"path": 3}, "path is 3, not text"),
  ],
)  # fmt: skip
def test_a_wrong_entry_is_one_error_before_anything_is_read(entry, message, tmp_path):
  path = write(tmp_path / "a.jsonl", [ROW, "{broken"])
  with pytest.raises(UserError, match=rf"data.train\['sw'\]: .*{message}"):
    open_sources({"sw": {"path": path, **entry}})


def test_other_wrong_configs(tmp_path):
  path = write(tmp_path / "a.jsonl", [ROW])
  for train, message in [
    ({"path": path}, "is one entry, .*Put it in a list"),
    ([{"format": "messages"}], 'has no "path"'),
    ([3], "has 3 where the name of a file is expected"),
  ]:
    with pytest.raises(UserError, match=message):
      open_sources(train)
  for wrong in ("sw", 3, ["swahilli"]):
    with pytest.raises(UserError, match="detect_language"):
      open_sources([path], detect_language=wrong)


def test_a_column_that_begins_empty_is_found_in_a_table(tmp_path):
  pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
  rows = [{"q": str(i), "a": "b", "i": None} for i in range(1500)] + [
    {"q": "q", "a": "b", "i": "x"}
  ]
  pq.write_table(
    pa.Table.from_pylist(rows, pa.schema([(k, pa.string()) for k in "qai"])), tmp_path / "a.parquet"
  )
  fields = {"instruction": "q", "output": "a", "input": "i"}
  found = read_sources(
    {"sw": {"path": str(tmp_path / "a.parquet"), "fields": fields}}
  ).conversations
  assert [c.messages[0].content for c in found[-2:]] == ["1499", "q\n\nx"]


def test_the_digest_is_of_contents_and_settings(tmp_path):
  path = write(tmp_path / "a.jsonl", [ROW])
  same = write(tmp_path / "b.jsonl", [ROW])
  first = open_sources([path])[0].digest()
  assert len(first) == 32 and first == open_sources([{"path": same, "name": "x"}])[0].digest()
  other = [
    open_sources({"sw": path}),
    open_sources({"fi": path}),
    open_sources([{"path": path, "format": "prompt_completion"}]),
    open_sources([{"path": path, "fields": {"prompt": "completion"}}]),
    open_sources([{"path": path, "language_field": "tongue"}]),
    open_sources([path], language_field="lang"),
    open_sources([path], detect_language=True),
    open_sources([path], detect_language=["fi"]),
    open_sources([path], detect_language=True, min_confidence=0.9),
  ]
  digests = {first, *(sources[0].digest() for sources in other)}
  assert len(digests) == 10
  placed = open_sources({"sw": path}, detect_language=["fi"])  # where nothing is detected
  assert placed[0].digest() == open_sources({"sw": path})[0].digest()
  write(tmp_path / "b.jsonl", [ROW | {"prompt": "p"}])
  assert open_sources([same])[0].digest() not in digests
