"""config.json as published: read as transformers reads it, and the sizes give the known number of parameters."""

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
PUBLISHED = {  # config.json, billions of parameters
  "aya-23-8B": (AYA_23_8B, 8.03),
  "aya-expanse-8b": (AYA_23_8B | dict(logit_scale=0.125, use_qk_norm=False), 8.03),
  "command-r7b": (COMMAND_R7B, 8.03),
  "tiny-aya": (TINY_AYA, 3.35),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_as_transformers_reads_them(name):
  import transformers

  config, billions = PUBLISHED[name]
  rest = {k: v for k, v in config.items() if k != "model_type"}
  theirs = transformers.AutoConfig.for_model(config["model_type"], **rest).to_dict()
  cfg = from_hf(config)
  assert cfg == from_hf(theirs)
  assert decoder.count_params(cfg) / 1e9 == pytest.approx(billions, abs=0.005)


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
  ],
  ids=str,
)
def test_what_would_change_the_computation_is_refused(name, change):
  with pytest.raises(UserError, match="not supported"):
    from_hf(PUBLISHED[name][0] | change)
