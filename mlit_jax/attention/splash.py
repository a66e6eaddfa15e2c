"""tokamax's splash attention for TPU: rows in tiles; since tokamax 0.0.17 those between segments are left out.

Private in tokamax. Run in interpret mode on CPU, compiled for TPU ahead of time; not run on one so far.
"""

from __future__ import annotations

import functools
import importlib
import inspect

import jax

from mlit_jax.attention import tiles
from mlit_jax.attention.choice import Needs
from mlit_jax.attention.scoring import SAVED, Rows

_PLACE = "tokamax._src.ops.experimental.tpu.splash_attention"
_LONGEST_TILE = 512  # of queries and, forward, keys: longer ones are seldom free of other segments
# Of keys, backward: each such tile gives a gradient of all queries of its row, and those are added up after.
# In float32 beyond 4 of them (0.0.12); its sum in place (`dq_reduction_steps`) is wrong when interpreted.
_BACKWARD, _LONGEST_BACKWARD = 1024, 2048
INTERPRET = False  # tests run the kernels on CPU


def refusal(needs: Needs) -> str:
  """Why it cannot do what is needed; "" if it can."""
  if reason := _missing():
    return reason
  if needs.has_slopes:
    return "tokamax's splash attention has no slopes (ALiBi)"
  return tiles.odd_length(needs.length)


@functools.cache
def _missing() -> str:
  """Why tokamax cannot be used: it is not there, or not as this file knows it."""
  try:
    splash = importlib.import_module(f"{_PLACE}.splash_attention_kernel")
    takes = inspect.signature(splash._make_splash_attention).parameters
    fields = inspect.signature(splash.SplashConfig).parameters
  except (ImportError, AttributeError) as e:
    return f"its package cannot be used ({e}): pip install 'mlit_jax[tokamax]'"
  wanted = {"block_q_dkv", "residual_checkpoint_name", "interpret"}
  wanted |= {"attn_logits_soft_cap", "use_fused_bwd_kernel"}
  if unknown := (wanted - set(fields)) | ({"mask", "config", "q_seq_shards"} - set(takes)):
    return (
      f"the tokamax that is installed does not take {', '.join(sorted(unknown))}; "
      "0.0.12 and 0.0.17 do: pip install 'mlit_jax[tokamax]'"
    )
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
  T = needs.length
  tile = tiles.largest_tile(T, _LONGEST_TILE)
  backward = tiles.largest_tile(T, min(max(_BACKWARD, T // 4), _LONGEST_BACKWARD))
  attend = splash.make_splash_mha(
    mask,
    config=splash.SplashConfig(
      block_q=tile,
      block_kv=tile,
      block_q_dkv=tile,
      block_kv_dkv=backward,
      block_kv_dkv_compute=tile,
      attn_logits_soft_cap=needs.scoring.softcap,
      residual_checkpoint_name=SAVED,
      interpret=INTERPRET,
    ),
    q_seq_shards=1,
  )

  def row(q_NTH, k_KTH, v_KTH, segments_T):
    return attend(q_NTH, k_KTH, v_KTH, splash.SegmentIds(segments_T, segments_T))

  if hasattr(splash, "_refine_mask_info_with_segments"):
    # Rows that are batched visit what any of them has to; one by one each visits its own tiles.
    return jax.lax.map(lambda of_row: row(*of_row), (q_BNTH, k_BKTH, v_BKTH, segments_BT))
  return jax.vmap(row)(q_BNTH, k_BKTH, v_BKTH, segments_BT)
