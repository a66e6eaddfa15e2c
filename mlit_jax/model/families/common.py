"""What the readers of several families share: keys of config.json to keyword arguments of DecoderConfig."""

from __future__ import annotations

import math

from mlit_jax.errors import UserError

GLOBAL = 0  # a window of 0 sees the whole segment

# Kinds of rope that most families have; one with more adds them to these.
SCALINGS = ("default", "linear", "llama3", "yarn")
# Keys of a rope entry, beside its type and theta, that we honour or that change nothing.
ROPE_KEYS = {
  "default": set(),
  "linear": {"factor"},
  "proportional": {"factor"},
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
  "longrope": {
    "factor",
    "attention_factor",
    "short_factor",
    "long_factor",
    "original_max_position_embeddings",
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
    "head_dim": head_dim(c),
    "d_ff": c["intermediate_size"],
    "norm_eps": c["rms_norm_eps"],
    "tied": bool(c.get("tie_word_embeddings", False)),
  }


def head_dim(c: dict) -> int:
  return c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]


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


def rope(
  c: dict, supported: tuple[str, ...], theta: float = 10_000.0, also=frozenset(), partial=False
) -> dict:
  """rope_theta and rope_scaling from either spelling: rope_theta + rope_scaling, or rope_parameters.

  `also` names keys of the entry that the family reads itself. `partial` allows a partial_rotary_factor.
  """
  entry = rope_entry(c)
  theta = entry.pop("rope_theta", None) or c.get("rope_theta") or theta
  kind = entry.pop("rope_type", None) or entry.get("type") or "default"
  entry.pop("type", None)
  if kind not in supported:
    raise UserError(
      f"not supported: rope type {kind!r} of {c['model_type']}; "
      f"supported are {', '.join(supported)}"
    )
  turned = entry.pop("partial_rotary_factor", None) or c.get("partial_rotary_factor") or 1.0
  rotary_dim = int(head_dim(c) * turned)
  if turned != 1.0 and (not partial or rotary_dim % 2):
    raise UserError(f"not supported: partial_rotary_factor = {turned} of {c['model_type']}")
  entry = {key: value for key, value in entry.items() if value is not None}
  if kind in ("llama3", "yarn"):
    entry.setdefault("original_max_position_embeddings", c.get("max_position_embeddings"))
  if "factor" in ROPE_KEYS[kind] and kind != "longrope" and "factor" not in entry:
    raise UserError(f"not supported: rope type {kind} without a factor, of {c['model_type']}")
  unknown = set(entry) - ROPE_KEYS[kind] - also
  if unknown:
    raise UserError(
      f"not supported: {', '.join(sorted(unknown))} of rope type {kind} of {c['model_type']}"
    )
  if kind == "dynamic":
    entry["original_max_position_embeddings"] = c["max_position_embeddings"]
  if kind == "longrope":
    entry = _longrope(c, entry, rotary_dim)
  scaling = None if kind == "default" else tuple(sorted({"rope_type": kind, **entry}.items()))
  fields = {"rope_theta": float(theta), "rope_scaling": scaling}
  return fields if turned == 1.0 else fields | {"rotary_dim": rotary_dim}


def rope_entry(c: dict) -> dict:
  """rope_parameters or rope_scaling; where both are there, transformers 4 and 5 take different ones."""
  new, old = ({**(c.get(key) or {})} for key in ("rope_parameters", "rope_scaling"))

  def meaning(entry):
    kind = entry.get("rope_type") or entry.get("type") or "default"
    return {"rope_type": kind} | {
      k: v for k, v in entry.items() if k not in ("rope_theta", "rope_type", "type")
    }

  if new and old and meaning(new) != meaning(old):
    raise UserError(
      f"not supported: rope_parameters beside a rope_scaling that says otherwise, of {c['model_type']}; "
      "remove one of them"
    )
  return new or old


def _longrope(c: dict, entry: dict, rotary_dim: int) -> dict:
  """A longrope entry with its original length and its attention factor worked out.

  The original length beside the entry goes before the one in it, as in transformers.
  """
  key = "original_max_position_embeddings"
  original = c.get(key) or entry.get(key) or c["max_position_embeddings"]
  if entry.get(key, original) != original:
    raise UserError(
      f"not supported: {key} = {original}, but {entry[key]} of rope type longrope, of {c['model_type']}"
    )
  out = {key: original}
  for name in ("short_factor", "long_factor"):
    factors = tuple(float(x) for x in entry.get(name, ()))
    if len(factors) != rotary_dim // 2:
      raise UserError(
        f"not supported: {len(factors)} values of {name} for {rotary_dim // 2} frequencies, of "
        f"{c['model_type']}"
      )
    out[name] = factors
  factor = entry.get("factor", c["max_position_embeddings"] / original)
  usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
  return out | {"attention_factor": float(entry.get("attention_factor", usual))}


def require(c: dict, **allowed) -> None:
  for key, values in allowed.items():
    if key in c and c[key] not in values:
      raise UserError(f"not supported: {key} = {c[key]!r} of {c['model_type']}; only {values[0]!r}")
