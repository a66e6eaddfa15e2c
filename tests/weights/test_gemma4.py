"""Gemma 4 beyond the proofs of every family: keys that nothing reads, towers that stay, what is refused."""

import copy
import dataclasses
import re

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import safetensors.torch
import torch

from mlit_jax import checks
from mlit_jax.errors import UserError
from mlit_jax.model import decoder
from mlit_jax.model.config import from_hf
from mlit_jax.weights import hf_files, load, save, source
from tests import families

PARTS = ("vision_tower.", "embed_vision.", "audio_tower.", "embed_audio.")
E2B = dict(
  model_type="gemma4_text",
  attention_bias=False,
  attention_k_eq_v=False,
  enable_moe_block=False,
  final_logit_softcapping=30.0,
  global_head_dim=512,
  head_dim=256,
  hidden_activation="gelu_pytorch_tanh",
  hidden_size=1536,
  hidden_size_per_layer_input=256,
  intermediate_size=6144,
  layer_types=(["sliding_attention"] * 4 + ["full_attention"]) * 7,
  max_position_embeddings=131072,
  num_attention_heads=8,
  num_global_key_value_heads=None,
  num_hidden_layers=35,
  num_key_value_heads=1,
  num_kv_shared_layers=20,
  rms_norm_eps=1e-06,
  rope_parameters={
    "full_attention": {
      "partial_rotary_factor": 0.25,
      "rope_theta": 1000000.0,
      "rope_type": "proportional",
    },
    "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
  },
  sliding_window=512,
  tie_word_embeddings=True,
  use_bidirectional_attention=None,
  use_double_wide_mlp=True,
  vocab_size=262144,
  vocab_size_per_layer_input=262144,
)
E4B = E2B | dict(
  hidden_size=2560,
  intermediate_size=10240,
  layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 7,
  num_hidden_layers=42,
  num_key_value_heads=2,
  num_kv_shared_layers=18,
  use_double_wide_mlp=False,
)
G31B = E2B | dict(
  attention_k_eq_v=True,
  hidden_size=5376,
  hidden_size_per_layer_input=0,
  intermediate_size=21504,
  layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 10,
  max_position_embeddings=262144,
  num_attention_heads=32,
  num_global_key_value_heads=4,
  num_hidden_layers=60,
  num_key_value_heads=16,
  num_kv_shared_layers=0,
  sliding_window=1024,
  use_bidirectional_attention="vision",
  use_double_wide_mlp=False,
)
# Billions of parameters, and of those outside the second embedding's table ("effective": 2.3 of E2B).
RELEASED = {"E2B": (E2B, 4.63, 2.28), "E4B": (E4B, 7.46, 4.64), "31B": (G31B, 30.70, 30.70)}


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_mean_what_transformers_reads_in_them(name):
  import transformers

  config, billions, effective = RELEASED[name]
  cfg = from_hf(config)
  kept = copy.deepcopy({k: v for k, v in config.items() if k != "model_type"})
  theirs = transformers.AutoConfig.for_model("gemma4_text", **kept).to_dict()
  assert cfg == from_hf(theirs)
  outer = {"model_type": "gemma4", "text_config": config, "tie_word_embeddings": True}
  assert dataclasses.replace(from_hf(outer), family="gemma4_text") == cfg
  table = cfg.vocab_size * cfg.num_layers * cfg.layer_input_dim
  assert decoder.count_params(cfg) / 1e9 == pytest.approx(billions, abs=0.005)
  assert (decoder.count_params(cfg) - table) / 1e9 == pytest.approx(effective, abs=0.005)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"enable_moe_block": True}, "enable_moe_block = True"),
    ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention = 'all'"),
    ({"attention_bias": True}, "attention_bias = True"),
    ({"hidden_activation": "silu"}, "hidden_activation = 'silu'"),
    ({"hidden_size_per_layer_input": 0}, "num_kv_shared_layers without"),
    ({"vocab_size_per_layer_input": 1000}, "vocab_size_per_layer_input = 1000"),
    ({"per_layer_config": {"4": {"head_dim": 512}}}, "per_layer_config"),  # one of seven
    ({"per_layer_config": {"0": {"num_attention_heads": 4}}}, "per_layer_config"),
    ({"layer_types": ["chunked_attention"] * 35}, "rope_parameters without chunked_attention"),
    ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_parameters without"),
    (
      {"rope_parameters": E2B["rope_parameters"] | {"full_attention": {"rope_type": "yarn"}}},
      "rope type 'yarn'",
    ),
  ],
)
def test_what_we_would_compute_otherwise_is_refused(changes, message):
  with pytest.raises(UserError, match=re.escape(f"not supported: {message}")):
    from_hf(E2B | changes)


def test_a_text_tower_of_another_kind_is_refused():
  with pytest.raises(UserError, match="not supported: a text_config of 'gemma3_text'"):
    from_hf({"model_type": "gemma4", "text_config": {"model_type": "gemma3_text"}})


def test_layers_that_borrow_keys_need_a_layer_to_borrow_from():
  with pytest.raises(UserError, match="the last 31 of 35 layers cannot read keys"):
    from_hf(E2B | {"num_kv_shared_layers": 31})  # the first global layer is the fifth


