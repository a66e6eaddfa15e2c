"""Useful arithmetic of a step, for train/mfu."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np

from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig
from mlit_jax.model.kinds import kinds

# Dense bfloat16 peaks in TFLOP/s by the start of jax's device_kind, from the makers' data sheets.
PEAK_TFLOPS = {
  "NVIDIA H100": 989.0,
  "NVIDIA H200": 989.0,
  "NVIDIA A100": 312.0,
  "TPU v4": 275.0,
  "TPU v5 lite": 197.0,
  "TPU v5p": 459.0,
  "TPU v5": 459.0,
  "TPU v6 lite": 918.0,
}


def step_flops(cfg: DecoderConfig, lengths: np.ndarray, trained: int | None = None) -> float:
  """Forward and backward FLOPs of examples of these lengths; no padding, no recomputation.

  6 * (weights in matmuls; of experts, those a token reaches) * tokens + 6 * sum over layers of heads * head_dim * the pairs that attention
  sees: half of length^2 (causal), less what lies beyond a window. The head, of the trained tokens alone
  (None: all are): no loss needs more.
  """
  lengths = np.asarray(lengths, np.float64)
  idle = (cfg.num_experts - cfg.experts_per_token) * 3 * cfg.d_model * cfg.d_ff * cfg.num_layers
  matmul = _num_in_matmuls(cfg) - idle
  tokens = float(lengths.sum())
  untrained = 0.0 if trained is None else tokens - trained
  head = cfg.vocab_size * cfg.d_model
  return 6.0 * (matmul * tokens - head * untrained) + attention_flops(cfg, lengths)


def attention_flops(cfg: DecoderConfig, lengths: np.ndarray) -> float:
  """What of step_flops is the scores and what they weigh: two products forward and four backward."""
  lengths, out = np.asarray(lengths, np.float64), 0.0
  for kind in kinds(cfg):
    for window in kind.cfg.windows:
      beyond = np.maximum(lengths - window, 0.0) if window else np.zeros_like(lengths)
      out += kind.cfg.num_heads * kind.cfg.head_dim * float(np.sum(lengths**2 - beyond**2))
  return 6.0 * out


@functools.lru_cache
def _num_in_matmuls(cfg: DecoderConfig) -> int:
  """Number of weights that multiply every token: not norms, biases, scalars or tables that are only looked up."""
  total = 0
  specs = jax.tree.leaves_with_path(decoder.param_specs(cfg), is_leaf=decoder.is_spec)
  for path, spec in specs:
    name = path[-1].key
    looked_up = name == "table_VLP" or (name == "table_VD" and not cfg.tied)
    scalar = len(spec.axes) < 2  # that of the layers at most
    if not (looked_up or scalar or "scale" in name or "bias" in name):
      total += math.prod(spec.shape)
  return total


def peak_flops(configured_tflops: float = 0.0) -> float | None:
  """FLOP/s of all devices together; None where the device is not known."""
  if configured_tflops:
    return configured_tflops * 1e12 * jax.device_count()
  kind = jax.devices()[0].device_kind
  for prefix, tflops in PEAK_TFLOPS.items():
    if kind.startswith(prefix):
      return tflops * 1e12 * jax.device_count()
  return None
