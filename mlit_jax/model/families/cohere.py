"""Cohere: Command R, Aya 23 and Aya Expanse (cohere), Command R7B, Command A and Tiny Aya (cohere2)."""

from __future__ import annotations

from mlit_jax.errors import UserError
from mlit_jax.model.families.common import SCALINGS, biases, every, require, rope, sizes, windows


def cohere(c: dict) -> dict:
  qk_norm = bool(c.get("use_qk_norm"))
  fields = {"qk_norm": qk_norm, "qk_norm_per_head": qk_norm}
  return _cohere(c) | rope(c, SCALINGS, theta=500_000.0) | fields


def cohere2(c: dict) -> dict:
  """Only layers with a window have positions."""
  every_n = c.get("sliding_window_pattern", 4)
  # What Cohere's own code reads of these, transformers takes for granted.
  require(
    c,
    use_qk_norm=(False, None),
    position_embedding_type=("rope_gptj", None),
    rotary_pct=(1.0, None),
    use_parallel_block=(True, None),
    use_gated_activation=(True, None),
    use_embedding_sharing=(c.get("tie_word_embeddings", True), None),
    order_of_interleaved_layers=("local_attn_first", None),
  )
  if c.get("layer_types") is None:
    require(c, layer_switch=(every_n, None))
  of_layers = windows({"sliding_window": 4096} | c, every(c, every_n))
  return (
    _cohere(c)
    | rope(c, SCALINGS)
    | {"windows": of_layers, "position_free": tuple(not window for window in of_layers)}
  )


def _cohere(c: dict) -> dict:
  """What the two share."""
  require(c, hidden_act=("silu",))
  logit_scale = c.get("logit_scale", 0.0625)
  if logit_scale is None:  # transformers cannot compute these either
    raise UserError(f"not supported: a {c['model_type']} without a logit_scale")
  eps = {"rms_norm_eps": c.get("layer_norm_eps", 1e-5)}
  return (
    sizes({"tie_word_embeddings": True} | c | eps)
    | biases(c | {"mlp_bias": False})
    | {
      "norm": "layer",
      "parallel": True,
      "rope_interleaved": True,
      "logit_scale": float(logit_scale),
    }
  )
