"""What the readers of several families share: keys of config.json to keyword arguments of DecoderConfig."""

from __future__ import annotations

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


def sizes(c: dict) -> dict:
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


def biases(c: dict) -> dict:
  """attention_bias is on all four projections of attention."""
  attn = bool(c.get("attention_bias"))
  return {"attn_bias": attn, "out_bias": attn, "mlp_bias": bool(c.get("mlp_bias"))}


def experts(c: dict) -> dict:
  """The router and its experts; transformers 5 calls their number num_local_experts in every family."""
  numbers = {c[key] for key in ("num_experts", "num_local_experts") if c.get(key)}
  if len(numbers) != 1:
    raise UserError(
      f"not supported: num_experts {c.get('num_experts')} and num_local_experts "
      f"{c.get('num_local_experts')} of {c['model_type']}"
    )
  return {
    "num_experts": numbers.pop(),
    "experts_per_token": c["num_experts_per_tok"],
    "router_loss_weight": float(c.get("router_aux_loss_coef", 0.001)),
  }


def every(c: dict, n: int) -> list[str]:
  """layer_types where config.json has none: every n-th layer sees all."""
  return [
    "sliding_attention" if (i + 1) % n else "full_attention" for i in range(c["num_hidden_layers"])
  ]


def windows(c: dict, default: list[str]) -> tuple[int, ...]:
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


def rope(c: dict, supported: tuple[str, ...], theta: float = 10_000.0, also=frozenset()) -> dict:
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


def require(c: dict, **allowed) -> None:
  for key, values in allowed.items():
    if key in c and c[key] not in values:
      raise UserError(f"not supported: {key} = {c[key]!r} of {c['model_type']}; only {values[0]!r}")
