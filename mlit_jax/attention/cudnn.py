"""NVIDIA's cuDNN: fused attention of packed rows by the offsets of their segments, on Hopper and later.

Private in JAX (`jax._src.cudnn`), as its public function takes no offsets. Compiled for H100 ahead of time;
not run on one so far.
"""

from __future__ import annotations

import contextlib
import functools
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

from mlit_jax.attention import tiles
from mlit_jax.attention.choice import Needs
from mlit_jax.attention.padding import fill_padding, mask_gradient
from mlit_jax.attention.scoring import Rows

_LARGEST_HEAD = 256
_UNUSED = -1  # in offsets and lengths
# Until then offsets of keys were counted in query heads: with grouped heads they pointed elsewhere.
_GROUPED_HEADS_SINCE = (0, 11, 1)
# Examples of a row where nobody knows: so many tokens have one at most.
_TOKENS_PER_SEGMENT = 16


class Offsets(NamedTuple):
  """Where segments lie; -1 beyond the last."""

  starts_BM: jax.Array  # int32 [B, M + 1], the last column unused
  lengths_BM: jax.Array  # int32 [B, M]
  is_live_BT: jax.Array
  fits_B: jax.Array  # whether M were enough


def refusal(needs: Needs) -> str:
  """Why it cannot do what is needed; "" if it can."""
  if needs.dtype not in (jnp.bfloat16, jnp.float16):
    return f"cuDNN computes in bfloat16 or float16, and model.dtype is {needs.dtype}"
  if needs.scoring.softcap is not None:
    return "cuDNN has no soft cap"
  if needs.has_slopes:
    return "cuDNN has no slopes (ALiBi)"
  if needs.head_dim > _LARGEST_HEAD or needs.head_dim % 8:
    return f"cuDNN takes heads of up to {_LARGEST_HEAD} that are a multiple of 8, and these are of {needs.head_dim}"
  if needs.capability and float(needs.capability) < 9:
    return f"packed rows need a Hopper GPU or a later one, and this is of compute capability {needs.capability}"
  return ""


def prepare(rows: Rows, needs: Needs) -> Offsets:
  """Starts and lengths of the segments, in the order of the row."""
  T = rows.segments_BT.shape[1]
  M = max(2, min(T, needs.max_segments or -(-T // _TOKENS_PER_SEGMENT)))
  is_live_BT = rows.segments_BT > 0
  begins_BT = is_live_BT & (rows.positions_BT == 0)
  find = jax.vmap(lambda begins_T: jnp.nonzero(begins_T, size=M, fill_value=T)[0])
  starts_BM = find(begins_BT).astype(jnp.int32)
  # A segment ends where the next begins, or where padding does, which lies at the end of a row.
  end_B1 = jnp.sum(is_live_BT, axis=1, dtype=jnp.int32, keepdims=True)
  ends_BM = jnp.minimum(jnp.pad(starts_BM[:, 1:], ((0, 0), (0, 1)), constant_values=T), end_B1)
  exists_BM = starts_BM < T
  starts_BM = jnp.where(exists_BM, starts_BM, _UNUSED)
  return Offsets(
    jnp.pad(starts_BM, ((0, 0), (0, 1)), constant_values=_UNUSED),
    jnp.where(exists_BM, ends_BM - starts_BM, _UNUSED),
    is_live_BT,
    jnp.sum(begins_BT, axis=1) <= M,
  )


def run(q_BTNH, k_BTKH, v_BTKH, offsets: Offsets, window, needs: Needs, slopes_N) -> jax.Array:
  """o_BTNH. Rows of more segments than were reckoned with give no numbers: better no run than a wrong one."""
  live_BT = offsets.is_live_BT
  # cuDNN touches nothing of padding: neither what it writes of it nor its gradients mean anything.
  q, k, v = (mask_gradient(x, live_BT) for x in (q_BTNH, k_BTKH, v_BTKH))
  if needs.heads != needs.kv_heads and jax.__version_info__ < _GROUPED_HEADS_SINCE:
    k, v = (jnp.repeat(x, needs.heads // needs.kv_heads, axis=2) for x in (k, v))
  kernel = functools.partial(_kernel, offsets, needs.scoring.scale)
  o = tiles.by_window(kernel, q, k, v, window, needs.windows)
  fits_B1 = offsets.fits_B[:, None]
  return fill_padding(o, live_BT & fits_B1, jnp.where(live_BT & ~fits_B1, jnp.nan, 0.0))


def _kernel(offsets: Offsets, scale: float, q, k, v, window: int):
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  return cudnn.dot_product_attention(
    q,
    k,
    v,
    q_seqlen=offsets.lengths_BM,
    kv_seqlen=offsets.lengths_BM,
    q_offsets=offsets.starts_BM,
    kv_offsets=offsets.starts_BM,
    scale=scale,
    mask_type=cudnn.MaskType.PADDING_CAUSAL,
    sliding_window_length=window or None,
  )


@contextlib.contextmanager
def ahead_of_time(capability: str = "9.0", version: int = 91200):
  """As if a GPU of that compute capability and this cuDNN were here, which JAX asks for while it traces."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  def at_least(wanted: str) -> bool:
    return tuple(map(int, capability.split("."))) >= tuple(map(int, wanted.split(".")))

  with (
    mock.patch.object(cudnn, "check_cudnn_version", lambda: version),
    mock.patch.object(cudnn, "check_compute_capability", at_least),
    mock.patch.object(cudnn, "is_cuda_compute_capability_equal", capability.__eq__),
  ):
    yield
