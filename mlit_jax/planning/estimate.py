"""How long a step may take: what each resource needs alone, and the two ends between which a step lies."""

from __future__ import annotations

import dataclasses

from mlit_jax.planning.collectives import Traffic
from mlit_jax.planning.compiling import Memory
from mlit_jax.planning.hardware import Device
from mlit_jax.planning.kernels import Moved


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of a step. `overlapped`: all at once; `serial`: one after another."""

  products: float
  memory: float
  inside: float  # links within a host or slice
  outside: float  # the network between them
  host: float  # the link to the host's memory
  overlapped: float
  serial: float


def estimate(
  device: Device,
  devices: int,
  flops: float,
  memory: Memory,
  traffic: Traffic,
  passes: float,
  kernels: Moved | None = None,
) -> Estimate | None:
  """Of a step that does `flops` in matrix products on all devices; None where the device is not known.

  kernels: what its kernels move, where that is known; else the least that memory_bytes tells.
  """
  if not device.peak_flops:
    return None
  products = flops / devices / (device.product_share * device.peak_flops)
  # What the products move they move while they compute, so that the others' comes to it at worst.
  least = memory_bytes(memory, traffic, passes)
  moved, besides = (kernels.total, kernels.others) if kernels else (least, least)
  inside = traffic.near / device.inside_rate
  outside = traffic.far / device.outside_rate
  # The device waits for a layer of it, and then for the layer to be gone: one way after the other.
  host = 2.0 * memory.host / device.host_rate if memory.host else 0.0
  overlapped = max(products, moved / device.memory_rate, inside, outside, host)
  serial = max(products + besides / device.memory_rate + inside + outside + host, overlapped)
  return Estimate(products, moved / device.memory_rate, inside, outside, host, overlapped, serial)


def memory_bytes(memory: Memory, traffic: Traffic, passes: float) -> float:
  """Bytes to and from a device's memory, as few as there can be.

  The state is read and written once, the temporaries are written and read once, and what collectives bring is
  written and read. `passes` is how often the parameters on the device are read besides (forward, backward,
  recomputed). What rests in the host's memory is written when it comes, and read when it goes, besides.
  """
  state = 2.0 * (memory.params + memory.optimizer + 2 * memory.host) + passes * memory.params
  return state + 2.0 * memory.temporaries + 2.0 * (traffic.near + traffic.far)


_LEAST_MOVED = (
  "memory at {memory:.2f} TB/s: state in and out once, temporaries and what collectives bring written and read "
  "once; fused or repeated traffic is not known, so this is a lower bound"
)
_KERNELS_MOVED = (
  "memory at {memory:.2f} TB/s: each kernel of the program reads its operands and writes its results once, "
  "{others:.0f} GB a device besides products and attention; kernels are those of a compiler that cannot try them out here"
)
ASSUMPTIONS = (
  "matrix products run at {share:.0%} of the bfloat16 peak of {peak:.0f} TFLOP/s ({share_source}); arithmetic is "
  "counted as the step is written: recomputation and what attention masks included, but of attention kernels only what is seen; never less than the useful",
  "{moved}",
  "links within a {group} at {inside:.0f} GB/s a device ({inside_source}), between {group}s at {outside:.1f} GB/s "
  "({outside_source}); what a {group} needs from others comes once, through the adapters of all that take part; "
  "no latency, no contention",
  "overlapped: the longest of these hides all others; serial: none hides another. A real step can be slower than "
  "both: kernels' own efficiency, waiting for data, evaluation and saving are not in it",
)
OF_HOST = (
  "the host's memory at {host:.0f} GB/s a device ({host_source}); what rests there comes and goes once, a layer at a "
  "time, one way after the other; whether the host has so much is not known"
)


def assumptions(
  device: Device, group: str, *, offload: bool = False, kernels: Moved | None = None
) -> list[str]:
  """What an estimate for this device takes for granted."""
  figures = {
    "share": device.product_share,
    "peak": device.peak_flops / 1e12,
    "share_source": device.sources.get("product_share", ""),
    "memory": device.memory_rate / 1e12,
    "others": kernels.others / 1e9 if kernels else 0.0,
    "inside": device.inside_rate / 1e9,
    "inside_source": device.sources.get("inside_rate", ""),
    "outside": device.outside_rate / 1e9,
    "outside_source": device.sources.get("outside_rate", ""),
    "host": device.host_rate / 1e9,
    "host_source": device.sources.get("host_rate", ""),
    "group": group,
  }
  figures["moved"] = (_KERNELS_MOVED if kernels else _LEAST_MOVED).format(**figures)
  lines = (*ASSUMPTIONS, OF_HOST) if offload else ASSUMPTIONS
  return [line.format(**figures) for line in lines] if device.peak_flops else []
