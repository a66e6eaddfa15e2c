"""Phi-3, Phi-3.5-mini, Phi-4 and Phi-4-mini (all phi3)."""

from __future__ import annotations

from mlit_jax.model.families.common import GLOBAL, require, rope, sizes


def phi3(c: dict) -> dict:
  # What Microsoft's own code reads of these, transformers takes for granted.
  require(
    c,
    hidden_act=("silu",),
    attention_bias=(False, None),
    mlp_bias=(False, None),
    lm_head_bias=(False, None),
    full_attn_mod=(1, None),
    interpolate_factor=(1, None),
    layer_types=(None,),
  )
  window = c.get("sliding_window") or GLOBAL
  return (
    sizes({"rms_norm_eps": 1e-5} | c)
    | rope(_renamed(c), ("default", "longrope"), partial=True)
    | {"windows": (window,) * c["num_hidden_layers"]}
  )


def _renamed(c: dict) -> dict:
  """The config with what older ones call su or yarn as longrope, and its default original length."""
  c = {"original_max_position_embeddings": 4096} | c
  for key in ("rope_parameters", "rope_scaling"):
    entry = c.get(key) or {}
    kind = entry.get("rope_type") or entry.get("type")
    if kind in ("su", "yarn"):
      c = c | {key: {k: v for k, v in entry.items() if k != "type"} | {"rope_type": "longrope"}}
  return c
