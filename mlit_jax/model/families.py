"""What a Hugging Face config.json of each family means: keyword arguments of DecoderConfig.

A key that would change what the model computes is honoured here or refused; none is passed over.
"""

from __future__ import annotations

import math

from mlit_jax.errors import UserError

GLOBAL = 0  # a window of 0 sees the whole segment

# Keys of a rope entry, beside its type and theta, that we honour or that change nothing.
ROPE_KEYS = {
  "default": set(),
  "linear": {"factor"},
  # transformers scales beyond max_position_embeddings, whatever the original length says.
  "dynamic": {"factor", "original_max_position_embeddings"},
  "yarn": {
    "factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
    "truncate",
  },
  "llama3": {
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
  },
}


def _llama(c: dict) -> dict:
  _require(c, hidden_act=("silu",))
  return _sizes(c) | _rope(c, ("default", "llama3", "linear", "dynamic", "yarn")) | _biases(c)


def _qwen2(c: dict) -> dict:
  _require(c, hidden_act=("silu",))
  return (
    _sizes(c)
    | _rope(c, ("default", "linear", "llama3", "yarn"))
    | {"attn_bias": True, "windows": _qwen_windows(c)}
  )


def _qwen3(c: dict) -> dict:
  _require(c, hidden_act=("silu",), attention_bias=(False, None), use_sliding_window=(False, None))
  return _sizes(c) | _rope(c, ("default", "llama3", "linear", "yarn")) | {"qk_norm": True}


def _gemma3_text(c: dict) -> dict:
  # transformers reads this key for Gemma 3 and then caps nothing, so a model that sets it has two meanings.
  _require(c, attn_logit_softcapping=(None,))
  rope = c.get("rope_parameters") or {}
  if "full_attention" in rope:  # written by transformers 5: one entry per kind of layer
    full, sliding = rope["full_attention"], rope["sliding_attention"]
    fields = _rope(c | {"rope_parameters": full}, ("default", "linear"), theta=1e6)
    local = _rope(c | {"rope_parameters": sliding}, ("default",))["rope_theta"]
  else:
    fields = _rope(c, ("default", "linear"), theta=1e6)
    local = c.get("rope_local_base_freq", 10_000.0)
  return (
    _gemma(c)
    | fields
    | {
      "qk_norm": True,
      "rope_local_theta": local,
      "windows": _windows(c, _every(c, c.get("sliding_window_pattern", 6))),
    }
  )


def _mistral(c: dict) -> dict:
  _require(c, hidden_act=("silu",), layer_types=(None,))
  window = c.get("sliding_window") or GLOBAL
  return (
    _sizes(c)
    | _rope(c, ("default", "linear", "llama3", "yarn"))
    | {"windows": (window,) * c["num_hidden_layers"]}
  )


def _ministral3(c: dict) -> dict:
  entry = c.get("rope_parameters") or c.get("rope_scaling")
  if not entry:  # what transformers would take in its place is no published model's
    raise UserError("not supported: a ministral3 without rope_parameters")
  beta, length = entry.get("llama_4_scaling_beta"), entry.get("original_max_position_embeddings")
  if beta is None or length is None:  # transformers cannot compute these either
    raise UserError(
      "not supported: rope_parameters without llama_4_scaling_beta and "
      "original_max_position_embeddings, of ministral3"
    )
  _require(c, hidden_act=("silu",), layer_types=(None,))
  window = c.get("sliding_window") or GLOBAL
  own = frozenset({"llama_4_scaling_beta", "max_position_embeddings"})
  rope = _rope(c, ("yarn",), also=own)
  return (
    _sizes({"head_dim": 128} | c)
    | rope
    | {"query_growth": (beta, length), "windows": (window,) * c["num_hidden_layers"]}
  )


def _smollm3(c: dict) -> dict:
  _require(c, hidden_act=("silu",), use_sliding_window=(False, None))
  _windows(c | {"sliding_window": None}, ["full_attention"])
  every, layers = c.get("no_rope_layer_interval", 4), c["num_hidden_layers"]
  turned = c.get("no_rope_layers")  # despite its name: 1 for a layer that rotates
  if turned is None:
    turned = [(i + 1) % every != 0 for i in range(layers)]
  return (
    _sizes({"tie_word_embeddings": True} | c)
    | _rope(c, ("default", "linear", "llama3", "yarn"), theta=2e6)
    | _biases(c)
    | {"position_free": tuple(not x for x in turned[:layers])}
  )


def _granite(c: dict) -> dict:
  _require(c, hidden_act=("silu",))
  return (
    _sizes(c)
    | _rope(c, ("default", "linear", "llama3", "yarn"))
    | _biases(c)
    | {
      "embed_scale": float(c.get("embedding_multiplier", 1.0)),
      "query_scale": float(c.get("attention_multiplier", 1.0)),
      "residual_scale": float(c.get("residual_multiplier", 1.0)),
      "logit_scale": 1.0 / c.get("logits_scaling", 1.0),
    }
  )


def _gemma2(c: dict) -> dict:
  return (
    _gemma({"final_logit_softcapping": 30.0} | c)
    | _rope(c, ("default", "linear"))
    | {
      "windows": _windows({"sliding_window": 4096} | c, _every(c, 2)),
      "attn_softcap": c.get("attn_logit_softcapping", 50.0),
    }
  )


