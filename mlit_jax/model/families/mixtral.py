"""Mixtral."""

from __future__ import annotations

from mlit_jax.model.families.common import GLOBAL, experts, require, rope, sizes


def mixtral(c: dict) -> dict:
  require(c, hidden_act=("silu",), layer_types=(None,), router_jitter_noise=(0.0, None))
  window = c.get("sliding_window") or GLOBAL
  return (
    sizes({"num_key_value_heads": 8} | c)
    | rope(c, ("default", "linear", "llama3", "yarn"), theta=1e6)
    | experts({"num_experts_per_tok": 2} | c)
    | {"windows": (window,) * c["num_hidden_layers"]}
  )
