"""The sizes and choices of a decoder, and how a Hugging Face config.json becomes them."""

from __future__ import annotations

import dataclasses

from mlit_jax.errors import UserError
from mlit_jax.model.families import FAMILIES
from mlit_jax.model.families.common import GLOBAL

MOST_LAYERS = 10_000  # a list of what each layer is like is made of their number
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_COUNTS = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")


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
  norm: str = "rms"  # or layer: the mean is taken away first
  norm_bias: bool = False  # of a layer norm
  norm_plus_one: bool = False  # Gemma stores w and multiplies by 1 + w
  norm_late_cast: bool = False  # OLMo multiplies by w before the cast back to bfloat16
  embed_norm: bool = False  # BLOOM normalises embeddings as well
  residual_after_norm: bool = False  # attention and MLP add to what they read, not to what came in
  pre_norms: bool = True  # False (with post_norms): OLMo normalises only what the two give
  post_norms: bool = False  # Gemma 3 normalises the output of attention and MLP as well
  parallel: bool = False  # attention and MLP read the same norm, and both are added at once
  qk_norm: bool = False
  qk_norm_full: bool = False  # one norm over all heads of a token together, not one per head
  qk_norm_per_head: bool = False  # Cohere: a LayerNorm, each head with a scale of its own
  activation: str = "silu"  # or gelu_tanh, xielu
  gated: bool = True  # False: the MLP is down(act(up x))
  embed_scale: float = 1.0
  residual_scale: float = 1.0  # of what attention and MLP add
  logit_scale: float = 1.0
  tied: bool = True
  query_scale: float | None = None  # None: head_dim ** -0.5
  rope_theta: float = 10_000.0
  rotary_dim: int | None = None  # how many of a head's first dimensions turn; None: all
  rope_interleaved: bool = False  # pairs (2i, 2i + 1) turn together, not (i, i + H/2)
  rope_scaling: tuple | None = None  # sorted (key, value) pairs of the HF entry; global layers only
  position_free: tuple[bool, ...] = ()  # per layer, () = none
  alibi: bool = False  # biases of the scores in place of rotation
  query_growth: tuple[float, int] | None = None  # (beta, length), see rope.query_growth
  rope_local_theta: float | None = None  # of layers with a window; None: as the global ones
  windows: tuple[int, ...] = ()  # per layer, 0 = global; () = all global
  attn_bias: bool = False  # on q, k, v
  out_bias: bool = False  # on attention's output
  mlp_bias: bool = False
  num_experts: int = 0  # of every layer; 0: one MLP
  experts_per_token: int = 0
  norm_choices: bool = True  # the probabilities of a token's experts add up to one
  router_loss_weight: float = 0.0  # of routing.balance_loss, in training
  attn_softcap: float | None = None
  final_softcap: float | None = None
  value_norm: bool = False  # values are normalised as well, without a scale
  keys_as_values: bool = False  # values are the keys before their norm and rotation
  borrows_kv: bool = False  # keys and values are those of an earlier layer
  layer_scalar: bool = False  # what a layer gives is multiplied by a number that does not train
  layer_input_dim: int = 0  # of a second embedding, from which each layer gets a part of its own
  # Where the layers differ in shape (kinds.py): what those without a window have in place of the fields
  # above, and how many of the last ones read the keys and values of the last layer like them before.
  global_head_dim: int | None = None
  global_kv_heads: int | None = None
  global_keys_as_values: bool = False
  num_borrowing: int = 0
  borrowing_d_ff: int | None = None

  def __post_init__(self):
    for name in _COUNTS:
      value = getattr(self, name)
      if type(value) is not int or value < 1:
        raise UserError(
          f"{name} of a {self.family} decoder is {value!r}; it must be a whole number above 0"
        )
    if not self.windows:
      object.__setattr__(self, "windows", (GLOBAL,) * self.num_layers)
    if self.rotary_dim == self.head_dim:
      object.__setattr__(self, "rotary_dim", None)
    if self.query_scale is None:
      object.__setattr__(self, "query_scale", self.head_dim**-0.5)
    if not any(self.position_free):  # also when num_layers was changed
      object.__setattr__(self, "position_free", (False,) * self.num_layers)
    if len(self.position_free) != self.num_layers:
      raise UserError(f"{len(self.position_free)} position_free for {self.num_layers} layers")
    if len(self.windows) != self.num_layers:
      raise UserError(f"{len(self.windows)} attention windows for {self.num_layers} layers")
    if self.num_heads % self.num_kv_heads:
      raise UserError(
        f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
      )
    if self.global_head_dim is not None:
      self._check_shapes()
    if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
      raise UserError(f"{self.experts_per_token} experts per token, of {self.num_experts}")

  def _check_shapes(self):
    """What kinds.py goes by, where layers differ in shape."""
    for name in ("global_head_dim", "global_kv_heads", "borrowing_d_ff"):
      value = getattr(self, name)
      if type(value) is not int or value < 1:
        raise UserError(
          f"{name} of a {self.family} decoder is {value!r}; it must be a whole number above 0"
        )
    if self.num_heads % self.global_kv_heads:
      raise UserError(
        f"num_heads {self.num_heads} is not a multiple of global_kv_heads {self.global_kv_heads}"
      )
    own = self.num_layers - self.num_borrowing
    lending, borrowing = (
      {bool(w) for w in part} for part in (self.windows[:own], self.windows[own:])
    )
    if not 0 <= self.num_borrowing < self.num_layers or not borrowing <= lending:
      raise UserError(
        f"the last {self.num_borrowing} of {self.num_layers} layers cannot read keys and values of layers "
        "before them: there is none of the same kind"
      )


def from_hf(config: dict) -> DecoderConfig:
  """DecoderConfig of a parsed config.json; UserError for what this project does not support."""
  family = config.get("model_type")
  if not isinstance(family, str) or family not in FAMILIES:
    raise UserError(
      f"not supported: model_type {family!r}. Supported are {', '.join(sorted(FAMILIES))}."
    )
  text = text_config(config)
  layers = [text.get(key) for key in _LAYERS] if isinstance(text, dict) else []
  if any(isinstance(n, (int, float)) and n > MOST_LAYERS for n in layers):
    raise UserError(f"config.json of a {family} model has more than {MOST_LAYERS:,} layers")
  try:
    return DecoderConfig(**FAMILIES[family](config))
  except KeyError as e:
    raise UserError(f"config.json of a {family} model has no {e.args[0]!r}") from e
  except (TypeError, ValueError, ArithmeticError, AttributeError, IndexError) as e:
    raise UserError(f"config.json of a {family} model holds a value that cannot be: {e}") from e


def text_config(config: dict) -> dict:
  """The part of a config.json that describes the decoder: all, but in a model that also sees."""
  return config.get("text_config") or config


# By model_type: the keys of config.json that name a token for what is not text, and their defaults.
_MEDIA_TOKENS = {
  "gemma3": {"image_token_index": 262_144},
  "gemma4": {"image_token_id": 258_880, "audio_token_id": 258_881, "video_token_id": 258_884},
}


def media_tokens(config: dict) -> list[int]:
  """The tokens that stand for a picture, a video or a sound, in a model that takes them."""
  keys = _MEDIA_TOKENS.get(config["model_type"], {})
  tokens = [config.get(key, default) for key, default in keys.items()]
  return [token for token in tokens if token is not None]


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
