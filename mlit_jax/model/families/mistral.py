"""Mistral and Ministral 3."""

from __future__ import annotations

from mlit_jax.errors import UserError
from mlit_jax.model.families.common import GLOBAL, SCALINGS, require, rope, rope_entry, sizes


def mistral(c: dict) -> dict:
  require(c, hidden_act=("silu",), layer_types=(None,))
  window = c.get("sliding_window", 4096) or GLOBAL  # as transformers has it where the key is absent
  return (
    sizes({"num_key_value_heads": 8} | c)
    | rope(c, SCALINGS)
    | {"windows": (window,) * c["num_hidden_layers"]}
  )


def ministral3(c: dict) -> dict:
  entry = rope_entry(c)
  if not entry:  # what transformers would take in its place is no published model's
    raise UserError("not supported: a ministral3 without rope_parameters")
  beta, length = entry.get("llama_4_scaling_beta"), entry.get("original_max_position_embeddings")
  if beta is None or length is None:  # transformers cannot compute these either
    raise UserError(
      "not supported: rope_parameters without llama_4_scaling_beta and "
      "original_max_position_embeddings, of ministral3"
    )
  require(c, hidden_act=("silu",), layer_types=(None,))
  window = c.get("sliding_window") or GLOBAL
  own = frozenset({"llama_4_scaling_beta", "max_position_embeddings"})
  return (
    sizes({"head_dim": 128, "num_key_value_heads": 8} | c)
    | rope(c, ("yarn",), also=own)
    | {"query_growth": (beta, length), "windows": (window,) * c["num_hidden_layers"]}
  )
