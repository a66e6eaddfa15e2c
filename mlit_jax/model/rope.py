"""Rotary positions (Su et al. 2021): the kinds of layers, frequencies, angles, and the rotation."""

from __future__ import annotations

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
  return [angles(frequencies(cfg, name == "local"), positions_BT) for name in _present(_names(cfg))]


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


def _names(cfg) -> list[str]:
  """Per layer: "local" for one with a window and a base of its own, else "global"."""
  own = cfg.rope_local_theta is not None
  return ["local" if own and window else "global" for window in cfg.windows]


def _present(names) -> list[str]:
  return [name for name in ("global", "local") if name in names]
