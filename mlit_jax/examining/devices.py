"""Devices, and whether each of them computes what it should."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlit_jax.examining.finding import Finding, ok, warning, wrong

GIB = 1 << 30
TURNS = 8  # the same product: a chip that errs now and then gives other bits
SIZES = {"cpu": 512, "gpu": 4096, "tpu": 4096}
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-5}  # of the largest value; both are summed in float32
SLOW_SHARE = 0.5  # of the median of all devices of a process


class Product(NamedTuple):
  """What one device made of a matrix product."""

  device: str
  error: float  # largest difference over largest value
  is_steady: bool  # whether all turns gave the same bits
  flops: float  # a second


def devices() -> list[Finding]:
  """What JAX found here."""
  local = jax.local_devices()
  kind = local[0].device_kind
  text = f"{len(local)} {local[0].platform} ({kind})"
  if jax.process_count() > 1:
    text += f", {jax.device_count()} in {jax.process_count()} processes"
  stats = [d.memory_stats() or {} for d in local]
  limits = [s["bytes_limit"] / GIB for s in stats if "bytes_limit" in s]
  if limits:
    text += f", {min(limits):.1f} GiB usable each"
  asked = os.environ.get("JAX_PLATFORMS", "")
  if asked:
    text += f", JAX_PLATFORMS={asked}"
  kinds = {d.device_kind for d in local}
  if len(kinds) > 1:
    remedy = "Choose those of one kind (CUDA_VISIBLE_DEVICES): all wait for the slowest."
    return [warning("devices", f"{text}; not alike: {', '.join(sorted(kinds))}", remedy)]
  return [ok("devices", text)]


def products(dtype: str, multiply: Callable | None = None) -> list[Finding]:
  """A matrix product on every local device, beside numpy's."""
  platform = jax.local_devices()[0].platform
  size = SIZES.get(platform, SIZES["cpu"])
  rng = np.random.default_rng(0)
  a, b = (jnp.asarray(rng.standard_normal((size, size)), dtype) for _ in range(2))
  a, b = np.asarray(a), np.asarray(b)
  # Some rows are enough to find a wrong chip, and numpy has one thread for float64 on some hosts.
  rows = slice(None, None, max(1, size // 256))
  expected = a[rows].astype(np.float64) @ b.astype(np.float64)
  multiply = multiply or jax.jit(_multiply)
  made = [_try(d, multiply, a, b, rows, expected) for d in jax.local_devices()]
  return check_products(f"products in {dtype}", made, TOLERANCES[dtype])


def check_products(item: str, made: list[Product], tolerance: float) -> list[Finding]:
  """One line for all; each device that computes wrongly or slowly is named."""
  bad = [p for p in made if not (p.error <= tolerance and p.is_steady)]
  if bad:
    said = [
      f"{p.device}: {'off by' if p.is_steady else 'other bits each time, off by'} {p.error:.1e} of the largest value"
      for p in bad
    ]
    remedy = "Do not train on it: leave it out (CUDA_VISIBLE_DEVICES), have the host exchanged."
    return [wrong(item, "; ".join(said), remedy)]
  middle = statistics.median(p.flops for p in made)
  text = f"as numpy's to {max(p.error for p in made):.0e}, {middle / 1e12:,.2f} TFLOP/s a device"
  slow = [p for p in made if p.flops < SLOW_SHARE * middle]
  if slow and len(made) > 2:
    said = ", ".join(f"{p.device} {p.flops / 1e12:,.2f}" for p in slow)
    remedy = "All devices wait for the slowest: see what else runs there, its clock and heat."
    return [warning(item, f"{text}, but {said}", remedy)]
  return [ok(item, text)]


def _multiply(a, b):
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _try(device, multiply, a, b, rows, expected) -> Product:
  a, b = jax.device_put((a, b), device)
  first = np.asarray(multiply(a, b))
  is_steady, fastest = True, float("inf")
  for _ in range(TURNS):
    began = time.perf_counter()
    again = jax.block_until_ready(multiply(a, b))
    fastest = min(fastest, time.perf_counter() - began)
    is_steady &= np.array_equal(first, np.asarray(again))
  error = float(np.max(np.abs(first[rows] - expected)) / np.max(np.abs(expected)))
  return Product(str(device), error, is_steady, 2.0 * a.shape[0] ** 3 / fastest)
