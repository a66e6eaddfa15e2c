"""Tiny random models of every family, made and saved by transformers itself.

families.make_model(folder, "gemma3_text", dtype="bfloat16", max_shard_size="40KB")

`python -m tests.families` writes tests/golden/ again. A new variant of VARIANTS gets all the proofs of
tests/weights/test_families.py.
"""

import json
import pathlib

GOLDEN = pathlib.Path(__file__).parent / "golden"

VOCAB_SIZE = 320  # the tokenizer below has fewer: the rest is padding, as in the published models

# Sizes differ from each other wherever they can, so that a mixed-up axis changes a shape.
_SIZES = {
  "vocab_size": VOCAB_SIZE,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 3,
  "max_position_embeddings": 512,
}
_LLAMA3_ROPE = {
  "rope_type": "llama3",
  "rope_theta": 10_000.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,  # short, so that the tests' rows reach beyond it
}
_GEMMA_ROPE = {
  "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
  "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
_MINISTRAL_ROPE = {
  "rope_type": "yarn",
  "rope_theta": 10_000.0,
  "factor": 8.0,
  "original_max_position_embeddings": 16,
  "max_position_embeddings": 128,
  "beta_fast": 2.0,
  "beta_slow": 0.25,
  "mscale": 1.0,
  "mscale_all_dim": 1.0,
  "llama_4_scaling_beta": 0.1,
}

VARIANTS = {
  "llama": dict(  # Llama 3.1: untied, llama3 scaling, grouped heads
    model_type="llama",
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rope_parameters=_LLAMA3_ROPE,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
  ),
  "llama_tied": dict(  # Llama 3.2: tied; here with one kv head, and heads wider than width / heads
    model_type="llama",
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=12,
    rope_parameters=_LLAMA3_ROPE,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
  ),
  "llama_plain": dict(  # Llama 2: no scaling, a kv head per head
    model_type="llama",
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
  ),
  "qwen3": dict(  # 0.6B: tied, heads wider than width / heads
    model_type="qwen3",
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
  ),
  "qwen3_untied": dict(
    model_type="qwen3",
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
  ),
  "qwen3_linear": dict(  # rows beyond the original length, a kv head per head
    model_type="qwen3",
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=12,
    rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
  ),
  "gemma3_text": dict(  # 4B: linear scaling of the global layers, windows of 4
    model_type="gemma3_text",
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_hidden_layers=7,
    rope_parameters=_GEMMA_ROPE,
    rms_norm_eps=1e-6,
    sliding_window=4,
    query_pre_attn_scalar=24,
    tie_word_embeddings=True,
  ),
  "gemma3_text_untied": dict(
    model_type="gemma3_text",
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=8,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    rms_norm_eps=1e-6,
    sliding_window=3,
    query_pre_attn_scalar=8,
    tie_word_embeddings=False,
    final_logit_softcapping=3.0,
  ),
}

VARIANTS |= {
  "qwen2": dict(  # 2.5 of 0.5B: tied; the window of the published configs, which is not used
    model_type="qwen2",
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    rms_norm_eps=1e-6,
    use_sliding_window=False,
    sliding_window=4,
    tie_word_embeddings=True,
  ),
  "qwen2_untied": dict(  # 2.5 of 7B
    model_type="qwen2",
    num_attention_heads=4,
    num_key_value_heads=1,
    rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
  ),
  "qwen2_windows": dict(  # windows of the upper layers
    model_type="qwen2",
    num_attention_heads=4,
    num_key_value_heads=4,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    rms_norm_eps=1e-6,
    use_sliding_window=True,
    sliding_window=4,
    max_window_layers=1,
    tie_word_embeddings=False,
  ),
}
VARIANTS |= {
  "mistral": dict(  # 7B v0.1: windows everywhere
    model_type="mistral",
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    rms_norm_eps=1e-5,
    sliding_window=5,
    tie_word_embeddings=False,
  ),
  "mistral_wide_heads": dict(  # Nemo: no window, heads wider than width / heads; here tied
    model_type="mistral",
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=12,
    rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    rms_norm_eps=1e-5,
    sliding_window=None,
    tie_word_embeddings=True,
  ),
  "mistral_yarn": dict(
    model_type="mistral",
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
    rope_parameters={
      "rope_type": "yarn",
      "rope_theta": 10_000.0,
      "factor": 8.0,
      "original_max_position_embeddings": 16,
      "beta_fast": 2.0,
      "beta_slow": 0.25,
    },
    rms_norm_eps=1e-5,
    sliding_window=None,
    tie_word_embeddings=False,
  ),
}
VARIANTS |= {
  "ministral3": dict(  # 3 of 8B: yarn whose mscales cancel, queries that grow with the position
    model_type="ministral3",
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rope_parameters=_MINISTRAL_ROPE,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
  ),
  "ministral3_tied": dict(  # 3B; an attention factor from different mscales
    model_type="ministral3",
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    rope_parameters=_MINISTRAL_ROPE | {"mscale": 2.0, "llama_4_scaling_beta": 0.3},
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
  ),
  "ministral3_windows": dict(  # the attention factor as given, a ramp that is not truncated
    model_type="ministral3",
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=12,
    rope_parameters=_MINISTRAL_ROPE | {"attention_factor": 1.3, "truncate": False},
    rms_norm_eps=1e-5,
    sliding_window=5,
    tie_word_embeddings=False,
  ),
}
VARIANTS |= {
  "llama_biases": dict(
    model_type="llama",
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    rms_norm_eps=1e-6,
    attention_bias=True,
    mlp_bias=True,
    tie_word_embeddings=False,
  ),
  "llama_yarn": dict(
    model_type="llama",
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_parameters={
      "rope_type": "yarn",
      "rope_theta": 10_000.0,
      "factor": 4.0,
      "original_max_position_embeddings": 16,
      "beta_fast": 1.5,
      "beta_slow": 0.1,
    },
    rms_norm_eps=1e-6,
    attention_bias=True,
    tie_word_embeddings=True,
  ),
  "llama_dynamic": dict(
    model_type="llama",
    num_attention_heads=4,
    num_key_value_heads=1,
    max_position_embeddings=40,
    rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
    rms_norm_eps=1e-6,
    mlp_bias=True,
    tie_word_embeddings=False,
  ),
}
VARIANTS |= {
  "smollm3": dict(  # tied, every second layer position-free (there: every fourth)
    model_type="smollm3",
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=4,
    no_rope_layer_interval=2,
    rope_parameters={"rope_type": "default", "rope_theta": 5_000.0},
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
  ),
  "smollm3_listed": dict(
    model_type="smollm3",
    num_attention_heads=4,
    num_key_value_heads=1,
    no_rope_layers=[0, 1, 1],
    rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    rms_norm_eps=1e-5,
    attention_bias=True,
    mlp_bias=True,
    tie_word_embeddings=False,
  ),
  "smollm3_yarn": dict(
    model_type="smollm3",
    num_attention_heads=4,
    num_key_value_heads=4,
    no_rope_layer_interval=3,
    rope_parameters={
      "rope_type": "yarn",
      "rope_theta": 10_000.0,
      "factor": 4.0,
      "original_max_position_embeddings": 16,
      "beta_fast": 1.5,
      "beta_slow": 0.1,
    },
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
  ),
}
VARIANTS |= {
  "granite": dict(  # 3.1 of 2B: tied, all four multipliers
    model_type="granite",
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_parameters={"rope_type": "default", "rope_theta": 5_000_000.0},
    rms_norm_eps=1e-5,
    embedding_multiplier=1.5,
    attention_multiplier=0.25,
    residual_multiplier=1.3,
    logits_scaling=0.4,
    tie_word_embeddings=True,
  ),
  "granite_biases": dict(
    model_type="granite",
    num_attention_heads=4,
    num_key_value_heads=1,
    rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    rms_norm_eps=1e-6,
    embedding_multiplier=1.5,
    attention_multiplier=0.5,
    residual_multiplier=0.9,
    logits_scaling=0.7,
    attention_bias=True,
    mlp_bias=True,
    tie_word_embeddings=False,
  ),
  "granite_plain": dict(  # every multiplier as the family's default has it
    model_type="granite",
    num_attention_heads=4,
    num_key_value_heads=4,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
  ),
}
VARIANTS |= {
  "gemma2": dict(  # 2B: both caps, every second layer with a window
    model_type="gemma2",
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_hidden_layers=4,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    rms_norm_eps=1e-6,
    sliding_window=4,
    query_pre_attn_scalar=24,
    attn_logit_softcapping=3.0,
    final_logit_softcapping=4.0,
    tie_word_embeddings=True,
  ),
  "gemma2_listed": dict(
    model_type="gemma2",
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=12,
    layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    rms_norm_eps=1e-6,
    sliding_window=5,
    query_pre_attn_scalar=8,
    attn_logit_softcapping=2.0,
    final_logit_softcapping=None,
    tie_word_embeddings=False,
  ),
  "gemma2_uncapped": dict(
    model_type="gemma2",
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    rms_norm_eps=1e-5,
    sliding_window=3,
    query_pre_attn_scalar=8,
    attn_logit_softcapping=None,
    final_logit_softcapping=3.0,
    tie_word_embeddings=True,
  ),
}
VARIANTS["gemma3_text_patterned"] = VARIANTS["gemma3_text"] | dict(
  num_key_value_heads=4,
  num_hidden_layers=4,
  layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
  rope_parameters={
    "full_attention": {"rope_type": "default", "rope_theta": 500_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1_000.0},
  },
  sliding_window=5,
)

CHAT_TEMPLATE = (
  "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
  "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ["<|text_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]


def make_model(folder, variant: str, *, dtype="float32", max_shard_size="1GB", seed=0, **changes):
  """Saves the variant, random, with a tokenizer to `folder`; returns the transformers model."""
  import torch

  model = random_model(variant, seed=seed, **changes).to(getattr(torch, dtype))
  model.save_pretrained(folder, max_shard_size=max_shard_size)
  make_tokenizer(folder)
  return model


def random_model(variant: str, *, seed=0, **changes):
  """The transformers model, float32, with eager attention (the one that knows soft caps)."""
  import torch
  import transformers

  sizes = {**_SIZES, **VARIANTS[variant], **changes}
  config = transformers.AutoConfig.for_model(
    **sizes, bos_token_id=None, eos_token_id=256, pad_token_id=None, attn_implementation="eager"
  )
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, p in model.named_parameters():
      # Every norm scale differs, and queries and keys are large enough for sharp attention.
      p.normal_(0.0, 0.3 if p.ndim == 1 else 1.5 * p.shape[-1] ** -0.5, generator=generator)
      if (
        p.ndim == 1
        and name.endswith("norm.weight")
        and config.model_type not in ("gemma2", "gemma3_text")
      ):
        p.add_(1.0)
      if name.endswith("embed_tokens.weight"):
        # Small against what the layers add, else a tied model only repeats its last token.
        p.mul_(0.5)
  return model


def random_model_like(model):
  """The same model again, in the default dtype of the moment."""
  import copy

  import transformers

  config = copy.deepcopy(model.config)
  config.dtype = None
  other = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
  other.load_state_dict(model.state_dict())
  return other


def load_model(folder):
  """The folder as transformers reads it, float32."""
  import torch
  import transformers

  model, report = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
  )
  assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (
    report
  )
  return model.eval()


