"""Gemma 3 with its vision tower: the text is tuned, all other tensors leave as they came."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import safetensors.torch
import torch

from mlit_jax import checks, checksums, export, train
from mlit_jax.errors import UserError
from mlit_jax.model.config import from_hf
from mlit_jax.weights import hf_files, load, names, save, source, table
from tests import commands, families

VISION = ("vision_tower.", "multi_modal_projector.")
FILES = {"preprocessor_config.json": b'{ "size": 16}', "processor_config.json": b"{}"}


def make(folder, variant="gemma3", **kwargs):
  model = families.make_model(folder, variant, **kwargs)
  for name, content in FILES.items():
    (folder / name).write_bytes(content)
  s = source.read_source(folder)
  return model, s, from_hf(s.config)


def carried_bytes(folder):
  """{name without "model.": (dtype, bytes)} of the tensors that are not the text's."""
  arrays = hf_files.map_tensors(folder, hf_files.read_layout(folder))
  plain = {name.removeprefix("model."): a for name, a in arrays.items()}
  return {n: (a.dtype.name, a.tobytes()) for n, a in plain.items() if n.startswith(VISION)}


def respell(folder, change):
  """Renames the tensors of a folder of one file."""
  path = folder / hf_files.SINGLE_FILE
  tensors = {change(name): t for name, t in safetensors.torch.load_file(path).items()}
  safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def as_in_memory(name):
  """A name of the hub as transformers 5 has it in memory, and some tools write it."""
  name = name.removeprefix("language_model.")
  if name.startswith("model."):
    return name.replace("model.", "model.language_model.", 1)
  return name if name == names.HEAD else f"model.{name}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tuning_and_another_dtype_leave_the_vision_tower_alone(tmp_path, dtype):
  import transformers

  _, s, cfg = make(tmp_path / "in", max_shard_size="40KB")
  before = carried_bytes(tmp_path / "in")
  assert {n.split(".")[0] + "." for n in before} == set(VISION) and len(before) > 15
  tuned = families.tuned(load.load_params(tmp_path / "in", cfg))
  files = save.with_dtype(s.files, dtype)
  out = save.save_folder(
    tuned, cfg, tmp_path / "out", files=files, dtypes=dtype, layout=s.layout, carried=s.carried
  )
  assert carried_bytes(out) == before
  text = {t.dtype for n, t in hf_files.read_layout(out).tensors().items() if n.startswith("lang")}
  assert text == {dtype}
  assert {name: (out / name).read_bytes() for name in FILES} == FILES
  model = transformers.AutoModelForImageTextToText.from_pretrained(out, dtype="auto")
  assert type(model).__name__ == "Gemma3ForConditionalGeneration"
  assert model.dtype == model.model.language_model.dtype == getattr(torch, dtype)
  families.load_model(out)  # nothing missing, nothing unknown


def test_a_workdir_keeps_what_an_export_needs_when_the_source_is_gone(tmp_path):
  _, s, cfg = make(tmp_path / "in", dtype="bfloat16", max_shard_size="40KB")
  before = families.bytes_of(tmp_path / "in")
  params = load.load_params(tmp_path / "in", cfg)
  source.save_source_copy(s, tmp_path / "run")
  assert source.save_source_copy(s, tmp_path / "run").name == "base"  # a resumed run
  del s
  shutil.rmtree(tmp_path / "in")
  kept = source.load_source_copy(tmp_path / "run")
  save.save_folder(
    params,
    cfg,
    tmp_path / "out",
    files=kept.files,
    dtypes=kept.dtypes,
    layout=kept.layout,
    carried=kept.carried,
  )
  assert families.bytes_of(tmp_path / "out") == before
  copy = tmp_path / "run" / "base" / source.CARRIED_FILE
  assert copy.stat().st_size < 1.5 * sum(a.nbytes for a in kept.carried.values())
  whole = copy.read_bytes()
  safetensors.torch.save_file({"vision_tower.x": torch.zeros(2)}, copy)
  with pytest.raises(UserError, match="is not the file that was written"):
    source.load_source_copy(tmp_path / "run")
  (tmp_path / "run" / "base" / checksums.NAME).unlink()  # a workdir of before there were digests
  with pytest.raises(UserError, match="other tensors"):
    source.load_source_copy(tmp_path / "run")
  copy.write_bytes(whole[:-8])
  with pytest.raises(UserError, match="truncated"):
    source.load_source_copy(tmp_path / "run")
  copy.unlink()
  with pytest.raises(UserError, match="not found. Restore"):
    source.load_source_copy(tmp_path / "run")