FAMILIES = {
  "gemma2": _gemma2,
  "granite": _granite,
  "smollm3": _smollm3,
  "ministral3": _ministral3,
  "mistral": _mistral,
  "llama": _llama,
  "qwen2": _qwen2,
  "qwen3": _qwen3,
  "gemma3_text": _gemma3_text,
}


def _qwen_windows(c: dict) -> tuple[int, ...]:
  """Without use_sliding_window, published configs name a window all the same, which is not used."""
  if c.get("use_sliding_window"):
    first = c.get("max_window_layers", 28)
    default = [
      "sliding_attention" if i >= first else "full_attention" for i in range(c["num_hidden_layers"])
    ]
    return _windows(c, default)
  return _windows(c | {"sliding_window": None}, ["full_attention"] * c["num_hidden_layers"])


def _gemma(c: dict) -> dict:
  """What Gemma 2 and 3 share."""
  activation = c.get("hidden_activation") or c.get("hidden_act") or "gelu_pytorch_tanh"
  if activation != "gelu_pytorch_tanh":
    raise UserError(f"not supported: hidden_activation {activation!r} of {c['model_type']}")
  _require(c, attention_bias=(False, None), use_bidirectional_attention=(False, None))
  return _sizes({"head_dim": 256, "tie_word_embeddings": True} | c) | {
    "norm_plus_one": True,
    "post_norms": True,
    "activation": "gelu_tanh",
    "embed_scale": math.sqrt(c["hidden_size"]),
    "query_scale": c.get("query_pre_attn_scalar", 256) ** -0.5,
    "final_softcap": c.get("final_logit_softcapping"),
  }


def _biases(c: dict) -> dict:
  """attention_bias is on all four projections of attention."""
  attn = bool(c.get("attention_bias"))
  return {"attn_bias": attn, "out_bias": attn, "mlp_bias": bool(c.get("mlp_bias"))}


def _sizes(c: dict) -> dict:
  return {
    "family": c["model_type"],
    "vocab_size": c["vocab_size"],
    "d_model": c["hidden_size"],
    "num_layers": c["num_hidden_layers"],
    "num_heads": c["num_attention_heads"],
    "num_kv_heads": c.get("num_key_value_heads") or c["num_attention_heads"],
    "head_dim": c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
    "d_ff": c["intermediate_size"],
    "norm_eps": c["rms_norm_eps"],
    "tied": bool(c.get("tie_word_embeddings", False)),
  }


def _every(c: dict, n: int) -> list[str]:
  """layer_types where config.json has none: every n-th layer sees all."""
  return [
    "sliding_attention" if (i + 1) % n else "full_attention" for i in range(c["num_hidden_layers"])
  ]


def _windows(c: dict, default: list[str]) -> tuple[int, ...]:
  """A window per layer, from layer_types or else `default`."""
  kinds = c.get("layer_types") or default
  unknown = set(kinds) - {"sliding_attention", "full_attention"}
  if unknown:
    raise UserError(f"not supported: layer_types {sorted(unknown)} of {c['model_type']}")
  if "sliding_attention" in kinds and not c.get("sliding_window"):
    raise UserError(
      f"not supported: layers of sliding_attention without a sliding_window, of {c['model_type']}"
    )
  return tuple(c["sliding_window"] if k == "sliding_attention" else GLOBAL for k in kinds)


def _rope(c: dict, supported: tuple[str, ...], theta: float = 10_000.0, also=frozenset()) -> dict:
  """rope_theta and rope_scaling from either spelling: rope_theta + rope_scaling, or rope_parameters.

  `also` names keys of the entry that the family reads itself.
  """
  entry = dict(c.get("rope_parameters") or c.get("rope_scaling") or {})
  theta = entry.pop("rope_theta", None) or c.get("rope_theta") or theta
  kind = entry.pop("rope_type", None) or entry.get("type") or "default"
  entry.pop("type", None)
  if kind not in supported:
    raise UserError(
      f"not supported: rope type {kind!r} of {c['model_type']}; "
      f"supported are {', '.join(supported)}"
    )
  partial = entry.pop("partial_rotary_factor", None) or c.get("partial_rotary_factor") or 1.0
  if partial != 1.0:
    raise UserError(f"not supported: partial_rotary_factor = {partial} of {c['model_type']}")
  entry = {key: value for key, value in entry.items() if value is not None}
  if kind in ("llama3", "yarn"):
    entry.setdefault("original_max_position_embeddings", c.get("max_position_embeddings"))
  if "factor" in ROPE_KEYS[kind] and "factor" not in entry:
    raise UserError(f"not supported: rope type {kind} without a factor, of {c['model_type']}")
  unknown = set(entry) - ROPE_KEYS[kind] - also
  if unknown:
    raise UserError(
      f"not supported: {', '.join(sorted(unknown))} of rope type {kind} of {c['model_type']}"
    )
  if kind == "dynamic":
    entry["original_max_position_embeddings"] = c["max_position_embeddings"]
  scaling = None if kind == "default" else tuple(sorted({"rope_type": kind, **entry}.items()))
  return {"rope_theta": float(theta), "rope_scaling": scaling}


def _require(c: dict, **allowed) -> None:
  for key, values in allowed.items():
    if key in c and c[key] not in values:
      raise UserError(f"not supported: {key} = {c[key]!r} of {c['model_type']}; only {values[0]!r}")
