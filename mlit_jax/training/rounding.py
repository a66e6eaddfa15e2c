"""Rounding up or down by chance, so that what is too small for a step of bfloat16 still counts on average."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp


def path_key(key: jax.Array, path: str) -> jax.Array:
  """The key of one array, by its name alone."""
  return jax.random.fold_in(key, zlib.crc32(path.encode()))


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """32 bits for each value; the same on any mesh, as each comes from its place in the array."""
  return jax.random.bits(key, shape, jnp.uint32)


def low(bits: jax.Array) -> jax.Array:
  return bits & 0xFFFF


def high(bits: jax.Array) -> jax.Array:
  return bits >> 16


def mixed(bits: jax.Array) -> jax.Array:
  """Sixteen more of the same 32: a product with an odd number is a permutation of all of them.

  Uniform as the others are, and not independent of both together; that costs no second draw, which is the
  dearest part of an update.
  """
  return (bits * jnp.uint32(0x9E3779B1)) >> 16


def to_bfloat16(x: jax.Array, bits16: jax.Array) -> jax.Array:
  """x in bfloat16, up with the probability that makes x the mean; values that bfloat16 has stay as they are.

  The bits are added below the mantissa, and what is below it is cut off: the carry does the choosing.
  """
  raw = jax.lax.bitcast_convert_type(x, jnp.uint32)
  rounded = (raw + bits16) >> 16
  rounded = jnp.where(jnp.isfinite(x), rounded, raw >> 16)  # a NaN must not turn into an infinity
  rounded = jnp.where(jnp.isnan(x), jnp.uint32(0x7FC0), rounded)
  return jax.lax.bitcast_convert_type(rounded.astype(jnp.uint16), jnp.bfloat16)


def round_to(x: jax.Array, dtype, bits16: jax.Array | None) -> jax.Array:
  """x in the dtype of a parameter or a moment: float32, or bfloat16 by chance."""
  return x if dtype == jnp.float32 else to_bfloat16(x, bits16)
