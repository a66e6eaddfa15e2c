"""What both sides of benchmarks/gpu.py are given: sizes of models, examples of natural lengths, packed rows.

Nothing here imports JAX or torch.
"""

from __future__ import annotations

import numpy as np

from mlit_jax.data.packing import pack


class NotMeasured(Exception):
  """Why there is no figure; told in its place."""


# config.json of Qwen2.5-0.5B, Llama-3.2-1B, Llama-3.2-3B and Llama-3.1-8B, as far as sizes and arithmetic go.
_LLAMA = dict(
  model_type="llama", hidden_act="silu", rms_norm_eps=1e-5, rope_theta=500_000.0, vocab_size=128_256,
  max_position_embeddings=131_072, attention_bias=False, mlp_bias=False,
)  # fmt: skip
MODELS = {
  "0.5B": dict(
    model_type="qwen2", hidden_act="silu", rms_norm_eps=1e-6, rope_theta=1_000_000.0, vocab_size=151_936,
    max_position_embeddings=32_768, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
    num_attention_heads=14, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True, use_sliding_window=False,
  ),
  "1.2B": _LLAMA | dict(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
  ),
  "3B": _LLAMA | dict(
    hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
    num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
  ),
  "8B": _LLAMA | dict(
    hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, tie_word_embeddings=False,
  ),
}  # fmt: skip
_TINY = dict(
  hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
  num_key_value_heads=2, head_dim=16, vocab_size=512, max_position_embeddings=1024,
)  # fmt: skip
TRAINED = 0.7  # of an example, its end
LENGTHS = "log-normal lengths (median 220, sigma 1; no real data), the last 70 % of each trained"


def hf_config(name: str, tiny: bool) -> dict:
  return MODELS[name] | (_TINY if tiny else {})


def example_lengths(count: int, longest: int, seed: int = 0) -> np.ndarray:
  """As benchmarks/loader.py draws them."""
  drawn = np.random.default_rng(seed).lognormal(np.log(220), 1.0, count)
  return np.clip(drawn.astype(int), 8, longest)


def packed_arrays(rows: int, length: int, vocab: int, *, packing=True, longest: int = 0) -> dict:
  """The fields of a Batch by name: rows of examples, each its own segment; packing=False: one a row.

  Of many examples the first rows are taken, as a run would have them: full ones, not the leftovers.
  """
  rng = np.random.default_rng(1)
  lengths = example_lengths(rows * 64 + 512, longest or length)
  if packing:
    items, starts = pack(lengths, length)
  else:
    items, starts = np.arange(len(lengths)), np.arange(len(lengths) + 1)
  ints = ("tokens", "targets", "positions", "segments", "language")
  out = {name: np.zeros((rows, length), np.int32) for name in ints}
  out["weights"] = np.zeros((rows, length), np.float32)
  for row in range(rows):
    at = 0
    for number, item in enumerate(items[starts[row] : starts[row + 1]], start=1):
      size = int(lengths[item])
      span = slice(at, at + size)
      tokens = rng.integers(4, vocab, size)
      out["tokens"][row, span] = tokens
      out["targets"][row, at : at + size - 1] = tokens[1:]
      out["weights"][row, at + int(size * (1 - TRAINED)) : at + size - 1] = 1
      out["positions"][row, span] = np.arange(size)
      out["segments"][row, span] = number
      at += size
  return out


def segment_lengths(arrays: dict) -> np.ndarray:
  """Of all segments, row after row."""
  return np.concatenate([np.bincount(row)[1:] for row in arrays["segments"]])


def tokens_of(arrays: dict) -> int:
  """Padding is none."""
  return int((arrays["segments"] > 0).sum())


def trained_of(arrays: dict) -> int:
  return int(arrays["weights"].sum())
