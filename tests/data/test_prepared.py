"""Data sets that TFDS and Hugging Face's `datasets` prepared."""

import json
import pickle
import sys
import types

import numpy as np
import pytest
from written import messages

from mlit_jax.data.rows import read_sources
from mlit_jax.data.sources import open_sources
from mlit_jax.errors import UserError

pa = pytest.importorskip("pyarrow")


# ------------------------------------------------------------------------------------------- TFDS


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
  """A data set with everything that differs from JSON: labels, a sequence of objects, numbers."""
  tfds = pytest.importorskip("tensorflow_datasets")
  f = tfds.features

  class Toy(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="many"), tfds.core.BuilderConfig(name="few")]

    def _info(self):
      turn = {"role": f.ClassLabel(names=["user", "assistant"]), "content": f.Text()}
      features = {
        "messages": f.Sequence(turn),
        "lang": f.ClassLabel(names=["fi", "sw"]),
        "group_id": np.int64,
        "tags": f.Sequence(f.Text()),
        "more": {"deep": f.Text()},
      }
      return tfds.core.DatasetInfo(
        builder=self, features=f.FeaturesDict(features), disable_shuffling=True
      )

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(600), "test": self._generate_examples(3)}

    def _generate_examples(self, n):
      for i in range(n):
        turns = messages(f"kysymys {i} ä", "مرحبا")
        yield i, {"messages": turns, "lang": "sw", "group_id": i, "tags": ["x", "y"][: i % 3], "more": {"deep": "é"}}  # fmt: skip

  folder = tmp_path_factory.mktemp("tensorflow_datasets")
  Toy(config="many", data_dir=str(folder), file_format="array_record").download_and_prepare()
  return folder


def test_a_prepared_split_is_a_source(toy, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(toy))
  text = "tfds:toy/many:train"
  found = read_sources([text]).conversations
  assert len(found) == 600
  assert [m.content for m in found[0].messages] == ["kysymys 0 ä", "مرحبا"]
  assert [m.role for m in found[0].messages] == ["user", "assistant"]
  assert (found[599].lang, found[599].group_id) == ("sw", "599")
  assert (found[599].source, found[599].place) == (text, f"{text}:600")
  assert "tensorflow" not in sys.modules
  _, row = next(open_sources([text])[0].rows())
  assert row["tags"] == [] and row["more"] == {"deep": "é"} and row["group_id"] == 0
  assert json.loads(json.dumps(row)) == row and pickle.loads(pickle.dumps(row)) == row


@pytest.mark.parametrize(
  "split, numbers",
  [("test", [0, 1, 2]), ("train[:1%]", range(6)), ("train[598:]", [598, 599]), ("test[:1]+train[:1]", [0, 0]), ("train[-50%:]", range(300, 600))],
)  # fmt: skip
def test_splits_and_slices(split, numbers, toy):
  entry = {"path": f"tfds:toy/many:{split}", "data_dir": str(toy)}
  (source,) = open_sources([entry])
  assert [row["group_id"] for _, row in source.rows()] == list(numbers)
  version = open_sources([{**entry, "path": f"tfds:toy/many:1.0.0:{split}"}])[0]
  folder = open_sources([f"{toy}/toy/many/1.0.0:{split}"])[0]
  assert version.digest() == folder.digest() == source.digest()


def test_the_newest_version_is_taken_and_the_digest_is_of_its_bytes(toy, tmp_path):
  import shutil

  shutil.copytree(toy, tmp_path / "d")
  parent = tmp_path / "d" / "toy" / "many"
  entry = {"path": "tfds:toy/many:test", "data_dir": str(tmp_path / "d")}
  before = open_sources([entry])[0]
  shutil.copytree(parent / "1.0.0", parent / "1.0.10")
  shutil.copytree(parent / "1.0.0", parent / "1.0.9")
  assert open_sources([entry])[0].folder == str(parent / "1.0.10")
  assert before.digest() == open_sources([{**entry, "data_dir": str(toy)}])[0].digest()
  (file,) = (parent / "1.0.0").glob("toy-test*")
  data = bytearray(file.read_bytes())
  data[-1] ^= 1
  file.write_bytes(data)
  assert before.digest() != open_sources([{**entry, "data_dir": str(toy)}])[0].digest()


