"""Gemma 4: layers of several shapes (kinds.py), borrowed keys and values, a second embedding."""

from __future__ import annotations

import math

from mlit_jax.errors import UserError
from mlit_jax.model.families.common import every, require, rope, sizes, windows

# What transformers fills in of a text_config.
_DEFAULTS = {
  "vocab_size": 262_144,
  "hidden_size": 2304,
  "intermediate_size": 9216,
  "num_hidden_layers": 30,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "head_dim": 256,
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": True,
  "sliding_window": 512,
  "hidden_size_per_layer_input": 256,
}
_ROPE = {
  "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
  "full_attention": {
    "rope_type": "proportional",
    "partial_rotary_factor": 0.25,
    "rope_theta": 1_000_000.0,
  },
}
_FULL = "full_attention"


def gemma4_text(c: dict) -> dict:
  c = _DEFAULTS | {key: value for key, value in c.items() if value is not None}
  require(
    c,
    attention_bias=(False,),
    enable_moe_block=(False,),  # a router and experts beside the MLP, each with norms of its own
    hidden_activation=("gelu_pytorch_tanh",),
    use_bidirectional_attention=("vision",),  # among the tokens of a picture, which no row may hold
  )
  kinds = c.get("layer_types") or every(c, 6)
  kinds = [
    *kinds[:-1],
    _FULL,
  ]  # transformers makes the last layer one of these, whatever the list says
  num_borrowing = c.get("num_kv_shared_layers", 0)
  width = c["hidden_size_per_layer_input"]
  if num_borrowing and not width:  # its reference stops with an error
    raise UserError(
      "not supported: num_kv_shared_layers without hidden_size_per_layer_input, of gemma4"
    )
  if width and c.get("vocab_size_per_layer_input", 262_144) != c["vocab_size"]:
    raise UserError(
      f"not supported: vocab_size_per_layer_input = {c.get('vocab_size_per_layer_input', 262_144)} beside a "
      f"vocab_size of {c['vocab_size']}, of gemma4"
    )
  double = num_borrowing and c.get("use_double_wide_mlp")
  return (
    sizes(c)
    | _global_heads(c, kinds)
    | _ropes(c, kinds)
    | {
      "windows": windows(c | {"layer_types": kinds}, []),
      "norm_late_cast": True,
      "post_norms": True,
      "qk_norm": True,
      "value_norm": True,
      "query_scale": 1.0,
      "activation": "gelu_tanh",
      "embed_scale": math.sqrt(c["hidden_size"]),
      "final_softcap": c.get("final_logit_softcapping"),
      "layer_scalar": True,
      "layer_input_dim": width,
      "num_borrowing": num_borrowing,
      "borrowing_d_ff": c["intermediate_size"] * (2 if double else 1),
    }
  )


def gemma4(c: dict) -> dict:
  """The text tower of a model that also sees and hears; its other weights are carried (names.py)."""
  text = {"model_type": "gemma4_text"} | (c.get("text_config") or {})
  if text["model_type"] != "gemma4_text":
    raise UserError(f"not supported: a text_config of {text['model_type']!r} in gemma4")
  # transformers goes by the outer key.
  tied = c.get("tie_word_embeddings", text.get("tie_word_embeddings", True))
  return gemma4_text(text | {"tie_word_embeddings": tied}) | {"family": "gemma4"}


def _global_heads(c: dict, kinds: list[str]) -> dict:
  """What global layers have in place of head_dim and num_key_value_heads.

  The hub says so in keys of its own, transformers 5 writes per_layer_config: what differs, by layer.
  """
  keys_as_values = bool(c.get("attention_k_eq_v"))
  heads = c.get("num_global_key_value_heads") if keys_as_values else None
  differs = {"head_dim": c.get("global_head_dim", 512)}
  differs |= {"num_key_value_heads": heads} if heads else {}
  if "per_layer_config" in c:
    by_layer = {int(i): dict(entry) for i, entry in c["per_layer_config"].items() if entry}
    full = [i for i, kind in enumerate(kinds) if kind == _FULL]
    differs = by_layer.get(full[0], {})
    unknown = set(differs) - {"head_dim", "num_key_value_heads"}
    if unknown or by_layer != ({i: differs for i in full} if differs else {}):
      raise UserError(
        f"not supported: per_layer_config = {c['per_layer_config']} of gemma4; only a head_dim and a "
        f"num_key_value_heads that are the same in all layers of {_FULL} and in no other"
      )
  return {
    "global_head_dim": differs.get("head_dim", c["head_dim"]),
    "global_kv_heads": differs.get("num_key_value_heads", c["num_key_value_heads"]),
    "global_keys_as_values": keys_as_values,
  }


def _ropes(c: dict, kinds: list[str]) -> dict:
  """Each kind of layer has an entry of its own."""
  entries = c.get("rope_parameters") or _ROPE
  missing = {*kinds} - {*entries}
  if missing:
    raise UserError(
      f"not supported: rope_parameters without {', '.join(sorted(missing))}, of gemma4"
    )
  full = dict(entries[_FULL])
  turned = 1.0
  if full.get("rope_type") == "proportional":
    full, turned = {"factor": 1.0} | full, full.get("partial_rotary_factor", 1.0)
    full.pop("partial_rotary_factor", None)
  fields = rope(c | {"rope_parameters": full}, ("default", "linear", "proportional"))
  if full.get("rope_type") == "proportional":
    scaling = dict(fields["rope_scaling"]) | {"partial_rotary_factor": float(turned)}
    fields["rope_scaling"] = tuple(sorted(scaling.items()))
  sliding = entries.get("sliding_attention", _ROPE["sliding_attention"])
  local = rope(c | {"rope_parameters": sliding}, ("default",))["rope_theta"]
  return fields | {"rope_local_theta": local}
