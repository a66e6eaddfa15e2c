"""Llama and the families that follow it: SmolLM3 and Granite."""

from __future__ import annotations

from mlit_jax.errors import UserError
from mlit_jax.model.families.common import SCALINGS, biases, require, rope, sizes, windows


def llama(c: dict) -> dict:
  require(c, hidden_act=("silu",))
  return sizes(c) | rope(c, (*SCALINGS, "dynamic")) | biases(c)


def smollm3(c: dict) -> dict:
  require(c, hidden_act=("silu",), use_sliding_window=(False, None))
  windows(c | {"sliding_window": None}, ["full_attention"])
  every, layers = c.get("no_rope_layer_interval", 4), c["num_hidden_layers"]
  turned = c.get("no_rope_layers")  # despite its name: 1 for a layer that rotates
  if turned is None:
    turned = [(i + 1) % every != 0 for i in range(layers)]
  if len(turned) < layers:
    raise UserError(f"not supported: {len(turned)} no_rope_layers for {layers} layers, of smollm3")
  return (
    sizes({"tie_word_embeddings": True} | c)
    | rope(c, SCALINGS, theta=2e6)
    | biases(c)
    | {"position_free": tuple(not x for x in turned[:layers])}
  )


def granite(c: dict) -> dict:
  require(c, hidden_act=("silu",))
  return (
    sizes(c)
    | rope(c, SCALINGS)
    | biases(c)
    | {
      "embed_scale": float(c.get("embedding_multiplier", 1.0)),
      "query_scale": float(c.get("attention_multiplier", 1.0)),
      "residual_scale": float(c.get("residual_multiplier", 1.0)),
      "logit_scale": 1.0 / c.get("logits_scaling", 1.0),
    }
  )
