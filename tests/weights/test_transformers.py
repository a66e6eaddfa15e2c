"""Our decoder and that of transformers are one function, before tuning and after an export."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from mlit_jax.errors import UserError
from mlit_jax.model.config import from_hf
from mlit_jax.weights import load, save, source
from tests import families
from tests.families import assert_same_logits, our_logits
from tests.variants.common import SIZES, VOCAB_SIZE

# Beyond the windows (3 and 4) and beyond the 16 positions of the scaled RoPEs.
TOKENS_BT = np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 60), np.int32)


def read(folder):
  s = source.read_source(folder)
  cfg = from_hf(s.config)
  return s, cfg, load.load_params(folder, cfg)


# config.json as the hub has it (written by transformers 4), where RoPE stands under other keys.
PUBLISHED = {
  "llama": dict(
    rope_parameters=None,
    dtype=None,
    torch_dtype="float32",
    rope_theta=10_000.0,
    rope_scaling={
      "rope_type": "llama3",
      "factor": 8.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 16,
    },
  ),
  "llama_plain": dict(rope_parameters=None, rope_theta=500_000.0, head_dim=None),
  "qwen3": dict(
    rope_parameters=None,
    rope_theta=1e6,
    rope_scaling=None,
    layer_types=None,
    use_sliding_window=False,
    sliding_window=None,
    max_window_layers=28,
  ),
  "gemma3_text": dict(
    rope_parameters=None,
    layer_types=None,
    sliding_window_pattern=6,
    rope_theta=1_000_000.0,
    rope_local_base_freq=10_000.0,
    rope_scaling={"rope_type": "linear", "factor": 8.0},
    tie_word_embeddings=None,
  ),
  "bloom": dict(  # 560M
    hidden_size=None,
    n_embed=32,
    n_head=None,
    num_attention_heads=4,
    tie_word_embeddings=None,
    attention_softmax_in_fp32=True,
    bias_dropout_fusion=True,
    masked_softmax_fusion=True,
    offset_alibi=100,
    pretraining_tp=4,
    seq_length=2048,
    skip_bias_add=True,
    skip_bias_add_qkv=False,
    unk_token_id=0,
  ),
  "olmo3": dict(
    rope_parameters=None,
    rope_theta=500_000,
    rope_scaling={
      "attention_factor": 1.2,
      "beta_fast": 1.5,
      "beta_slow": 0.1,
      "factor": 4.0,
      "original_max_position_embeddings": 16,
      "rope_type": "yarn",
    },
  ),
  "apertus": dict(
    rope_parameters=None,
    rope_theta=10_000,
    rope_scaling={
      "factor": 8.0,
      "high_freq_factor": 4.0,
      "low_freq_factor": 1.0,
      "original_max_position_embeddings": 16,
      "rope_type": "llama3",
      "type": "llama3",
    },
    hidden_dropout=0.0,
    mlp_bias=False,
    post_norm=False,
    qk_norm=True,
  ),
}


def test_longrope_takes_the_long_factors_from_the_first_token_beyond_the_original_length(tmp_path):
  model = families.make_model(tmp_path, "phi3_longrope")
  _, cfg, params = read(tmp_path)
  original = dict(cfg.rope_scaling)["original_max_position_embeddings"]
  at, beyond = (our_logits(params, cfg, TOKENS_BT[:, : original + n]) for n in (0, 1))
  assert np.abs(beyond[:, :original] - at).max() > 0.1  # of the same tokens
  for logits_BTV in (at, beyond):
    theirs_BTV = families.hf_logits(model, TOKENS_BT[:, : logits_BTV.shape[1]])
    assert_same_logits(logits_BTV, theirs_BTV)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_configs_as_published_are_read_alike(tmp_path, variant):
  model = families.make_model(tmp_path, variant)
  new = from_hf(source.read_source(tmp_path).config)
  families.edit_config(tmp_path, **PUBLISHED[variant])
  _, cfg, params = read(tmp_path)
  assert cfg == new
  theirs_BTV = families.hf_logits(families.load_model(tmp_path), TOKENS_BT)
  np.testing.assert_array_equal(theirs_BTV, families.hf_logits(model, TOKENS_BT))
  assert_same_logits(our_logits(params, cfg, TOKENS_BT), theirs_BTV)


@pytest.mark.parametrize(
  "variant, changes",
  [
    ("llama", {"hidden_act": "gelu"}),
    ("llama", {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}),
    ("llama", {"partial_rotary_factor": 0.5}),
    ("llama_yarn", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "mystery": 1}}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 4}),
    ("qwen3_linear", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),  # beside another
    ("smollm3", {"no_rope_layers": [1, 1]}),
    ("bloom", {"slow_but_exact": True, "pretraining_tp": 4}),
    ("bloom", {"n_inner": 64}),
    ("bloom", {"n_embed": 48}),  # beside hidden_size
    ("bloom", {"n_head": 5}),
    ("olmo2", {"mlp_bias": True}),
    ("olmo3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    ("olmo3", {"rope_parameters": None, "rope_theta": 1e4}),
    (
      "olmo3",
      {
        "rope_parameters": {
          "full_attention": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 2.0,
            "truncate": False,
          }
        }
      },
    ),
    ("apertus", {"rope_parameters": None, "rope_theta": 1e4}),
    ("apertus", {"post_norm": True}),
    ("apertus", {"qk_norm": False}),
    ("gemma3_text", {"attn_logit_softcapping": 2.0}),
    ("gemma3_text", {"use_bidirectional_attention": True}),
    (
      "gemma3_text",
      {
        "rope_parameters": {
          "full_attention": {"rope_type": "default", "rope_theta": 1e6},
          "sliding_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
        }
      },
    ),
  ],
)
def test_what_we_would_compute_otherwise_is_refused(tmp_path, variant, changes):
  config = families.random_model(variant).config.to_dict() | changes
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match="not supported") as e:
    source.read_source(tmp_path)
  assert str(tmp_path / "config.json") in str(e.value)


def test_an_apertus_without_scaling_has_to_say_so(tmp_path):
  rope = {"rope_type": "default", "rope_theta": 5e5}
  model = families.make_model(tmp_path, "apertus", rope_parameters=rope)
  _, cfg, params = read(tmp_path)
  assert cfg.rope_scaling is None and cfg.rope_theta == 5e5
  assert_same_logits(our_logits(params, cfg, TOKENS_BT), families.hf_logits(model, TOKENS_BT))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shard_size", ["1GB", "40KB"])
@pytest.mark.parametrize("variant", ["llama", "qwen3", "gemma3_text"])
def test_export_of_import_is_the_source_byte_for_byte(tmp_path, variant, dtype, shard_size):
  families.make_model(tmp_path / "in", variant, dtype=dtype, max_shard_size=shard_size)
  s, cfg, params = read(tmp_path / "in")
  assert (len(s.layout.headers) > 1) == (shard_size == "40KB")
  save.save_folder(params, cfg, tmp_path / "out", files=s.files, dtypes=s.dtypes, layout=s.layout)
  assert families.bytes_of(tmp_path / "out") == families.bytes_of(tmp_path / "in")


def greedy(params, cfg, prompt, steps):
  """The plain loop: the whole row again for every token."""
  row = np.zeros((1, len(prompt) + steps), np.int32)
  row[0, : len(prompt)] = prompt
  for t in range(len(prompt), row.shape[1]):
    row[0, t] = our_logits(params, cfg, row)[0, t - 1].argmax()
  return row[0, len(prompt) :].tolist()


SCRIPTS = "Hello, नमस्ते दुनिया, مرحبا بالعالم, 你好世界, สวัสดี 🌍 Grüße"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", ["llama", "llama_tied", "qwen3", "gemma3_text"])
def test_transformers_computes_what_the_tuned_model_does(tmp_path, variant, dtype):
  import transformers

  families.make_model(tmp_path / "in", variant)
  s, cfg, params = read(tmp_path / "in")
  params = families.tuned(params)
  dtypes = s.dtypes
  if dtype == "bfloat16":
    # Rounded beforehand, so that what remains to compare is the export.
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(jnp.float32), params)
    dtypes = "bfloat16"
  files = save.with_dtype(s.files, dtype)
  out = save.save_folder(params, cfg, tmp_path / "out", files=files, dtypes=dtypes, layout=s.layout)
  model = families.load_model(out)
  tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": SCRIPTS}], add_generation_prompt=True, return_dict=False
  )
  assert len(prompt) > 80
  prompt_BT = np.array([prompt], np.int32)
  assert_same_logits(our_logits(params, cfg, prompt_BT), families.hf_logits(model, prompt_BT))
  theirs = model.generate(
    torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None
  )[0, len(prompt) :]
  continuation = greedy(params, cfg, prompt, 12)
  assert continuation == theirs.tolist()
  assert len(set(continuation)) > 2
  auto = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
  assert auto.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("variant", ["mistral", "qwen3", "ministral3"])
def test_keys_that_are_absent_mean_what_transformers_takes(variant):
  """Of a config.json that leaves out what equals the default: 4,096 tokens of Mistral's window."""
  import transformers

  left_out = ("sliding_window", "head_dim", "num_key_value_heads", "tie_word_embeddings")
  sizes = SIZES | dict(hidden_size=64) | families.VARIANTS[variant]
  sizes = {k: v for k, v in sizes.items() if k not in left_out} | dict(num_attention_heads=32)
  config = transformers.AutoConfig.for_model(**sizes)
  assert from_hf(sizes) == from_hf(config.to_dict())


@pytest.mark.parametrize(
  "variant, changes",
  [
    ("llama", {"hidden_size": "wide"}),
    ("llama", {"num_attention_heads": 0}),
    ("llama", {"rope_parameters": "llama3"}),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}),
    ("granite", {"logits_scaling": 0}),
    ("gemma2", {"query_pre_attn_scalar": None}),
    ("mixtral", {"router_aux_loss_coef": None}),
  ],
)
def test_values_that_cannot_be_are_one_message(variant, changes):
  sizes = SIZES | families.VARIANTS[variant] | changes
  with pytest.raises(UserError):
    from_hf(sizes)