@pytest.mark.parametrize("variant", ["gemma3", "gemma3_untied"])
def test_names_as_in_memory_are_read_and_written_as_they_are(tmp_path, variant):
  model, s, cfg = make(tmp_path / "in", variant)
  expected = table.flatten(load.load_params(tmp_path / "in", cfg))
  respell(tmp_path / "in", as_in_memory)
  s = source.read_source(tmp_path / "in")
  assert set(s.layout.tensors()) == set(dict(model.named_parameters()))
  params = load.load_params(tmp_path / "in", cfg)
  for name, leaf in table.flatten(params).items():
    np.testing.assert_array_equal(leaf, expected[name])
  kwargs = dict(files=s.files, layout=s.layout, carried=s.carried)
  save.save_folder(params, cfg, tmp_path / "out", dtypes=s.dtypes, **kwargs)
  assert families.bytes_of(tmp_path / "out") == families.bytes_of(tmp_path / "in")
  out = save.save_folder(params, cfg, tmp_path / "half", dtypes="bfloat16", **kwargs)
  assert set(hf_files.read_layout(out).tensors()) == set(s.layout.tensors())
  families.load_model(out)


def test_a_tied_head_that_the_hub_spells_out(tmp_path):
  _, _, cfg = make(tmp_path / "in")
  path = tmp_path / "in" / hf_files.SINGLE_FILE
  tensors = safetensors.torch.load_file(path)
  head = "language_model.lm_head.weight"
  tensors[head] = tensors["language_model.model.embed_tokens.weight"].clone()
  safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
  s = source.read_source(tmp_path / "in")
  tuned = families.tuned(load.load_params(tmp_path / "in", cfg))
  out = save.save_folder(
    tuned,
    cfg,
    tmp_path / "out",
    files=s.files,
    dtypes=s.dtypes,
    layout=s.layout,
    carried=s.carried,
  )
  arrays = hf_files.map_tensors(out, hf_files.read_layout(out))
  np.testing.assert_array_equal(arrays[head], tuned["embed"]["table_VD"])
  tensors[head][300, 3] += 1e-3
  safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
  with pytest.raises(UserError, match=f"{head} differs from language_model.model.embed_tokens"):
    load.load_params(tmp_path / "in", cfg)


def test_a_folder_without_its_vision_tower_and_one_with_more_are_refused(tmp_path):
  _, _, cfg = make(tmp_path)
  params = load.load_params(tmp_path, cfg)
  path = tmp_path / hf_files.SINGLE_FILE
  tensors = safetensors.torch.load_file(path)
  text = {n: t for n, t in tensors.items() if not n.startswith(VISION)}
  safetensors.torch.save_file(text | {"audio_tower.w": torch.zeros(2)}, path)
  with pytest.raises(UserError) as e:
    load.check_names(tmp_path, cfg)
  assert "2 missing: vision_tower.*, multi_modal_projector.*" in str(e.value)
  assert "1 unknown: audio_tower.w" in str(e.value)
  with pytest.raises(ValueError, match="not what family gemma3 carries: nothing"):
    save.save_folder(params, cfg, tmp_path / "out", files={}, dtypes="float32")


# text_config of the released folders: what stands in it, and what transformers fills in.
RELEASED = {
  "4b": dict(
    hidden_size=2560,
    intermediate_size=10240,
    model_type="gemma3_text",
    num_hidden_layers=34,
    rope_scaling={"factor": 8.0, "rope_type": "linear"},
    sliding_window=1024,
  ),
  "12b": dict(
    hidden_size=3840,
    intermediate_size=15360,
    model_type="gemma3_text",
    num_attention_heads=16,
    num_hidden_layers=48,
    num_key_value_heads=8,
    rope_scaling={"factor": 8.0, "rope_type": "linear"},
    sliding_window=1024,
  ),
  "27b": dict(
    head_dim=128,
    hidden_size=5376,
    intermediate_size=21504,
    model_type="gemma3_text",
    num_attention_heads=32,
    num_hidden_layers=62,
    num_key_value_heads=16,
    query_pre_attn_scalar=168,
    rope_scaling={"factor": 8.0, "rope_type": "linear"},
    sliding_window=1024,
  ),
}


