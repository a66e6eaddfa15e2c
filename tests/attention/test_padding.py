"""What becomes of padding in the arrays that kernels give and take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlit_jax.attention.padding import fill_padding, mask_gradient

LIVE_BT = jnp.asarray([[True, True, False], [True, False, False]])


@pytest.fixture
def x_BTNH():
  """Not a number in padding, as a kernel leaves it."""
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 5)), jnp.float32)
  return jnp.where(LIVE_BT[:, :, None, None], x, jnp.nan)


def gradient(run, x):
  return jax.grad(lambda x: jnp.sum(jnp.where(LIVE_BT[:, :, None, None], run(x) ** 2, 0)))(x)


def test_padding_is_filled_and_gets_no_gradient(x_BTNH):
  filled = fill_padding(x_BTNH, LIVE_BT)
  np.testing.assert_array_equal(filled[LIVE_BT], x_BTNH[LIVE_BT])
  assert not filled[~LIVE_BT].any()
  found = gradient(lambda x: fill_padding(x, LIVE_BT), x_BTNH)
  np.testing.assert_array_equal(found[LIVE_BT], 2 * x_BTNH[LIVE_BT])
  assert not found[~LIVE_BT].any()


def test_each_token_has_its_filling(x_BTNH):
  fill_BT = jnp.asarray([[5.0, 5.0, jnp.nan], [5.0, 7.0, 8.0]])
  filled = fill_padding(x_BTNH.astype(jnp.bfloat16), LIVE_BT, fill_BT)
  assert filled.dtype == jnp.bfloat16
  assert bool(jnp.isnan(filled[0, 2]).all())
  assert np.unique(filled[1, 1].astype(np.float32)) == 7 and np.unique(filled[1, 2]) == 8


def test_a_gradient_that_is_no_number_in_padding_is_dropped(x_BTNH):
  @jax.custom_vjp
  def kernel(x):
    return x

  poison = jnp.where(LIVE_BT, 2.0, jnp.nan)[:, :, None, None]
  kernel.defvjp(lambda x: (x, None), lambda _, g: (g * poison,))
  ones = jnp.ones_like(x_BTNH)
  found = jax.grad(lambda x: jnp.sum(kernel(mask_gradient(x, LIVE_BT))))(ones)
  np.testing.assert_array_equal(found, 2.0 * LIVE_BT[:, :, None, None] * ones)
  np.testing.assert_array_equal(mask_gradient(x_BTNH, LIVE_BT), x_BTNH)
