"""The sizes and choices of a decoder, and how a Hugging Face config.json becomes them."""

from __future__ import annotations

import dataclasses
import math

from mlit_jax.errors import UserError

GLOBAL = 0  # a window of 0 sees the whole segment


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """All that distinguishes the decoders of the supported families. Hashable: static under jit."""

  family: str
  vocab_size: int
  d_model: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  d_ff: int
  norm_eps: float = 1e-6
  norm_plus_one: bool = False  # Gemma stores w and multiplies by 1 + w
  post_norms: bool = False  # Gemma 3 normalises the output of attention and MLP as well
  qk_norm: bool = False
  activation: str = "silu"  # or gelu_tanh
  embed_scale: float = 1.0
  tied: bool = True
  query_scale: float | None = None  # None: head_dim ** -0.5
  rope_theta: float = 10_000.0
  rope_scaling: tuple | None = None  # sorted (key, value) pairs of the HF entry; global layers only
  rope_local_theta: float | None = None  # of layers with a window; None: as the global ones
  windows: tuple[int, ...] = ()  # per layer, 0 = global; () = all global
  attn_bias: bool = False  # on q, k, v
  attn_softcap: float | None = None
  final_softcap: float | None = None

  def __post_init__(self):
    if not self.windows:
      object.__setattr__(self, "windows", (GLOBAL,) * self.num_layers)
    if self.query_scale is None:
      object.__setattr__(self, "query_scale", self.head_dim**-0.5)
    if len(self.windows) != self.num_layers:
      raise UserError(f"{len(self.windows)} attention windows for {self.num_layers} layers")
    if self.num_heads % self.num_kv_heads:
      raise UserError(
        f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
      )


def from_hf(config: dict) -> DecoderConfig:
  """DecoderConfig of a parsed config.json; UserError for what this project does not support."""
  family = config.get("model_type")
  if family not in FAMILIES:
    raise UserError(
      f"not supported: model_type {family!r}. Supported are {', '.join(sorted(FAMILIES))}."
    )
  try:
    return FAMILIES[family](config)
  except KeyError as e:
    raise UserError(f"config.json of a {family} model has no {e.args[0]!r}") from e


def to_hf(cfg: DecoderConfig, *, max_length: int, bos_id, eos_id, pad_id) -> dict:
  """config.json for a model made from scratch (family llama)."""
  assert cfg.family == "llama", cfg.family
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": cfg.vocab_size,
    "hidden_size": cfg.d_model,
    "intermediate_size": cfg.d_ff,
    "num_hidden_layers": cfg.num_layers,
    "num_attention_heads": cfg.num_heads,
    "num_key_value_heads": cfg.num_kv_heads,
    "head_dim": cfg.head_dim,
    "hidden_act": "silu",
    "max_position_embeddings": max_length,
    "rms_norm_eps": cfg.norm_eps,
    "rope_theta": cfg.rope_theta,
    "tie_word_embeddings": cfg.tied,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": bos_id,
    "eos_token_id": eos_id,
    "pad_token_id": pad_id,
    "dtype": "float32",
  }


# Of model.sizes: what to_hf can say, so that a checkpoint and an export are the model that was trained.
SIZES = {
  "d_model": int,
  "num_layers": int,
  "num_heads": int,
  "num_kv_heads": int,
  "head_dim": int,
  "d_ff": int,
  "norm_eps": float,
  "rope_theta": float,
  "tied": bool,
}


def from_scratch(sizes: dict, vocab_size: int) -> DecoderConfig:
  """A Llama-like decoder from `c.model.sizes` (d_model, num_layers, num_heads, num_kv_heads, d_ff)."""
  unknown = set(sizes) - set(SIZES)
  if unknown:
    raise UserError(f"model.sizes has unknown {sorted(unknown)}; known are {sorted(SIZES)}")
  missing = {"d_model", "num_layers", "num_heads", "d_ff"} - set(sizes)
  if missing:
    raise UserError(f"model.sizes lacks {sorted(missing)}; or set model.path to tune a base model")
  sizes = {k: float(v) if SIZES[k] is float and type(v) is int else v for k, v in sizes.items()}
  for name, value in sizes.items():
    if type(value) is not SIZES[name] or (value <= 0 and SIZES[name] is not bool):
      raise UserError(
        f"model.sizes has {name} = {value!r}; it must be {SIZES[name].__name__}"
        + ("" if SIZES[name] is bool else " and above 0")
      )
  defaults = {
    "num_kv_heads": sizes["num_heads"],
    "head_dim": sizes["d_model"] // sizes["num_heads"],
  }
  cfg = DecoderConfig(family="llama", vocab_size=vocab_size, **defaults | sizes)
  if cfg.head_dim % 2:
    raise UserError(f"model.sizes gives head_dim {cfg.head_dim}; rotary positions need an even one")
  return cfg


