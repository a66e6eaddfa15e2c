"""What can be known to go wrong before hours are paid for: seen by all processes at the start."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mlit_jax
from mlit_jax import runtime
from mlit_jax.cores import usable_cores
from mlit_jax.errors import UserError

MOST_SKEW = 5.0  # seconds between the clocks of two hosts
ALL_REDUCE_BYTES = 16 << 20  # that each device gives


def preflight() -> tuple[str, list[str]]:
  """(one line about what there is, warnings); all processes must call this.

  Raises UserError on all of them where versions or numbers of devices differ.
  """
  jaxlib = importlib.metadata.version("jaxlib")
  runtime.check_same(
    "versions",
    f"Python {platform.python_version()}, JAX {jax.__version__} {jaxlib}, {mlit_jax.__version__}",
  )
  kind, processes, local = jax.devices()[0].device_kind, jax.process_count(), jax.local_devices()
  line = f"{_count(len(local), 'device')} ({kind})"
  warnings = []
  if processes > 1:
    line = f"{processes} processes x {line}"
    skew = check_alike(
      multihost_utils.process_allgather(np.int64(len(local))),
      multihost_utils.process_allgather(np.float64(_now())),
    )
    line += f", clocks within {skew:.1f} s"
    if skew > MOST_SKEW:
      warnings.append(
        f"the clocks of the hosts differ by {skew:,.0f} s: times in logs cannot be compared. Set them by NTP."
      )
  if jax.device_count() > 1:
    seconds = time_all_reduce()
    line += f", all-reduce of {ALL_REDUCE_BYTES >> 20} MiB in {1e3 * seconds:,.1f} ms"
  return line, warnings


def unused_cores(rows: int, sizes: Mapping[str, int]) -> str:
  """How to train faster where a CPU with several cores is one device; "" elsewhere.

  rows: of a part of a step. sizes: the config's mesh, which more devices must fit.
  """
  if jax.local_devices()[0].platform != "cpu" or jax.device_count() > 1:
    return ""
  if "JAX_NUM_CPU_DEVICES" in os.environ:
    return ""  # who says 1 means it
  if -1 not in (sizes["data"], sizes["fsdp"]):
    return ""
  cores = usable_cores()
  devices = max(n for n in range(1, min(cores, rows) + 1) if rows % n == 0)
  if cores <= 2 or devices == 1:  # one device keeps two cores busy (docs/performance.md)
    return ""
  return f"of {cores} cores; the environment variable JAX_NUM_CPU_DEVICES={devices} may make training faster"


def check_alike(devices: np.ndarray, clocks: np.ndarray) -> float:
  """Seconds between the first and the last clock; UserError where processes have other numbers of devices."""
  if len(set(devices.tolist())) > 1:
    raise UserError(
      f"processes have {devices.tolist()} devices; each must have as many as the others. A device may be missing, or "
      "CUDA_VISIBLE_DEVICES may differ."
    )
  return float(clocks.max() - clocks.min())


def time_all_reduce() -> float:
  """Seconds that all devices need to add up ALL_REDUCE_BYTES of each: the second time, without compiling."""
  num = jax.device_count()
  mesh = jax.make_mesh((num,), ("all",), axis_types=(AxisType.Auto,))
  spread = NamedSharding(mesh, P("all"))
  size = ALL_REDUCE_BYTES // 4
  ones = jax.jit(lambda: jnp.ones((num, size), jnp.float32), out_shardings=spread)()
  add = jax.jit(
    jax.shard_map(lambda x: jax.lax.psum(x, "all"), mesh=mesh, in_specs=P("all"), out_specs=P())
  )
  jax.block_until_ready(add(ones))
  began = time.perf_counter()
  total = jax.block_until_ready(add(ones))
  seconds = time.perf_counter() - began
  found = float(total.addressable_shards[0].data[0, -1])
  assert found == num, f"an all-reduce of ones over {num} devices gave {found}"
  return seconds


def _now() -> float:
  """When all processes are here: gathered right after a barrier, differences are those of the clocks."""
  multihost_utils.sync_global_devices("mlit_jax clocks")
  return time.time()


def _count(number: int, what: str) -> str:
  return f"{number} {what}{'s' * (number != 1)}"
