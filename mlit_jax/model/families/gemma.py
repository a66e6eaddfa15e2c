"""Gemma 2 and 3."""

from __future__ import annotations

import math

from mlit_jax.errors import UserError
from mlit_jax.model.families.common import every, require, rope, sizes, windows

# What transformers fills in of a text_config: the released folders of Gemma 3 leave it out.
_GEMMA3 = {
  "model_type": "gemma3_text",
  "vocab_size": 262_208,
  "hidden_size": 2304,
  "intermediate_size": 9216,
  "num_hidden_layers": 26,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "rms_norm_eps": 1e-6,
  "sliding_window": 4096,
}


def gemma2(c: dict) -> dict:
  return (
    _gemma({"final_logit_softcapping": 30.0} | c)
    | rope(c, ("default", "linear"))
    | {
      "windows": windows({"sliding_window": 4096} | c, every(c, 2)),
      "attn_softcap": c.get("attn_logit_softcapping", 50.0),
    }
  )


def gemma3_text(c: dict) -> dict:
  # transformers reads this key for Gemma 3 and then caps nothing, so a model that sets it has two meanings.
  require(c, attn_logit_softcapping=(None,))
  entries = c.get("rope_parameters") or {}
  if "full_attention" in entries:  # written by transformers 5: one entry per kind of layer
    full, sliding = entries["full_attention"], entries["sliding_attention"]
    fields = rope(c | {"rope_parameters": full}, ("default", "linear"), theta=1e6)
    local = rope(c | {"rope_parameters": sliding, "rope_scaling": None}, ("default",))["rope_theta"]
  else:
    fields = rope(c, ("default", "linear"), theta=1e6)
    local = c.get("rope_local_base_freq", 10_000.0)
  return (
    _gemma(c)
    | fields
    | {
      "qk_norm": True,
      "rope_local_theta": local,
      "windows": windows(c, every(c, c.get("sliding_window_pattern", 6))),
    }
  )


def gemma3(c: dict) -> dict:
  """The text tower of a model that also sees pictures; its other weights are carried (names.py)."""
  text = _GEMMA3 | (c.get("text_config") or {})
  if text["model_type"] != "gemma3_text":
    raise UserError(f"not supported: a text_config of {text['model_type']!r} in gemma3")
  # transformers caps the logits of gemma3_text and not those of gemma3, whatever this key says.
  require(text, final_logit_softcapping=(None,))
  # transformers 5 goes by the outer key, transformers 4 by the inner one and wrote only that.
  tied = c.get("tie_word_embeddings", text.get("tie_word_embeddings", True))
  return gemma3_text(text | {"tie_word_embeddings": tied}) | {"family": "gemma3"}


def _gemma(c: dict) -> dict:
  """What Gemma 2 and 3 share."""
  activation = c.get("hidden_activation") or c.get("hidden_act") or "gelu_pytorch_tanh"
  if activation != "gelu_pytorch_tanh":
    raise UserError(f"not supported: hidden_activation {activation!r} of {c['model_type']}")
  require(c, attention_bias=(False, None), use_bidirectional_attention=(False, None))
  return sizes({"head_dim": 256, "tie_word_embeddings": True} | c) | {
    "norm_plus_one": True,
    "post_norms": True,
    "activation": "gelu_tanh",
    "embed_scale": math.sqrt(c["hidden_size"]),
    "query_scale": c.get("query_pre_attn_scalar", 256) ** -0.5,
    "final_softcap": c.get("final_logit_softcapping"),
  }
