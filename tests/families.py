"""Tiny random models of the three families, made and saved by transformers itself.

families.make_model(folder, "gemma3_text", dtype="bfloat16", max_shard_size="40KB")
"""

import json
import pathlib

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
      if p.ndim == 1 and config.model_type != "gemma3_text":
        p.add_(1.0)
      if name.endswith("embed_tokens.weight"):
        # Small against what the layers add, else a tied model only repeats its last token.
        p.mul_(0.5)
  return model


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
