"""What kernels that are compiled for fixed sizes share: a kernel for each window, and tiles that divide a row."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

# A TPU's vector registers are so wide; a tile of fewer tokens cannot be.
LANES = 128


def by_window(kernel: Callable, q, k, v, window, windows: tuple[int, ...]):
  """`kernel(q, k, v, window)`, compiled for each window that the layers have; `window` says which."""
  branches = [lambda q, k, v, w=w: kernel(q, k, v, w) for w in windows]
  if len(branches) == 1:
    return branches[0](q, k, v)
  which = jnp.searchsorted(jnp.asarray(windows, jnp.int32), window)
  return jax.lax.switch(which, branches, q, k, v)


def run_splash(kernel: Callable, q_BTNH, k_BTKH, v_BTKH, segments_BT, window, needs) -> jax.Array:
  """o_BTNH by `kernel(segments_BT, needs, q_BNTH, k_BKTH, v_BKTH, window)`, o_BNTH, to which padding is a segment."""
  q_BTNH = q_BTNH * jnp.asarray(needs.scoring.scale, q_BTNH.dtype)
  q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BTNH, k_BTKH, v_BTKH))
  kernel = functools.partial(kernel, segments_BT, needs)
  o_BTNH = by_window(kernel, q, k, v, window, needs.windows).transpose(0, 2, 1, 3)
  # Not padding.fill_padding: on TPUs that takes more memory (docs/log.md, 2026-11-28).
  return jnp.where((segments_BT > 0)[:, :, None, None], o_BTNH, 0)


def splash_mask(masks, length: int, window: int):
  """Causal, within the window if there is one; of JAX's or tokamax's module of masks, which are alike."""
  shape = (length, length)
  return masks.LocalMask(shape, (window - 1, 0), 0) if window else masks.CausalMask(shape)


def largest_tile(length: int, at_most: int) -> int:
  """The longest tile of 128, 256, 512, ... tokens that divides a row; 0: none does."""
  tile = LANES if length % LANES == 0 else 0
  while tile and 2 * tile <= at_most and length % (2 * tile) == 0:
    tile *= 2
  return tile


def odd_length(length: int) -> str:
  """Why a row cannot be cut into tiles; "" if it can."""
  if largest_tile(length, LANES):
    return ""
  return (
    f"its tiles are of {LANES} tokens or a multiple, and rows are of {length}; "
    f"{-(-length // LANES) * LANES} would do"
  )