@pytest.mark.parametrize("variant", ["gemma4_text_borrowing", "gemma4_borrowing"])
def test_published_folders_hold_keys_that_nothing_reads_and_exports_keep_them(tmp_path, variant):
  """Layers 6 to 9 borrow keys and values; the hub's folders hold some for them all the same."""
  families.make_model(tmp_path / "in", variant)
  path = tmp_path / "in" / hf_files.SINGLE_FILE
  tensors = safetensors.torch.load_file(path)
  scalar = "layers.0.layer_scalar"
  start = next(name for name in tensors if name.endswith(scalar)).removesuffix(scalar)
  unread = {
    f"{start}layers.{i}.self_attn.{name}.weight": torch.full((8, 32)[: 2 - ("norm" in name)], i / 8)
    for i in range(6, 10)
    for name in ("k_proj", "v_proj", "k_norm")
  }
  assert not unread.keys() & tensors.keys()
  safetensors.torch.save_file(tensors | unread, path, metadata={"format": "pt"})
  s = source.read_source(tmp_path / "in")
  cfg = from_hf(s.config)
  assert unread.keys() <= s.carried.keys()
  params = load.load_params(tmp_path / "in", cfg)
  kwargs = dict(files=s.files, layout=s.layout, carried=s.carried)
  save.save_folder(params, cfg, tmp_path / "out", dtypes=s.dtypes, **kwargs)
  assert families.bytes_of(tmp_path / "out") == families.bytes_of(tmp_path / "in")
  out = save.save_folder(
    families.tuned(params), cfg, tmp_path / "half", dtypes="bfloat16", **kwargs
  )
  arrays = hf_files.map_tensors(out, hf_files.read_layout(out))
  for name, tensor in unread.items():
    np.testing.assert_array_equal(arrays[name], tensor.numpy())
  families.load_model(out)  # nothing unknown
  # Of a layer that lends its own they are the decoder's.
  lent = {name.replace("layers.6.", "layers.4."): t for name, t in unread.items() if ".6." in name}
  missing = {name: t for name, t in tensors.items() if name not in lent}
  safetensors.torch.save_file(missing | unread, path, metadata={"format": "pt"})
  with pytest.raises(UserError, match="3 missing: .*layers.4.self_attn"):
    load.check_names(tmp_path / "in", cfg)


def test_tuning_and_another_dtype_leave_the_other_towers_alone(tmp_path):
  import transformers

  families.make_model(tmp_path / "in", "gemma4_borrowing", max_shard_size="60KB")
  s = source.read_source(tmp_path / "in")
  cfg = from_hf(s.config)
  before = _bytes_of_parts(tmp_path / "in")
  assert {name.split(".")[0] + "." for name in before} == set(PARTS)
  tuned = families.tuned(load.load_params(tmp_path / "in", cfg))
  files = save.with_dtype(s.files, "bfloat16")
  out = save.save_folder(
    tuned, cfg, tmp_path / "out", files=files, dtypes="bfloat16", layout=s.layout, carried=s.carried
  )
  assert _bytes_of_parts(out) == before
  text = {t.dtype for n, t in hf_files.read_layout(out).tensors().items() if "language_model" in n}
  assert text == {"bfloat16"}
  model = transformers.AutoModelForImageTextToText.from_pretrained(out, dtype="auto")
  assert type(model).__name__ == "Gemma4ForConditionalGeneration"
  assert model.model.language_model.dtype == torch.bfloat16


def test_a_folder_without_its_vision_tower_is_refused(tmp_path):
  families.make_model(tmp_path, "gemma4")
  cfg = from_hf(source.read_source(tmp_path).config)
  path = tmp_path / hf_files.SINGLE_FILE
  tensors = safetensors.torch.load_file(path)
  text = {n: t for n, t in tensors.items() if not n.removeprefix("model.").startswith(PARTS)}
  safetensors.torch.save_file(text, path)
  with pytest.raises(UserError, match=re.escape("2 missing: vision_tower.*, embed_vision.*")):
    load.check_names(tmp_path, cfg)


def test_rows_with_pictures_or_sounds_are_refused():
  class Rows:
    tokens = np.array([5, 6, 258_881, 258_880, 9], np.uint32)
    starts = np.array([0, 3])
    example_id = staticmethod(["first", "second"].__getitem__)

  with pytest.raises(UserError, match="row first holds the token 258881.*; 2 such"):
    checks.check_images(Rows, {"model_type": "gemma4"})
  with pytest.raises(UserError, match="row second holds the token 9.*; 1 such"):
    moved = {"image_token_id": 9, "audio_token_id": None}
    checks.check_images(Rows, {"model_type": "gemma4"} | moved)


def _bytes_of_parts(folder):
  """{name without "model.": (dtype, bytes)} of the tensors that are not the text's."""
  arrays = hf_files.map_tensors(folder, hf_files.read_layout(folder))
  plain = {name.removeprefix("model."): a for name, a in arrays.items()}
  return {n: (a.dtype.name, a.tobytes()) for n, a in plain.items() if n.startswith(PARTS)}