@pytest.mark.parametrize("size", RELEASED)
def test_released_configs_mean_what_transformers_reads_in_them(size):
  import transformers

  released = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": RELEASED[size],
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
  }
  kept = {k: v for k, v in released.items() if k != "model_type"}
  read = transformers.AutoConfig.for_model("gemma3", **json.loads(json.dumps(kept))).to_dict()
  cfg = from_hf(released)
  assert cfg == from_hf(read)
  assert cfg.vocab_size == 262_208 and cfg.tied and cfg.windows[4:6] == (1024, 0)
  assert cfg.rope_theta == 1e6 and cfg.rope_local_theta == 1e4 and dict(cfg.rope_scaling)["factor"]
  # The same text tower as the text-only family reads it.
  alone = from_hf(read["text_config"])
  assert dataclasses.replace(cfg, family="gemma3_text") == alone


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"text_config": {"final_logit_softcapping": 30.0}}, "final_logit_softcapping = 30.0"),
    ({"text_config": {"model_type": "gemma2"}}, "a text_config of 'gemma2'"),
    ({"text_config": {"use_bidirectional_attention": True}}, "use_bidirectional_attention"),
    ({"model_type": "gemma3n"}, "model_type 'gemma3n'"),
  ],
)
def test_what_we_would_compute_otherwise_is_refused(changes, message):
  with pytest.raises(UserError, match=f"not supported: {message}"):
    from_hf({"model_type": "gemma3", **changes})


def test_stop_ids_and_dtype_of_a_config_within_a_config():
  outer = {
    "model_type": "gemma3",
    "eos_token_id": [1, 106],
    "torch_dtype": "bfloat16",
    "text_config": {"eos_token_id": 1, "dtype": "bfloat16", "hidden_size": 8},
    "vision_config": {"dtype": "bfloat16"},
  }
  files = {"config.json": json.dumps(outer).encode()}
  found = json.loads(save.with_stop_ids(files, [106, 1])["config.json"])
  assert found == outer | {"text_config": outer["text_config"] | {"eos_token_id": [1, 106]}}
  assert save.with_stop_ids(files, [1]) == files
  # Only the inner one names what the model stops at: the outer key that hides it must keep that.
  inner = {"config.json": b'{"text_config": {"eos_token_id": 1}}'}
  found = json.loads(save.with_stop_ids(inner, [7])["config.json"])
  assert found == {"text_config": {"eos_token_id": [1, 7]}, "eos_token_id": [1, 7]}
  assert save.with_dtype(files, "bfloat16") == files
  found = json.loads(save.with_dtype(files, "float32")["config.json"])
  assert found["torch_dtype"] == found["text_config"]["dtype"] == "float32"
  assert found["vision_config"] == outer["vision_config"]


def test_rows_with_pictures_are_refused():
  class Rows:
    tokens = np.array([5, 6, 7, 300, 300, 9], np.uint32)
    starts = np.array([0, 3])
    example_id = staticmethod(["first", "second"].__getitem__)

  with pytest.raises(UserError, match="row second holds the token 300.*; 2 such"):
    checks.check_images(Rows, {"model_type": "gemma3", "image_token_index": 300})
  checks.check_images(Rows, {"model_type": "gemma3"})
  checks.check_images(Rows, {"model_type": "llama"})


@pytest.mark.slow
def test_a_run_exports_after_its_base_model_is_gone(tmp_path):
  """Import, steps, checkpoint, --dtype, the comparison with transformers; names as in memory."""
  make(tmp_path / "base", dtype="bfloat16")
  respell(tmp_path / "base", as_in_memory)
  spelled = set(hf_files.read_layout(tmp_path / "base").tensors())
  before = carried_bytes(tmp_path / "base")
  config = commands.write_config(
    tmp_path,
    "c.model.sizes = {}",
    f"c.model.path = {str(tmp_path / 'base')!r}",
    "c.tokenizer.path = ''",
    "c.batch.rows = 8",
    "c.batch.max_length = 512",
    "c.data.over_long = 'truncate_answer'",
    "c.epochs, c.steps = 0, 2",
    "c.eval.sets = {}",
    "c.eval.every_steps = 0",
    "c.optimizer.warmup_steps = 1",
  )
  code, _, err = commands.here(train, "--config", config, "--workdir", tmp_path / "run")
  assert code == 0, err
  shutil.rmtree(tmp_path / "base")
  for dtype in ("", "float32"):
    out = tmp_path / f"out{dtype}"
    extra = ("--dtype", dtype) if dtype else ()
    code, said, err = commands.here(export, "--workdir", tmp_path / "run", "--out", out, *extra)
    assert code == 0 and "logits as in transformers" in said, said + err
    assert carried_bytes(out) == before
    assert set(hf_files.read_layout(out).tensors()) == spelled
    assert {name: (out / name).read_bytes() for name in FILES} == FILES
