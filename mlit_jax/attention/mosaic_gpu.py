"""tokamax's attention for Hopper in Mosaic GPU: packed rows by where each query's keys begin; soft caps.

Forward, tiles before a segment or a window are left out; backward they are computed and masked (tokamax
0.0.12 and 0.0.17). Private in tokamax. Compiled for H100 ahead of time; not run on one so far.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
from unittest import mock

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mlit_jax.attention import tiles
from mlit_jax.attention.choice import Needs
from mlit_jax.attention.padding import fill_padding
from mlit_jax.attention.scoring import SAVED, Rows, Scoring, segment_starts

_PLACE = "tokamax._src.ops.attention"
_LARGEST_HEAD = 256


def refusal(needs: Needs) -> str:
  """Why it cannot do what is needed; "" if it can."""
  if needs.dtype not in (jnp.bfloat16, jnp.float16):
    return f"its kernels compute in bfloat16 or float16, and model.dtype is {needs.dtype}"
  if needs.has_slopes:
    return "tokamax's Mosaic GPU attention has no slopes (ALiBi)"
  if needs.head_dim > _LARGEST_HEAD:
    return f"it takes heads of up to {_LARGEST_HEAD}, and these are of {needs.head_dim}"
  if needs.capability and int(float(needs.capability)) != 9:
    return f"its kernels are for Hopper GPUs, and this is of compute capability {needs.capability}"
  return _missing() or tiles.odd_length(needs.length)


@functools.cache
def _missing() -> str:
  """Why tokamax cannot be used: it is not there, or not as this file knows it."""
  try:
    base = importlib.import_module(f"{_PLACE}.base")
    kind = importlib.import_module(f"{_PLACE}.pallas_mosaic_gpu").PallasMosaicGpuFlashAttention
    mask = inspect.signature(base.Mask).parameters
    takes = inspect.signature(kind.__call__).parameters
  except (ImportError, AttributeError) as e:
    return f"its package cannot be used ({e}): pip install 'mlit_jax[tokamax]'"
  wanted = {"logits_scale", "logits_soft_cap", "mask", "return_residuals"}
  if unknown := (wanted - set(takes)) | ({"k_start", "is_causal"} - set(mask)):
    return (
      f"the tokamax that is installed does not take {', '.join(sorted(unknown))}; "
      "0.0.12 and 0.0.17 do: pip install 'mlit_jax[tokamax]'"
    )
  return ""


def prepare(rows: Rows, needs: Needs) -> tuple[jax.Array, jax.Array]:
  """first_BT: where the segment of each token begins; and which tokens are no padding."""
  return segment_starts(rows.segments_BT), rows.segments_BT > 0


def run(q_BTNH, k_BTKH, v_BTKH, prepared, window, needs: Needs, slopes_N) -> jax.Array:
  """o_BTNH"""
  first_BT, live_BT = prepared
  at_T = jnp.arange(needs.length, dtype=jnp.int32)
  from_T = jnp.where(window > 0, at_T - window + 1, 0)
  first_BT = jnp.maximum(first_BT, from_T[None])
  o_BTNH = _attend(needs.scoring, q_BTNH, k_BTKH, v_BTKH, first_BT)
  # Padding is a segment like any other to the kernel.
  return fill_padding(o_BTNH, live_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(scoring: Scoring, q_BTNH, k_BTKH, v_BTKH, first_BT):
  return _forward(scoring, q_BTNH, k_BTKH, v_BTKH, first_BT)[0]


# tokamax's own derivative names nothing, so that layers computed again would run the forward kernel twice.
def _forward(scoring: Scoring, q_BTNH, k_BTKH, v_BTKH, first_BT):
  op, (args, rest) = _bind(scoring, q_BTNH, k_BTKH, v_BTKH, first_BT)
  o_BTNH, (top_BNT, total_BNT) = op(*args, **rest, return_residuals=True)
  found = (checkpoint_name(x, SAVED) for x in (o_BTNH, top_BNT, total_BNT))
  o_BTNH, top_BNT, total_BNT = found
  return o_BTNH, (q_BTNH, k_BTKH, v_BTKH, first_BT, o_BTNH, top_BNT, total_BNT)


def _backward(scoring: Scoring, kept, do_BTNH):
  *inputs, o_BTNH, top_BNT, total_BNT = kept
  op, (args, rest) = _bind(scoring, *inputs)
  grads = op.vjp((top_BNT, total_BNT), o_BTNH, do_BTNH, *args, **rest)
  return grads["q"], grads["k"], grads["v"], None


_attend.defvjp(_forward, _backward)


def _bind(scoring: Scoring, q_BTNH, k_BTKH, v_BTKH, first_BT):
  """The op, and what it and its derivative are called with."""
  flags = importlib.import_module("absl.flags")
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # tokamax 0.0.12 would read our command line
  base = importlib.import_module(f"{_PLACE}.base")
  op = importlib.import_module(f"{_PLACE}.pallas_mosaic_gpu").PallasMosaicGpuFlashAttention()
  bound = op.bind(
    q_BTNH,
    k_BTKH,
    v_BTKH,
    logits_scale=scoring.scale,
    logits_soft_cap=scoring.softcap,
    mask=base.Mask(k_start=first_BT[:, None], is_causal=True),
  )
  return op, (bound.args, {k: v for k, v in bound.kwargs.items() if k != "return_residuals"})


@contextlib.contextmanager
def ahead_of_time(capability: str = "9.0"):
  """As if a GPU of that compute capability were here, which tokamax asks for while it is traced."""
  if _missing():
    yield
    return
  config = importlib.import_module("tokamax._src.config")
  gpu_utils = importlib.import_module("tokamax._src.gpu_utils")
  with (
    config.cross_compile("true"),
    mock.patch.object(gpu_utils, "_compute_capability", lambda device=None: float(capability)),
  ):
    yield