def _llama(c: dict) -> DecoderConfig:
  _require(c, hidden_act=("silu",), attention_bias=(False, None), mlp_bias=(False, None))
  theta, scaling = _rope(c, ("default", "llama3", "linear"))
  return DecoderConfig(**_sizes(c), rope_theta=theta, rope_scaling=scaling)


def _qwen3(c: dict) -> DecoderConfig:
  _require(c, hidden_act=("silu",), attention_bias=(False, None), use_sliding_window=(False, None))
  theta, scaling = _rope(c, ("default", "llama3", "linear"))
  return DecoderConfig(**_sizes(c), rope_theta=theta, rope_scaling=scaling, qk_norm=True)


def _gemma3_text(c: dict) -> DecoderConfig:
  activation = c.get("hidden_activation") or c.get("hidden_act") or "gelu_pytorch_tanh"
  if activation != "gelu_pytorch_tanh":
    raise UserError(f"not supported: hidden_activation {activation!r} of gemma3_text")
  _require(c, attention_bias=(False, None), use_bidirectional_attention=(False, None))
  # transformers reads this key for Gemma 3 and then caps nothing, so a model that sets it has two meanings.
  _require(c, attn_logit_softcapping=(None,))
  kinds = c.get("layer_types")
  if kinds is None:
    every = c.get("sliding_window_pattern", 6)
    kinds = [
      "sliding_attention" if (i + 1) % every else "full_attention"
      for i in range(c["num_hidden_layers"])
    ]
  rope = c.get("rope_parameters") or {}
  if "full_attention" in rope:  # written by transformers 5: one entry per kind of layer
    full, sliding = rope["full_attention"], rope["sliding_attention"]
    theta, scaling = _rope({"rope_theta": 1e6, "rope_parameters": full}, ("default", "linear"))
    local, _ = _rope({"rope_theta": 1e4, "rope_parameters": sliding}, ("default",))
  else:
    theta, scaling = _rope({"rope_theta": 1e6} | c, ("default", "linear"))
    local = c.get("rope_local_base_freq", 10_000.0)
  return DecoderConfig(
    **_sizes({"head_dim": 256, "tie_word_embeddings": True} | c),
    norm_plus_one=True,
    post_norms=True,
    qk_norm=True,
    activation="gelu_tanh",
    embed_scale=math.sqrt(c["hidden_size"]),
    query_scale=c.get("query_pre_attn_scalar", 256) ** -0.5,
    rope_theta=theta,
    rope_scaling=scaling,
    rope_local_theta=local,
    windows=tuple(c["sliding_window"] if k == "sliding_attention" else GLOBAL for k in kinds),
    final_softcap=c.get("final_logit_softcapping"),
  )


FAMILIES = {"llama": _llama, "qwen3": _qwen3, "gemma3_text": _gemma3_text}


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


def _rope(c: dict, supported: tuple[str, ...]) -> tuple[float, tuple | None]:
  """(theta, scaling) from either spelling: rope_theta + rope_scaling, or rope_parameters."""
  entry = dict(c.get("rope_parameters") or c.get("rope_scaling") or {})
  theta = entry.pop("rope_theta", None) or c.get("rope_theta", 10_000.0)
  kind = entry.pop("rope_type", None) or entry.pop("type", None) or "default"
  entry.pop("type", None)
  if kind not in supported:
    raise UserError(
      f"not supported: rope type {kind!r} of {c.get('model_type', 'gemma3_text')}; "
      f"supported are {', '.join(supported)}"
    )
  if kind == "default":
    return float(theta), None
  return float(theta), tuple(sorted({"rope_type": kind, **entry}.items()))


def _require(c: dict, **allowed) -> None:
  for key, values in allowed.items():
    if key in c and c[key] not in values:
      raise UserError(f"not supported: {key} = {c[key]!r} of {c['model_type']}; only {values[0]!r}")