def hf_logits(model, tokens_BT):
  """float32 logits of unpadded rows."""
  import torch

  with torch.no_grad():
    return model(input_ids=torch.tensor(tokens_BT)).logits.float().numpy()


def make_tokenizer(folder) -> None:
  """A byte-level tokenizer of 261 tokens with a chat template, in the usual files."""
  import tokenizers
  import transformers

  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  core = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
  core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  core.decoder = tokenizers.decoders.ByteLevel()
  core.add_special_tokens(SPECIAL_TOKENS)
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=core, eos_token="<|text_end|>", chat_template=CHAT_TEMPLATE
  ).save_pretrained(folder)


def edit_config(folder, **changes) -> None:
  """Changes keys of config.json; None removes one."""
  path = pathlib.Path(folder) / "config.json"
  config = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}, indent=2))


def bytes_of(folder) -> dict[str, bytes]:
  """Every file of the folder."""
  paths = (p for p in pathlib.Path(folder).rglob("*") if p.is_file())
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def tuned(params, seed=1) -> dict:
  """Every parameter moved, each by its own noise."""
  import numpy as np

  from mlit_jax.weights import table

  rng = np.random.default_rng(seed)
  return table.unflatten(
    {
      name: a + 0.05 * np.asarray(a).std() * rng.standard_normal(a.shape, np.float32)
      for name, a in table.flatten(params).items()
    }
  )


