"""config.json as published: read as transformers reads it, and the sizes give the known number of parameters."""

import copy

import pytest

pytest.importorskip("transformers")

from mlit_jax.errors import UserError
from mlit_jax.model import decoder
from mlit_jax.model.config import from_hf

AYA_23_8B = dict(
  model_type="cohere",
  attention_bias=False,
  hidden_act="silu",
  hidden_size=4096,
  intermediate_size=14336,
  layer_norm_eps=1e-05,
  logit_scale=0.0625,
  max_position_embeddings=8192,
  num_attention_heads=32,
  num_hidden_layers=32,
  num_key_value_heads=8,
  rope_theta=10000,
  vocab_size=256000,
)
# Keys of Cohere's own code, which transformers does not read.
COHERE2_KEYS = dict(
  cache_implementation="hybrid",
  layer_switch=4,
  order_of_interleaved_layers="local_attn_first",
  position_embedding_type="rope_gptj",
  rotary_pct=1.0,
  use_embedding_sharing=True,
  use_gated_activation=True,
  use_parallel_block=True,
  use_parallel_embedding=True,
  use_qk_norm=False,
)
COMMAND_R7B = AYA_23_8B | dict(
  COHERE2_KEYS,
  model_type="cohere2",
  head_dim=128,
  logit_scale=0.25,
  max_position_embeddings=132096,
  rope_scaling=None,
  rope_theta=50000,
  sliding_window=4096,
  sliding_window_pattern=4,
)
TINY_AYA = COMMAND_R7B | dict(
  hidden_size=2048,
  intermediate_size=11008,
  layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 9,
  logit_scale=1.0,
  num_attention_heads=16,
  num_hidden_layers=36,
  num_key_value_heads=4,
  vocab_size=262144,
)
PHI_3_MINI_4K = dict(
  model_type="phi3",
  attention_bias=False,
  attention_dropout=0.0,
  embd_pdrop=0.0,
  hidden_act="silu",
  hidden_size=3072,
  intermediate_size=8192,
  max_position_embeddings=4096,
  num_attention_heads=32,
  num_hidden_layers=32,
  num_key_value_heads=32,
  original_max_position_embeddings=4096,
  resid_pdrop=0.0,
  rms_norm_eps=1e-05,
  rope_scaling=None,
  rope_theta=10000.0,
  sliding_window=2047,
  tie_word_embeddings=False,
  vocab_size=32064,
)


def longrope(kind, frequencies):
  """The entry's values stand for the published ones, which differ in each."""
  short = [1.0 + 0.01 * i for i in range(frequencies)]
  return {"type": kind, "short_factor": short, "long_factor": [2 * x for x in short]}


PHI_3_MINI_128K = PHI_3_MINI_4K | dict(
  max_position_embeddings=131072, rope_scaling=longrope("longrope", 48), sliding_window=262144
)
PHI_4 = PHI_3_MINI_4K | dict(
  hidden_size=5120,
  intermediate_size=17920,
  max_position_embeddings=16384,
  num_attention_heads=40,
  num_hidden_layers=40,
  num_key_value_heads=10,
  original_max_position_embeddings=16384,
  rope_theta=250000,
  sliding_window=None,
  vocab_size=100352,
)
PHI_4_MINI = PHI_3_MINI_128K | dict(
  full_attn_mod=1,
  interpolate_factor=1,
  lm_head_bias=False,
  mlp_bias=False,
  num_attention_heads=24,
  num_key_value_heads=8,
  partial_rotary_factor=0.75,
  tie_word_embeddings=True,
  vocab_size=200064,
)
PUBLISHED = {  # config.json, billions of parameters
  "aya-23-8B": (AYA_23_8B, 8.03),
  "aya-expanse-8b": (AYA_23_8B | dict(logit_scale=0.125, use_qk_norm=False), 8.03),
  "command-r7b": (COMMAND_R7B, 8.03),
  "tiny-aya": (TINY_AYA, 3.35),
  "phi-3-mini-4k": (PHI_3_MINI_4K, 3.82),
  "phi-3-mini-128k": (PHI_3_MINI_128K, 3.82),
  "phi-3-mini-128k as yarn": (PHI_3_MINI_128K | dict(rope_scaling=longrope("yarn", 48)), 3.82),
  "phi-4": (PHI_4, 14.66),
  "phi-4-mini": (PHI_4_MINI, 3.84),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_as_transformers_reads_them(name):
  import transformers

  config, billions = PUBLISHED[name]
  rest = copy.deepcopy({k: v for k, v in config.items() if k != "model_type"})
  theirs = transformers.AutoConfig.for_model(config["model_type"], **rest).to_dict()
  cfg = from_hf(config)
  assert cfg == from_hf(theirs)
  if config.get("rope_scaling"):
    assert dict(cfg.rope_scaling)["attention_factor"] == pytest.approx(1.19024, abs=1e-5)
  assert decoder.count_params(cfg) / 1e9 == pytest.approx(billions, abs=0.005)


def test_su_is_the_first_name_of_longrope():
  """transformers 5 cannot read these any more; 4 read them so."""
  assert from_hf(PHI_3_MINI_128K | {"rope_scaling": longrope("su", 48)}) == from_hf(PHI_3_MINI_128K)


@pytest.mark.parametrize(
  "name, change",
  [
    ("aya-23-8B", dict(logit_scale=None)),
    ("aya-23-8B", dict(hidden_act="gelu")),
    ("aya-23-8B", dict(rope_scaling={"rope_type": "dynamic", "factor": 2.0})),
    ("command-r7b", dict(use_qk_norm=True)),
    ("command-r7b", dict(position_embedding_type="alibi")),
    ("command-r7b", dict(rotary_pct=0.5)),
    ("command-r7b", dict(layer_switch=2)),
    ("command-r7b", dict(order_of_interleaved_layers="global_attn_first")),
    ("command-r7b", dict(use_parallel_block=False)),
    ("command-r7b", dict(use_gated_activation=False)),
    ("command-r7b", dict(use_embedding_sharing=False)),
    ("command-r7b", dict(sliding_window=None)),
    ("command-r7b", dict(partial_rotary_factor=0.5)),
    ("phi-3-mini-4k", dict(hidden_act="gelu")),
    ("phi-3-mini-4k", dict(attention_bias=True)),
    ("phi-3-mini-4k", dict(mlp_bias=True)),
    ("phi-3-mini-4k", dict(lm_head_bias=True)),
    ("phi-3-mini-4k", dict(full_attn_mod=2)),
    ("phi-3-mini-4k", dict(interpolate_factor=2)),
    ("phi-3-mini-4k", dict(partial_rotary_factor=0.95)),  # an odd number of dimensions
    ("phi-3-mini-4k", dict(rope_scaling={"type": "linear", "factor": 2.0})),
    ("phi-3-mini-128k", dict(rope_scaling={"type": "yarn", "factor": 32.0})),
    ("phi-3-mini-128k", dict(rope_scaling=longrope("longrope", 47))),
    (
      "phi-3-mini-128k",
      dict(rope_scaling=longrope("su", 48) | {"original_max_position_embeddings": 8192}),
    ),
  ],
  ids=lambda x: x if isinstance(x, str) else "-".join(x),
)
def test_what_would_change_the_computation_is_refused(name, change):
  with pytest.raises(UserError, match="not supported"):
    from_hf(PUBLISHED[name][0] | change)
