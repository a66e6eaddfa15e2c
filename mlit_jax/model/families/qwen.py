"""Qwen 2 and 3, and 3 with experts."""

from __future__ import annotations

from mlit_jax.model.families.common import (
  GLOBAL,
  SCALINGS,
  biases,
  experts,
  require,
  rope,
  sizes,
  windows,
)


def qwen2(c: dict) -> dict:
  require(c, hidden_act=("silu",))
  return sizes(c) | rope(c, SCALINGS) | {"attn_bias": True, "windows": _qwen_windows(c)}


def qwen3(c: dict) -> dict:
  require(c, hidden_act=("silu",), attention_bias=(False, None), use_sliding_window=(False, None))
  c = {"head_dim": 128} | c
  return sizes(c) | rope(c, SCALINGS) | {"qk_norm": True}


def qwen3_moe(c: dict) -> dict:
  require(
    c,
    hidden_act=("silu",),
    decoder_sparse_step=(1,),
    mlp_only_layers=([], None),
    layer_types=(None,),
    mlp_bias=(False, None),
  )
  window = c.get("sliding_window", 4096) if c.get("use_sliding_window") else None
  return (
    sizes({"num_key_value_heads": 4} | c)
    | rope(c, SCALINGS)
    | biases(c)
    | experts({"num_experts_per_tok": 8} | c)
    | {
      "d_ff": c["moe_intermediate_size"],
      "norm_choices": bool(c.get("norm_topk_prob", False)),
      "qk_norm": True,
      "windows": (window or GLOBAL,) * c["num_hidden_layers"],
    }
  )


def _qwen_windows(c: dict) -> tuple[int, ...]:
  """Without use_sliding_window, published configs name a window all the same, which is not used."""
  if c.get("use_sliding_window"):
    first = c.get("max_window_layers", 28)
    default = [
      "sliding_attention" if i >= first else "full_attention" for i in range(c["num_hidden_layers"])
    ]
    return windows(c, default)
  return windows(c | {"sliding_window": None}, ["full_attention"] * c["num_hidden_layers"])
