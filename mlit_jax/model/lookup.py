"""Rows of a table by token, where the table is cut over devices: what travels is the rows found, never the table.

  x_BTD = look_up(table_VD, ("vocab", "embed"), tokens_BT, dtype)

Each device finds, in its part of the width and of the words, the tokens of all devices among which the width is
cut, and they exchange parts of the width for tokens. A table of 262,144 words and a width of 5,376 would be 2.6 GiB
in bfloat16 on every device, and its gradient in float32 twice that; the rows of 4,096 tokens are 42 MiB.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mlit_jax import mesh

_TOKEN_AXES = ("batch", "length")


def look_up(table, axes: tuple[str, ...], tokens_BT, dtype) -> jax.Array:
  """[B, T, ...] in `dtype`, of a table [V, ...] whose logical axes are given; its last may be cut over devices.

  The gradient of the table is summed in float32 whatever `dtype` is: a comma stands in a batch a thousand times.
  """
  how = _how(table, axes, tokens_BT, dtype)
  return _look_up(how, table, tokens_BT)


class _How(NamedTuple):
  """All that is known before the arrays are; hashable."""

  dtype: jnp.dtype
  table_dtype: jnp.dtype
  shape: tuple[int, ...]  # of the table on one device
  table: P
  tokens: P
  found: P  # of the result
  vocab: tuple[str, ...]  # mesh axes that cut the words
  # Those that cut the width, and which axis of the tokens they cut too.
  width: tuple[tuple[str, int | None], ...]
  others: tuple[str, ...]  # those that cut the tokens alone


def _how(table, axes, tokens_BT, dtype) -> _How:
  by_table, by_token = mesh.spread(axes, table.shape), mesh.spread(_TOKEN_AXES, tokens_BT.shape)
  vocab, *middle, width = by_table
  assert not any(middle), (axes, by_table)
  of_tokens = {name: axis for axis, names in enumerate(by_token) for name in names}
  return _How(
    jnp.dtype(dtype),
    jnp.dtype(table.dtype),
    tuple(n // mesh.shards(cut) for n, cut in zip(table.shape, by_table, strict=True)),
    P(*by_table),
    P(*by_token),
    P(*by_token, *([None] * (table.ndim - 1))),
    vocab,
    tuple((name, of_tokens.get(name)) for name in width),
    tuple(name for name in of_tokens if name not in width),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _look_up(how: _How, table, tokens_BT):
  find = functools.partial(_find, how)
  return mesh.on_each(find, (how.table, how.tokens), how.found)(table, tokens_BT)


def _forward(how, table, tokens_BT):
  return _look_up(how, table, tokens_BT), tokens_BT


def _backward(how, tokens_BT, dx):
  add_up = functools.partial(_add_up, how)
  return mesh.on_each(add_up, (how.found, how.tokens), how.table)(dx, tokens_BT), None


_look_up.defvjp(_forward, _backward)


def _find(how: _How, table, tokens_BT):
  own_BT, is_own_BT = _own_words(how, tokens_BT)
  x = table.at[own_BT].get(mode="promise_in_bounds").astype(how.dtype)
  if how.vocab:
    is_own = jnp.expand_dims(is_own_BT, range(2, x.ndim))
    x = jax.lax.psum(jnp.where(is_own, x, 0), how.vocab)
  for name, axis in reversed(how.width):
    if axis is None:
      x = jax.lax.all_gather(x, name, axis=x.ndim - 1, tiled=True)
    else:
      x = jax.lax.all_to_all(x, name, axis, x.ndim - 1, tiled=True)
  return x


def _add_up(how: _How, dx, tokens_BT):
  last = dx.ndim - 1
  for name, axis in how.width:
    if axis is None:  # all devices along it have the same tokens
      size = dx.shape[last] // mesh.shards((name,))
      dx = jax.lax.dynamic_slice_in_dim(dx, jax.lax.axis_index(name) * size, size, last)
    else:
      dx = jax.lax.all_to_all(dx, name, last, axis, tiled=True)
  own_BT, is_own_BT = _own_words(how, tokens_BT)
  own_BT = jnp.where(is_own_BT, own_BT, how.shape[0])  # out of bounds, hence dropped
  total = jnp.zeros(how.shape, jnp.float32).at[own_BT].add(dx.astype(jnp.float32), mode="drop")
  total = jax.lax.psum(total, how.others) if how.others else total
  return total.astype(how.table_dtype)


def _own_words(how: _How, tokens_BT):
  """Of all devices among which the width is cut: which word of this device each token is, and whether it is one."""
  for name, axis in how.width:
    if axis is not None:
      tokens_BT = jax.lax.all_gather(tokens_BT, name, axis=axis, tiled=True)
  first = jax.lax.axis_index(how.vocab) * how.shape[0] if how.vocab else 0
  own_BT = tokens_BT - first
  is_own_BT = (own_BT >= 0) & (own_BT < how.shape[0])
  return jnp.clip(own_BT, 0, how.shape[0] - 1), is_own_BT
