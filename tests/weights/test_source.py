import dataclasses
import json

import pytest

from mlit_jax.errors import UserError
from mlit_jax.model.config import DecoderConfig, to_hf
from mlit_jax.weights import hf_files, source

CFG = DecoderConfig(
  family="llama",
  vocab_size=5,
  d_model=4,
  num_layers=1,
  num_heads=1,
  num_kv_heads=1,
  head_dim=4,
  d_ff=4,
)
CONFIG = to_hf(CFG, max_length=8, bos_id=1, eos_id=2, pad_id=None)
KEPT = {
  "config.json": json.dumps(CONFIG).encode(),
  "generation_config.json": b"{ }",
  "tokenizer.json": b"{}",
  "tokenizer_config.json": b"{}",
  "tokenizer.model": b"\x00\xff",
  "chat_template.jinja": "{{ 'é' }}".encode(),
  "additional_chat_templates/tool.jinja": b"tool",
  "LICENSE": b"words",
}
LEFT = {
  "README.md": b"#",
  "training_args.bin": b"\x80",
  "checkpoint-10/config.json": b"{}",
  "model.safetensors.tmp": b"",
}


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / "model"
  for name, content in {**KEPT, **LEFT}.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
  header = hf_files.plan_layout([("w", "float32", (0,))]).headers[hf_files.SINGLE_FILE]
  with hf_files.open_shard(folder / hf_files.SINGLE_FILE, header) as write:
    import numpy as np

    write(hf_files.parse_header(header, hf_files.SINGLE_FILE)[0], np.zeros(0, np.float32))
  return folder


def test_a_folder_is_read_and_kept_in_the_workdir(folder, tmp_path):
  s = source.read_source(str(folder))
  assert (
    s.files == KEPT and s.config == CONFIG and s.dtypes == {"w": "float32"} and s.folder == folder
  )
  workdir = tmp_path / "work"
  target = source.save_source_copy(s, workdir)
  assert sorted(p.name for p in workdir.iterdir()) == ["base"]
  assert source.load_source_copy(workdir) == dataclasses.replace(s, folder=target)
  assert source.save_source_copy(s, workdir) == target  # a resumed run
  other = dataclasses.replace(s, files=s.files | {"tokenizer.json": b"[]"})
  with pytest.raises(UserError, match=r"copy of another base model \(differs in tokenizer.json\)"):
    source.save_source_copy(other, workdir)
  assert source.load_source_copy(workdir).files == KEPT


def test_a_workdir_without_a_copy_is_named(tmp_path):
  with pytest.raises(UserError, match=r"tensors\.json: not found"):
    source.load_source_copy(tmp_path)
  (tmp_path / "base").mkdir()
  (tmp_path / "base" / "tensors.json").write_text("{")
  with pytest.raises(UserError, match="damaged"):
    source.load_source_copy(tmp_path)


@pytest.mark.parametrize(
  "config, message",
  [
    (
      CONFIG | {"quantization_config": {"quant_method": "gptq", "bits": 4}},
      "quantization_config .gptq",
    ),
    (
      CONFIG | {"model_type": "mamba"},
      "model_type 'mamba'. Supported are .*gemma3_text, .*qwen3",
    ),
    ({k: v for k, v in CONFIG.items() if k != "hidden_size"}, "has no 'hidden_size'"),
    ([1], "an object is expected"),
    (None, "not readable as JSON"),
  ],
)
def test_a_config_that_cannot_be_tuned_is_refused(folder, config, message):
  path = folder / "config.json"
  path.write_text("{" if config is None else json.dumps(config))
  with pytest.raises(UserError, match=message) as e:
    source.read_source(folder)
  assert str(path) in str(e.value)


def test_paths_that_are_no_model_are_named(folder, tmp_path):
  with pytest.raises(UserError, match="no such folder, and not a hub id"):
    source.read_source("./no/such/folder")
  with pytest.raises(UserError, match="is a file"):
    source.read_source(folder / "config.json")
  (folder / "config.json").unlink()
  with pytest.raises(UserError, match=r"config\.json: not found"):
    source.read_source(folder)


def test_offline_the_message_says_what_was_looked_for_and_where(tmp_path, monkeypatch):
  hub = pytest.importorskip("huggingface_hub")
  from huggingface_hub import constants

  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  with pytest.raises(UserError) as e:
    source.read_source("nobody/nothing")
  for part in ("nobody/nothing", str(tmp_path), "config.json", "*.safetensors", "hf download"):
    assert part in str(e.value), (part, hub.__version__)


def test_a_cached_hub_model_is_read_without_the_network(folder, tmp_path, monkeypatch):
  """A cache as the hub client lays it out: refs/main names the snapshot."""
  pytest.importorskip("huggingface_hub")
  from huggingface_hub import constants

  commit = "0123456789abcdef0123456789abcdef01234567"
  repo = tmp_path / "cache" / "models--owner--name"
  (repo / "refs").mkdir(parents=True)
  (repo / "refs" / "main").write_text(commit)
  (repo / "snapshots").mkdir()
  folder.rename(repo / "snapshots" / commit)
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
  s = source.read_source("owner/name")
  assert s.files == KEPT and s.folder == repo / "snapshots" / commit
  assert source.read_source(f"owner/name@{commit}") == s
