"""JAX's splash attention for TPU: rows in tiles, those after the diagonal or before a window left out.

Segments are masked inside tiles, so a row of short examples costs what one long example does.
Private in JAX (`jax.experimental.pallas.ops.tpu`). Run in interpret mode on CPU, compiled for TPU ahead of
time; not run on one so far.
"""

from __future__ import annotations

import functools
import importlib
import inspect

import jax

from mlit_jax.attention import tiles
from mlit_jax.attention.choice import Needs
from mlit_jax.attention.scoring import SAVED, Rows

_PLACE = "jax.experimental.pallas.ops.tpu.splash_attention"
_LONGEST_TILE = 1024
INTERPRET = False  # tests run the kernels on CPU


def refusal(needs: Needs) -> str:
  """Why it cannot do what is needed; "" if it can."""
  if reason := _missing():
    return reason
  if needs.has_slopes:
    return "JAX's splash attention has no slopes (ALiBi)"
  return tiles.odd_length(needs.length)


@functools.cache
def _missing() -> str:
  try:
    splash = importlib.import_module(f"{_PLACE}.splash_attention_kernel")
    takes = inspect.signature(splash._make_splash_attention).parameters
    fields = inspect.signature(splash.BlockSizes).parameters
  except (ImportError, AttributeError) as e:
    return f"{_PLACE} of JAX {jax.__version__} cannot be used ({e}); jax 0.10.2 to 0.12 have it"
  wanted = {"mask", "block_sizes", "attn_logits_soft_cap", "head_shards", "q_seq_shards"}
  wanted |= {"residual_checkpoint_name", "interpret"}
  if unknown := (wanted - set(takes)) | ({"block_q_dq", "block_kv_dq"} - set(fields)):
    return f"{_PLACE} of JAX {jax.__version__} does not take {', '.join(sorted(unknown))}; jax 0.10.2 to 0.12 do"
  return ""


def prepare(rows: Rows, needs: Needs) -> jax.Array:
  """segments_BT"""
  return rows.segments_BT


def run(q_BTNH, k_BTKH, v_BTKH, segments_BT, window, needs: Needs, slopes_N) -> jax.Array:
  """o_BTNH"""
  return tiles.run_splash(_kernel, q_BTNH, k_BTKH, v_BTKH, segments_BT, window, needs)


def _kernel(segments_BT, needs: Needs, q_BNTH, k_BKTH, v_BKTH, window: int):
  splash = importlib.import_module(f"{_PLACE}.splash_attention_kernel")
  masks = importlib.import_module(f"{_PLACE}.splash_attention_mask")
  mask = tiles.splash_mask(masks, needs.length, window)
  tile = tiles.largest_tile(needs.length, _LONGEST_TILE)
  inner = min(tile, 512)
  attend = splash.make_splash_mha(
    masks.MultiHeadMask([mask] * needs.heads),
    block_sizes=splash.BlockSizes(
      block_q=tile,
      block_kv=tile,
      block_kv_compute=inner,
      block_q_dkv=tile,
      block_kv_dkv=tile,
      block_kv_dkv_compute=inner,
      block_q_dq=tile,
      block_kv_dq=tile,
    ),
    attn_logits_soft_cap=needs.scoring.softcap,
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=SAVED,
    interpret=INTERPRET,
  )

  def row(q_NTH, k_KTH, v_KTH, segments_T):
    return attend(q_NTH, k_KTH, v_KTH, splash.SegmentIds(segments_T, segments_T))

  return jax.vmap(row)(q_BNTH, k_BKTH, v_BKTH, segments_BT)
