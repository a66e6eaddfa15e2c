"""How running means of gradients are kept between steps: float32, bfloat16, or eight bits and a scale per tile.

A second moment changes by a thousandth in a step (b2 = .999), a step of bfloat16 is four to eight: rounded to
nearest it would never move again. So whatever is kept in less than float32 is rounded by chance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlit_jax.training import rounding

FORMATS = ("float32", "bfloat16", "int8")

# Values along an axis that share a scale, at most. Small where a mesh cuts an axis often (`embed` over fsdp), so
# that a tile seldom lies on two devices; by the axis and not by the mesh, so that a checkpoint fits any.
_TILE = {"head_dim": 32, "mlp": 32, "vocab": 16, "embed": 8, "layer_table": 8, "layer_input": 8}
# Codes are spaced evenly in the logarithm, from the largest value of a tile down to 2^-12 of it: a table of
# evenly spaced values would hold nothing of a value a hundred times smaller than its neighbour.
_OCTAVES = 12.0
# Codes besides 0.
_LEVELS = {jnp.dtype(jnp.int8): 127, jnp.dtype(jnp.uint8): 255}


class Kept(NamedTuple):
  """What an array of the optimizer is before it exists; a leaf, and to the mesh like a parameter's spec."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  dtype: jnp.dtype


def is_kept(x) -> bool:
  return isinstance(x, Kept)


def kept(name: str, spec, how: str, *, signed: bool) -> dict[str, Kept]:
  """The arrays that hold one moment of a parameter with this spec; a second moment has no sign."""
  if how != "int8":
    return {name: Kept(spec.shape, spec.axes, jnp.dtype(how))}
  scales = tuple(size // t for size, t in zip(spec.shape, tile_of(spec), strict=True))
  return {
    name: Kept(spec.shape, spec.axes, jnp.dtype(jnp.int8 if signed else jnp.uint8)),
    f"{name}_scale": Kept(scales, spec.axes, jnp.dtype(jnp.float32)),
  }


def tile_of(spec) -> tuple[int, ...]:
  """How many values along each axis share a scale: 8 x 32 of a matrix of the MLP."""
  pairs = zip(spec.axes, spec.shape, strict=True)
  return tuple(math.gcd(size, _TILE.get(axis, 1)) for axis, size in pairs)


def load(state: dict, name: str) -> jax.Array:
  """The moment in float32."""
  x = state[name]
  if x.dtype not in _LEVELS:
    return x.astype(jnp.float32)
  x_f32 = _over_tiles(state[f"{name}_scale"], x.shape) * _decode(x)
  return x_f32 if x.dtype == jnp.int8 else jnp.square(x_f32)


def store(like: dict, name: str, x: jax.Array, bits16) -> dict:
  """The arrays that hold x as `like` holds what was before."""
  dtype = like[name].dtype
  if dtype not in _LEVELS:
    return {name: rounding.round_to(x, dtype, bits16)}
  # The root of a second moment, which spans half as many octaves and is what gradients are divided by.
  size = jnp.abs(x) if dtype == jnp.int8 else jnp.sqrt(x)
  scales = _largest_of_tiles(size, like[f"{name}_scale"].shape)
  share = size / jnp.maximum(_over_tiles(scales, x.shape), jnp.finfo(jnp.float32).tiny)
  codes = _encode(share, bits16, dtype)
  return {
    name: jnp.where(x < 0, -codes, codes).astype(dtype),
    f"{name}_scale": scales,
  }


def _decode(codes: jax.Array) -> jax.Array:
  """As a share of the tile's largest value."""
  levels, codes_i32 = _LEVELS[codes.dtype], codes.astype(jnp.int32)
  return jnp.sign(codes_i32) * _share(jnp.abs(codes_i32), levels)


def _encode(share: jax.Array, bits16, dtype) -> jax.Array:
  """The code below or above a share of 0..1, by chance, so that the mean is the share.

  Below the smallest code: 0 or that code, by chance, for a mean of gradients; always that code for a second
  moment, as it is divided by.
  """
  levels = _LEVELS[dtype]
  place = jnp.log2(jnp.maximum(share, 2.0**-100)) / _step(levels) + levels
  below = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, levels - 1)
  low, high = _share(below, levels), _share(below + 1, levels)
  chance = (share - low) / (high - low)
  codes = below + (bits16.astype(jnp.float32) / 65536 < chance)
  return codes if dtype == jnp.int8 else jnp.where(share > 0, jnp.maximum(codes, 1), 0)


def _share(codes: jax.Array, levels: int) -> jax.Array:
  """0, and then evenly in the logarithm up to 1."""
  exponent = (codes - levels).astype(jnp.float32) * _step(levels)
  return jnp.where(codes == 0, 0.0, jnp.exp2(exponent))


def _step(levels: int) -> float:
  return _OCTAVES / (levels - 1)


def _split(shape: tuple[int, ...], tiles: tuple[int, ...]) -> tuple[int, ...]:
  """(64, 96) in tiles of 8 x 32, (8, 3) of them -> (8, 8, 3, 32)."""
  return tuple(n for size, count in zip(shape, tiles, strict=True) for n in (count, size // count))


def _largest_of_tiles(x: jax.Array, tiles: tuple[int, ...]) -> jax.Array:
  return jnp.max(x.reshape(_split(x.shape, tiles)), axis=tuple(range(1, 2 * x.ndim, 2)))


def _over_tiles(scales: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Each tile's scale at all of its values."""
  split = _split(shape, scales.shape)
  apart = scales.reshape([n if i % 2 == 0 else 1 for i, n in enumerate(split)])
  return jnp.broadcast_to(apart, split).reshape(shape)
