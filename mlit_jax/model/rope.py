"""Rotary positions (Su et al. 2021): the kinds of layers, frequencies, angles, and the rotation."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from mlit_jax.errors import UserError
from mlit_jax.model.config import DecoderConfig


def layer_kinds(cfg: DecoderConfig) -> tuple[int, ...]:
  """Per layer, which of `tables` it turns by."""
  names = _names(cfg)
  present = _present(names)
  return tuple(present.index(name) for name in names)


def lengths(cfg: DecoderConfig, positions_BT, segments_BT) -> jax.Array | None:
  """Per token the length of its segment, where the frequencies depend on it; else None."""
  if not _depends_on_length(cfg):
    return None
  same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
  return jnp.max(jnp.where(same_BTS, positions_BT[:, None, :], 0), axis=-1) + 1


def most_slots(cfg: DecoderConfig) -> int | None:
  """How many tokens a cache may hold: keys in it cannot be turned again beyond the original length."""
  length = dict(cfg.rope_scaling or ()).get("original_max_position_embeddings")
  return length if _depends_on_length(cfg) else None


def check_slots(cfg: DecoderConfig, slots: int) -> None:
  """Refuse a cache of more than that."""
  most = most_slots(cfg)
  if most is not None and slots > most:
    raise UserError(
      f"not supported: decoding of {slots} tokens with rope type {dict(cfg.rope_scaling)['rope_type']}, "
      f"whose frequencies change beyond {most}. Decode at most {most} tokens, prompt included."
    )


def tables(cfg: DecoderConfig, positions_BT, lengths_BT=None) -> list[tuple[jax.Array, jax.Array]]:
  """(cos, sin) of each kind of layer that the model has; none with ALiBi."""
  out: list[tuple[jax.Array, jax.Array]] = []
  if cfg.alibi:
    return out
  for name in _present(_names(cfg)):
    if name == "free":
      shape = (*positions_BT.shape, _width(cfg) // 2)
      out.append((jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32)))
      continue
    local = name == "local"
    cos, sin = angles(frequencies(cfg, local, lengths_BT), positions_BT)
    factor = attention_factor(cfg, local)
    out.append((cos, sin) if factor == 1.0 else (cos * factor, sin * factor))
  return out


def query_growth(cfg: DecoderConfig, positions_BT) -> jax.Array | None:
  """What queries are multiplied by: 1 + beta * log(1 + position // length), as in Llama 4."""
  if cfg.query_growth is None:
    return None
  beta, length = cfg.query_growth
  return 1.0 + beta * jnp.log((1 + positions_BT // length).astype(jnp.float32))


def pick(rope_tables, kind):
  """The pair of a layer of this (traced) kind; None where the model does not rotate."""
  if not rope_tables:
    return None
  out = rope_tables[0]
  for i, other in enumerate(rope_tables[1:], start=1):
    out = tuple(jnp.where(kind == i, b, a) for a, b in zip(out, other, strict=True))
  return out


def frequencies(cfg: DecoderConfig, local: bool, lengths_BT=None) -> jax.Array:
  """Angular frequencies [H/2] of global layers, or of those with a window (`local`).

  [B, T, H/2] where they depend on the segment's length.

  RoPE: Su et al. 2021, eq. 15. `llama3`: frequencies whose wavelength exceeds the original context are
  divided by the factor, with a linear ramp in between (Llama 3.1 release). `linear`: all are divided.
  `longrope`: each is divided by its own factor, of one list or the other. `proportional`: those beyond a
  part of them are 0, so that their pairs do not turn.
  """
  theta = cfg.rope_local_theta if local else cfg.rope_theta
  width = _width(cfg)
  freq = 1.0 / theta ** (jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  scaling = {} if local else dict(cfg.rope_scaling or ())
  kind = scaling.get("rope_type", "default")
  if kind == "dynamic" and lengths_BT is not None:
    return _dynamic(theta, scaling, width, lengths_BT)
  if kind == "longrope":
    return _longrope(freq, scaling, lengths_BT)
  if kind == "yarn":
    return _yarn(freq, theta, scaling)
  if kind == "linear":
    return freq / scaling["factor"]
  if kind == "proportional":
    turning = int(scaling["partial_rotary_factor"] * width // 2)
    return jnp.where(jnp.arange(width // 2) < turning, freq / scaling["factor"], 0.0)
  if kind == "llama3":
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * freq / (2 * jnp.pi)
    smooth = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - smooth) * freq / scaling["factor"] + smooth * freq
  return freq


def angles(freq, positions_BT) -> tuple[jax.Array, jax.Array]:
  """(cos, sin), each [B, T, H/2], float32: bfloat16 angles are wrong beyond position 256."""
  angle = positions_BT[..., None].astype(jnp.float32) * (
    freq[None, None] if freq.ndim == 1 else freq
  )
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH, cos, sin, interleaved=False):
  """Rotate pairs (i, i + H/2), the layout of most Hugging Face checkpoints, or (2i, 2i + 1).

  Interleaved pairs come out as (i, i + H/2) all the same: the products of queries and keys, both so
  ordered, do not see it. Dimensions beyond those that cosine and sine are of do not turn.
  """
  width = 2 * cos.shape[-1]
  if width < x_BTNH.shape[-1]:
    turned = rotate(x_BTNH[..., :width], cos, sin, interleaved)
    return jnp.concatenate([turned, x_BTNH[..., width:]], axis=-1)
  x_f32 = x_BTNH.astype(jnp.float32)
  a, b = (x_f32[..., ::2], x_f32[..., 1::2]) if interleaved else jnp.split(x_f32, 2, axis=-1)
  cos, sin = cos[:, :, None], sin[:, :, None]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def attention_factor(cfg: DecoderConfig, local: bool) -> float:
  """What cosine and sine are multiplied by: YaRN's (Peng et al. 2023, eq. 22) or LongRoPE's, or 1."""
  scaling = {} if local else dict(cfg.rope_scaling or ())
  if scaling.get("rope_type") not in ("yarn", "longrope"):
    return 1.0
  if "attention_factor" in scaling:
    return scaling["attention_factor"]

  def mscale(weight):
    return 0.1 * weight * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

  if scaling.get("mscale") and scaling.get("mscale_all_dim"):
    return mscale(scaling["mscale"]) / mscale(scaling["mscale_all_dim"])
  return mscale(1.0)


def _dynamic(theta: float, scaling: dict, width: int, lengths_BT) -> jax.Array:
  """Dynamic NTK: the base grows with the segment's length beyond the original one."""
  factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
  stretch_BT = factor * jnp.maximum(lengths_BT, original).astype(jnp.float32) / original
  theta_BT = theta * (stretch_BT - (factor - 1)) ** (width / (width - 2))
  exponents = jnp.arange(0, width, 2, dtype=jnp.float32) / width
  return 1.0 / theta_BT[:, :, None] ** exponents[None, None]


def _longrope(freq, scaling: dict, lengths_BT) -> jax.Array:
  """LongRoPE (Ding et al. 2024): a segment beyond the original length turns by the long factors."""
  short = freq / jnp.asarray(scaling["short_factor"], jnp.float32)
  if lengths_BT is None:
    return short
  long = freq / jnp.asarray(scaling["long_factor"], jnp.float32)
  is_long_BT = lengths_BT > scaling["original_max_position_embeddings"]
  return jnp.where(is_long_BT[:, :, None], long[None, None], short[None, None])


def _width(cfg) -> int:
  return cfg.rotary_dim or cfg.head_dim


def _depends_on_length(cfg) -> bool:
  return dict(cfg.rope_scaling or ()).get("rope_type") in ("dynamic", "longrope")


def _yarn(freq, theta: float, scaling: dict) -> jax.Array:
  """YaRN: fast frequencies stay, slow ones are divided by the factor, a linear ramp between them."""
  width = 2 * freq.size

  def index(turns):
    """The (fractional) dimension that makes so many turns within the original length."""
    length = scaling["original_max_position_embeddings"]
    return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

  low, high = index(scaling.get("beta_fast") or 32), index(scaling.get("beta_slow") or 1)
  if scaling.get("truncate", True):
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, width - 1)
  high = high + 0.001 if low == high else high
  ramp = jnp.clip((jnp.arange(freq.size, dtype=jnp.float32) - low) / (high - low), 0.0, 1.0)
  return freq / scaling["factor"] * ramp + freq * (1 - ramp)


def _names(cfg) -> list[str]:
  """Per layer: "free" of positions, "local" for one with a window and a base of its own, or "global"."""
  own = cfg.rope_local_theta is not None
  return [
    "free" if free else "local" if own and window else "global"
    for window, free in zip(cfg.windows, cfg.position_free, strict=True)
  ]


def _present(names) -> list[str]:
  return [name for name in ("global", "local", "free") if name in names]
