"""What the targets of fuzz.py share: what a target is, and valid rows, settings and files to begin from."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import fuzz_inputs as inputs

from mlit_jax import checks
from mlit_jax.data.encode import encode_conversations
from mlit_jax.data.rows import read_sources
from mlit_jax.data.tokenizer import Tokenizer

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.py"
ASSETS = Path(checks.__file__).parent / "assets"
QUESTIONS = ("How do I sort a list?", "Mitä kuuluu, Äiti?", "你好，今天天气怎么样？")
TURNS = [
  {"role": "system", "content": "s"},
  {"role": "user", "content": QUESTIONS[1]},
  {"role": "assistant", "content": "Hyvää. 🌙"},
  {"role": "user", "content": QUESTIONS[2]},
  {"role": "assistant", "content": "很好"},
]


@dataclasses.dataclass(frozen=True)
class Target:
  """run(folder, parts) reads; seeds are valid cases; strategy gives others, by hypothesis."""

  run: Callable[[Path, Mapping[str, bytes]], object]
  seeds: Callable[[], list[dict[str, bytes]]]
  strategy: Callable[[], object]


def lines(*rows) -> bytes:
  return b"".join(inputs.dump(row) + b"\n" for row in rows)


def write(folder: Path, parts: Mapping[str, bytes], *known: str) -> None:
  """The parts as files, those alone that the target reads: a case names no file of its own."""
  for name in known:
    if name in parts:
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).write_bytes(parts[name])


def one_part(name: str, strategy):
  return strategy.map(lambda data: inputs.join({name: data}))


def changed_json(seeds):
  """Seeds with one part's JSON changed, or another value in its place."""
  from hypothesis import strategies as st

  def change(args):
    seed, rng, other = args
    parts = dict(seed)
    name = rng.choice(list(parts))
    with contextlib.suppress(ValueError, RecursionError):
      value = json.loads(parts[name])
      parts[name] = inputs.dump(other if rng.random() < 0.1 else inputs.changed(value, rng))
    return inputs.join(parts)

  return st.tuples(st.sampled_from(seeds), st.randoms(use_true_random=False), inputs.json_values()).map(change)  # fmt: skip


@functools.cache
def tokenizer12() -> Tokenizer:
  return Tokenizer.load(str(ASSETS / "tokenizer12"))


def shapes() -> list[dict]:
  """A good row of every accepted shape."""
  q, a = QUESTIONS[1], "Hyvää kuuluu. 🌙"
  turns = [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
  tree = {"message_id": "1", "parent_id": None, "role": "prompter", "text": q, "lang": "fi", "rank": None, "deleted": False}  # fmt: skip
  reply = tree | {"message_id": "2", "parent_id": "1", "role": "assistant", "text": a, "rank": 0}
  return [
    {"messages": [{"role": "system", "content": "s"}, *turns], "lang": "fi", "group_id": "g1"},
    {"messages": {"role": ["user", "assistant"], "content": [q, a]}, "language": "fi"},
    {"prompt": q, "completion": a, "lang": "fi", "system": "s", "id": 7},
    {"prompt": turns[:1], "completion": turns[1:], "language_code": "fi"},
    {"instruction": q, "input": "x", "output": a, "lang": "fi"},
    {"inputs": q, "targets": a, "lang": "fi", "group_id": 3},
    {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}], "lang": "fi"},
    {"conversations": [q, a, q, a], "lang": "fi"},
    {"message_tree_id": "1", "prompt": {**tree, "replies": [reply, {**reply, "rank": 1}]}},
    {**tree, "replies": [reply]},
  ]


def table(form: str) -> bytes:
  import pyarrow as pa
  import pyarrow.parquet as pq

  rows, out = pa.Table.from_pylist([shapes()[2], shapes()[2] | {"lang": "sv"}]), io.BytesIO()
  if form == "parquet":
    pq.write_table(rows, out)
  else:
    with pa.ipc.new_stream(out, rows.schema) as sink:
      sink.write_table(rows)
  return out.getvalue()


@functools.cache
def encoded():
  """A few rows of three languages, encoded."""
  rows = lines(*(row | {"lang": lang, "id": i} for i, lang in enumerate(("en", "fi", "zh")) for row in shapes()[4:6]))  # fmt: skip
  with scratch() as folder:
    (folder / "x.jsonl").write_bytes(rows)
    found = read_sources([str(folder / "x.jsonl")])
  return encode_conversations(found.conversations, tokenizer12(), max_length=128)


@contextlib.contextmanager
def scratch():
  import tempfile

  with tempfile.TemporaryDirectory() as folder:
    yield Path(folder)