def test_what_is_not_prepared_is_named_with_the_remedy(toy, tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(toy))
  for text, message in {
    "tfds:toy": "is not tfds:name/config:split",
    "tfds:toy/many:": "is not tfds:name/config:split",
    "tfds:none:train": r"is not prepared: there is no .*none. Nothing is downloaded.*file_format=\"array_record\"",
    "tfds:toy/few:train": "no prepared config 'few'. There: many",
    "tfds:toy/many:2.0.0:train": "no prepared version '2.0.0'. There: 1.0.0",
    "tfds:toy/many:dev": "Unknown split 'dev'.*Splits: train, test",
    "tfds:toy/many:train[x]": "Error parsing split",
    f"{toy}/toy/many/1.0.0": "has several splits. Name one of train, test",
  }.items():
    with pytest.raises(UserError, match=rf"(?s)data.train: .*{message}"):
      open_sources([text])
  records = tmp_path / "toy" / "1.0.0"
  records.mkdir(parents=True)
  (records / "features.json").write_text("{}")
  (records / "dataset_info.json").write_text(json.dumps({"name": "toy", "fileFormat": "tfrecord"}))
  entry = {"path": "tfds:toy:train", "data_dir": str(tmp_path)}
  with pytest.raises(
    UserError,
    match=r'prepared as tfrecord, which only TensorFlow can read. .*builder\("toy", data_dir=..., file_format="array_record"\)',
  ):
    open_sources([entry])
  (records / "dataset_info.json").write_text("{")
  with pytest.raises(UserError, match="dataset_info.json: cannot be read"):
    open_sources([entry])
  assert "tensorflow" not in sys.modules


# ------------------------------------------------------------------------- Hugging Face, on disk


