"""Rotary positions (Su et al. 2021): the kinds of layers, frequencies, angles, and the rotation."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from mlit_jax.model.config import DecoderConfig


def layer_kinds(cfg: DecoderConfig) -> tuple[int, ...]:
  """Per layer, which of `tables` it turns by."""
  names = _names(cfg)
  present = _present(names)
  return tuple(present.index(name) for name in names)


def tables(cfg: DecoderConfig, positions_BT) -> list[tuple[jax.Array, jax.Array]]:
  """(cos, sin) of each kind of layer that the model has."""
  out = []
  for name in _present(_names(cfg)):
    local = name == "local"
    cos, sin = angles(frequencies(cfg, local), positions_BT)
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
  """The pair of a layer of this (traced) kind."""
  out = rope_tables[0]
  for i, other in enumerate(rope_tables[1:], start=1):
    out = tuple(jnp.where(kind == i, b, a) for a, b in zip(out, other, strict=True))
  return out


def frequencies(cfg: DecoderConfig, local: bool) -> jax.Array:
  """Angular frequencies [H/2] of global layers, or of those with a window (`local`).

  RoPE: Su et al. 2021, eq. 15. `llama3`: frequencies whose wavelength exceeds the original context are
  divided by the factor, with a linear ramp in between (Llama 3.1 release). `linear`: all are divided.
  """
  theta = cfg.rope_local_theta if local else cfg.rope_theta
  freq = 1.0 / theta ** (jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim)
  scaling = {} if local else dict(cfg.rope_scaling or ())
  kind = scaling.get("rope_type", "default")
  if kind == "yarn":
    return _yarn(freq, theta, scaling)
  if kind == "linear":
    return freq / scaling["factor"]
  if kind == "llama3":
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * freq / (2 * jnp.pi)
    smooth = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - smooth) * freq / scaling["factor"] + smooth * freq
  return freq


def angles(freq, positions_BT) -> tuple[jax.Array, jax.Array]:
  """(cos, sin), each [B, T, H/2], float32: bfloat16 angles are wrong beyond position 256."""
  angle = positions_BT[..., None].astype(jnp.float32) * freq[None, None]
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH, cos, sin):
  """Rotate pairs (i, i + H/2), the layout of the Hugging Face checkpoints."""
  a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[:, :, None], sin[:, :, None]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def attention_factor(cfg: DecoderConfig, local: bool) -> float:
  """What cosine and sine are multiplied by: YaRN's temperature (Peng et al. 2023, eq. 22), else 1."""
  scaling = {} if local else dict(cfg.rope_scaling or ())
  if scaling.get("rope_type") != "yarn":
    return 1.0
  if "attention_factor" in scaling:
    return scaling["attention_factor"]

  def mscale(weight):
    return 0.1 * weight * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

  if scaling.get("mscale") and scaling.get("mscale_all_dim"):
    return mscale(scaling["mscale"]) / mscale(scaling["mscale_all_dim"])
  return mscale(1.0)


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
  """Per layer: "local" for one with a window and a base of its own, else "global"."""
  own = cfg.rope_local_theta is not None
  return ["local" if own and window else "global" for window in cfg.windows]


def _present(names) -> list[str]:
  return [name for name in ("global", "local") if name in names]