def rows_in_twelve_languages(folder, length):
  """tokens_BT: the beginning of a bundled conversation in each language, as the chat template has it."""
  import numpy as np
  import transformers

  import mlit_jax

  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  assets = pathlib.Path(mlit_jax.__file__).parent / "assets" / "instructions12" / "eval"
  rows = []
  for path in sorted(assets.glob("*.jsonl")):
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    turns = [{"role": "user", "content": row["prompt"]}]
    turns.append({"role": "assistant", "content": row["completion"]})
    ids = tokenizer.apply_chat_template(turns, return_dict=False)
    assert len(ids) >= length, path
    rows.append(ids[:length])
  assert len(rows) == 12
  return np.array(rows, np.int32)


def config_of(variant: str):
  """The variant's DecoderConfig, without making a model."""
  import transformers

  from mlit_jax.model.config import from_hf

  config = transformers.AutoConfig.for_model(**{**_SIZES, **VARIANTS[variant]}).to_dict()
  return from_hf(config)


def golden_lines(variant: str) -> list[str]:
  """One line per parameter: path, shape, axes."""
  from mlit_jax.model.decoder import param_specs
  from mlit_jax.weights.table import flatten

  specs = flatten(param_specs(config_of(variant)))
  return [
    f"{path}  {' '.join(map(str, s.shape))}  {' '.join(s.axes)}"
    for path, s in sorted(specs.items())
  ]


if __name__ == "__main__":
  GOLDEN.mkdir(exist_ok=True)
  for old in GOLDEN.glob("*.txt"):
    old.unlink()
  for name in VARIANTS:
    (GOLDEN / f"{name}.txt").write_text("\n".join(golden_lines(name)) + "\n")