def save(folder, rows, shards=1):
  """A folder as Dataset.save_to_disk of datasets 5.2 writes it, `lang` a class label."""
  folder.mkdir(parents=True)
  features = {"lang": {"names": ["fi", "sw"], "_type": "ClassLabel"}, "messages": {"_type": "List"}}
  table = pa.Table.from_pylist(rows)
  metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
  table = table.replace_schema_metadata(metadata)
  names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
  for i, name in enumerate(names):
    with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
      writer.write_table(table.slice(i * len(rows) // shards, len(rows) // shards))
  state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
  (folder / "state.json").write_text(json.dumps(state))
  (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
  return str(folder)


ROWS = [{"lang": i % 2, "messages": messages(str(i), "a")} for i in range(6)]


def questions(text):
  found = read_sources([text]).conversations
  return [(c.messages[0].content, c.lang) for c in found], {c.source for c in found}


def test_a_saved_data_set_is_a_source(tmp_path):
  folder = save(tmp_path / "set", ROWS, shards=3)
  expected = [(str(i), ("fi", "sw")[i % 2]) for i in range(6)]
  assert questions(folder) == (expected, {folder})
  assert questions(f"{folder}:train") == (expected, {f"{folder}:train"})
  assert [s.path[-11:] for s in open_sources([folder])] == ["00003.arrow"] * 3
  place = read_sources([folder]).conversations[2].place
  assert place == f"{folder}/data-00001-of-00003.arrow:1"
  assert questions(f"{folder}/*2-of*.arrow")[0] == expected[4:]


def test_a_split_of_a_saved_dict_of_data_sets(tmp_path):
  save(tmp_path / "d" / "train", ROWS[:4])
  save(tmp_path / "d" / "test", ROWS[4:])
  (tmp_path / "d" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
  folder = str(tmp_path / "d")
  assert questions(f"{folder}:test") == ([("4", "fi"), ("5", "sw")], {f"{folder}:test"})
  with pytest.raises(
    UserError, match="has several splits. Name one of train, test: 'folder:train'"
  ):
    open_sources([folder])
  with pytest.raises(UserError, match="has no split 'dev'. Name one of train, test"):
    open_sources([f"{folder}:dev"])


def test_a_folder_of_the_cache_of_datasets(tmp_path):
  save(tmp_path / "c", ROWS, shards=2)
  (tmp_path / "c" / "state.json").unlink()
  for i, name in enumerate(("x-train.arrow", "x-test-00000-of-00001.arrow")):
    (tmp_path / "c" / f"data-0000{i}-of-00002.arrow").rename(tmp_path / "c" / name)
  (tmp_path / "c" / "cache-0123.arrow").write_bytes(b"of a map")
  info = {"splits": {"train": {}, "test": {}}}
  (tmp_path / "c" / "dataset_info.json").write_text(json.dumps(info))
  assert [q for q, _ in questions(f"{tmp_path}/c:test")[0]] == ["3", "4", "5"]
  with pytest.raises(UserError, match="has several splits"):
    open_sources([f"{tmp_path}/c"])
  (tmp_path / "c" / "dataset_info.json").write_text("{}")  # as `datasets` once wrote it
  assert len(questions(f"{tmp_path}/c")[0]) == 6


def test_a_saved_data_set_that_lacks_a_file_is_refused(tmp_path):
  folder = save(tmp_path / "set", ROWS, shards=2)
  (tmp_path / "set" / "data-00001-of-00002.arrow").unlink()
  with pytest.raises(
    UserError, match="data-00001-of-00002.arrow is missing. Save the data set again"
  ):
    open_sources([folder])
  with pytest.raises(UserError, match="one split, 'train'. Name it without ':test'"):
    open_sources([f"{folder}:test"])
  (tmp_path / "set" / "state.json").write_text("[]")
  with pytest.raises(UserError, match="state.json: cannot be read"):
    open_sources([folder])


# -------------------------------------------------------------------------------------- the hub


class FakeDataset:
  def __init__(self, rows, path):
    self.table, self.cache_files = pa.Table.from_pylist(rows), [{"filename": path}]

  def with_format(self, name):
    assert name == "arrow"
    return self

  def iter(self, size):
    return iter([self.table.slice(0, 4), self.table.slice(4)])


@pytest.fixture
def hub(monkeypatch, tmp_path):
  """`datasets` as far as it is used here: (name, config, split) of each call."""
  (tmp_path / "x.arrow").write_bytes(b"contents")
  calls = []

  def load_dataset(name, config, *, split):
    calls.append((name, config, split))
    if name == "org/missing":
      raise ConnectionError("Couldn't reach 'org/missing' on the Hub (OfflineModeIsEnabled)")
    return FakeDataset(ROWS, str(tmp_path / "x.arrow"))

  module = types.ModuleType("datasets")
  module.load_dataset = load_dataset
  module.__spec__ = types.SimpleNamespace(name="datasets")
  monkeypatch.setitem(sys.modules, "datasets", module)
  return calls


def test_the_hub_is_read_through_datasets(hub, tmp_path):
  found = read_sources(
    {"fi": ["hf:org/name/part:train[:10%]"]}, language_field="tongue"
  ).conversations
  assert [c.messages[0].content for c in found] == list("012345")
  assert (found[5].source, found[5].place) == (
    "hf:org/name/part:train[:10%]",
    "hf:org/name/part:train[:10%]:6",
  )
  open_sources([{"path": "hf:name:test", "config": "fi"}])[0].digest()
  assert hub == [("org/name", "part", "train[:10%]"), ("name", "fi", "test")]
  first = open_sources(["hf:org/name:test"])[0].digest()
  (tmp_path / "x.arrow").write_bytes(b"others")
  assert first != open_sources(["hf:org/name:test"])[0].digest()


def test_a_hub_out_of_reach_and_a_missing_package_are_named(hub, monkeypatch):
  with pytest.raises(
    UserError, match=r"hf:org/missing:train: cannot be fetched from the hub .*save_to_disk"
  ):
    read_sources(["hf:org/missing:train"])
  with pytest.raises(UserError, match="is not hf:name/config:split"):
    open_sources(["hf:org/name"])
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(UserError, match="needs the package `datasets`. Run: pip install"):
    open_sources(["hf:org/name:train"])
