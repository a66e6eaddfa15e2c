"""Rows of a table that is cut over devices, against plain indexing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from mlit_jax import mesh as meshes
from mlit_jax.model.lookup import look_up

V, D, T = 48, 16, 8
AXES = ("vocab", "embed")
MESHES = [
  dict(fsdp=8), dict(data=2, fsdp=4), dict(data=2, fsdp=2, tensor=2), dict(fsdp=2, context=2, tensor=2),
  dict(fsdp=2, expert=2, context=2), dict(context=8), dict(tensor=8), dict(data=8),
]  # fmt: skip


def table_and_tokens(rows, middle=()):
  table = jax.random.normal(jax.random.key(0), (V, *middle, D))
  tokens = jax.random.randint(jax.random.key(1), (rows, T), 0, V)
  return table, tokens.at[0].set(V - 1)


def on(sizes, table, tokens, axes):
  mesh = meshes.make_mesh(**{"fsdp": 1, **sizes})
  with jax.set_mesh(mesh):
    places = (meshes.spread(axes, table.shape), meshes.spread(("batch", "length"), tokens.shape))
  put = [
    jax.device_put(x, NamedSharding(mesh, jax.P(*of)))
    for x, of in zip((table, tokens), places, strict=True)
  ]
  return mesh, *put


def both(axes, dtype):
  """Rows, and the gradient of the table by a weight of its own for every number of them."""

  def run(look, table, tokens):
    x, back = jax.vjp(lambda table: look(table, tokens), table)
    return x, back(jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape).astype(x.dtype))[
      0
    ]

  plain = jax.jit(lambda *a: run(lambda table, tokens: table.astype(dtype)[tokens], *a))
  return jax.jit(lambda *a: run(lambda t, ids: look_up(t, axes, ids, dtype), *a)), plain


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("rows, middle", [(8, ()), (1, ()), (8, (3,))])
def test_equals_indexing(sizes, rows, middle, assert_close):
  axes = ("vocab", "layers", "layer_table") if middle else AXES
  table, tokens = table_and_tokens(rows, middle)
  ours, plain = both(axes, jnp.float32)
  expected_x, expected = plain(table, tokens)
  mesh, *put = on(sizes, table, tokens, axes)
  with jax.set_mesh(mesh):
    x, gradient = ours(*put)
  np.testing.assert_array_equal(x, expected_x)
  assert_close(gradient, expected, 1e-6)
  assert gradient.sharding.is_equivalent_to(put[0].sharding, table.ndim)


def test_without_a_mesh(assert_close):
  table, tokens = table_and_tokens(4)
  ours, plain = both(AXES, jnp.float32)
  assert_close(ours(table, tokens), plain(table, tokens), 1e-6)


@pytest.mark.parametrize("sizes", [{}, dict(data=2, fsdp=4)], ids=str)
def test_a_common_token_is_summed_in_float32(sizes):
  """4,096 gradients of 1: bfloat16 alone, which has 8 digits, stops at 256."""
  table, tokens = jnp.zeros((V, D)), jnp.full((8, 512), 7)
  axes, ones = AXES, jnp.ones((8, 512, D), jnp.bfloat16)
  grad = jax.jit(lambda table, ids: jax.vjp(lambda t: look_up(t, axes, ids, jnp.bfloat16), table)[1](ones)[0])  # fmt: skip
  if sizes:
    mesh, table, tokens = on(sizes, table, tokens, axes)
    with jax.set_mesh(mesh):
      found = grad(table, tokens)
  else:
    found = grad(table, tokens)
  assert found.dtype == jnp.float32 and (found[7] == 4096).all() and found.sum() == 4096 * D


@pytest.mark.parametrize("sizes", MESHES[:6], ids=str)
def test_the_table_stays_where_it_is(sizes):
  """The compiled module brings no array of many words together but the gradient over those with other tokens."""
  words = 4096
  table, tokens = jnp.zeros((words, D)), jnp.zeros((8, T), jnp.int32)
  mesh, *put = on(sizes, table, tokens, AXES)
  with jax.set_mesh(mesh):
    text = both(AXES, jnp.bfloat16)[0].lower(*put).compile().as_text()
  moved = re.findall(
    r"= \(?(\w+\[[\d,]*\]).* (all-gather|all-to-all|all-reduce|collective-permute)[-\w]*\(", text
  )
  assert moved
  large = {
    (shape, kind) for shape, kind in moved if re.search(rf"\b({words}|{words // 2})\b", shape)
  }
  assert {kind for _, kind in large} <= {"all-reduce"}, large
  assert bool(large) == bool(set(sizes) & {"data", "expert"}), large
