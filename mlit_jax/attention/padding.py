"""Padding in what kernels give and take: they leave anything in it, also what is no number."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def fill_padding(x_BTNH, live_BT, fill_BT=0.0) -> jax.Array:
  """x of tokens that are live, of others the fill; no gradient to these, nor through them.

  Keeps the tokens' mask alone for the backward pass: that of jnp.where has the size of x, and a loop over layers
  computes it before it begins and reads it in each.
  """
  fill_BT = jnp.broadcast_to(jnp.asarray(fill_BT, x_BTNH.dtype), live_BT.shape)
  return jnp.where(live_BT[:, :, None, None], x_BTNH, fill_BT[:, :, None, None])


@jax.custom_vjp
def mask_gradient(x_BTNH, live_BT) -> jax.Array:
  """x, whose gradient is 0 of tokens that are not live."""
  return x_BTNH


fill_padding.defvjp(
  lambda x, live, fill=0.0: (fill_padding(x, live, fill), live),
  lambda live, g: (fill_padding(g, live), None, None),
)
mask_gradient.defvjp(
  lambda x, live: (x, live),
  lambda live, g: (fill_padding(g, live), None),
)
