"""What one device of each kind has, and who says so."""

from __future__ import annotations

import dataclasses

GIB = 2**30

# Sources of the figures below.
BOOK = "Austin et al., How To Scale Your Model, tables of chips and links"
CLOUD = "Google Cloud's page of the chip"
COMPILER = "the compiler's own message when memory is short (libtpu)"
SHEET = "NVIDIA's data sheet of the SXM board"
NODE = "NVIDIA's reference node: one adapter of {:.0f} Gbit/s for each GPU"


@dataclasses.dataclass(frozen=True)
class Device:
  """One device as JAX lists it: a chip, or half of one (tpu7x). Bytes, bytes/s and FLOP/s."""

  name: str
  usable: float  # of its memory, by a program
  peak_flops: float  # bfloat16, dense
  memory_rate: float
  inside_rate: float  # what it can receive from devices of its host or slice, all links together
  outside_rate: float  # the same from another host or slice
  # Share of the peak that large matrix products reach.
  product_share: float
  host_rate: float = 0.0  # from the host's memory, and to it
  sources: dict[str, str] = dataclasses.field(default_factory=dict)


def _tpu(name, usable_gib, tflops, memory_rate, links, link_rate, outside_rate, per_chip=1):
  """Figures of a chip; `per_chip` devices share one."""
  return Device(
    name,
    usable_gib * GIB,  # as the compiler says it: of a device
    tflops * 1e12 / per_chip,
    memory_rate / per_chip,
    links * link_rate / per_chip,
    outside_rate / per_chip,
    product_share=0.85,
    host_rate=HOST_LINK / per_chip,
    sources={
      "usable": COMPILER,
      "peak_flops": CLOUD,
      "memory_rate": BOOK,
      "inside_rate": f"{BOOK}: {links} links of {link_rate / 1e9:.0f} GB/s one way, all in use",
      "outside_rate": BOOK,
      "product_share": "assumed",
      "host_rate": "assumed: 16 GB/s a chip, of PCI Express",
    },
  )


HOST_LINK = 1.6e10

# JAX leaves a quarter of a GPU's memory alone unless told otherwise; launch/ tells it so.
GPU_SHARE = 0.92


def _gpu(
  name,
  memory_gib,
  memory_rate,
  product_share,
  *,
  tflops=989,
  link_rate=4.5e11,
  adapter=5e10,
  host_rate=6.4e10,
):
  share, share_source = product_share
  return Device(
    name,
    GPU_SHARE * memory_gib * GIB,
    tflops * 1e12,
    memory_rate,
    link_rate,
    adapter,
    product_share=share,
    host_rate=host_rate,
    sources={
      "usable": f"{memory_gib:.1f} GiB x XLA_PYTHON_CLIENT_MEM_FRACTION={GPU_SHARE}, as in launch/ (JAX's default is 0.75)",
      "peak_flops": SHEET,
      "memory_rate": SHEET,
      "inside_rate": f"{SHEET}: NVLink, {2 * link_rate / 1e9:.0f} GB/s both ways together",
      "outside_rate": NODE.format(adapter * 8 / 1e9),
      "product_share": share_source,
      "host_rate": f"{SHEET}: PCI Express, {2 * host_rate / 1e9:.0f} GB/s both ways together",
    },
  )


MEASURED = (0.81, "798 of 989 TFLOP/s, measured once at 8192^3")
LIKE_H100 = (0.81, "assumed to be that of the H100")

DEVICES = {
  "v5e": _tpu("TPU v5e", 15.75, 197, 8.2e11, 4, 4.5e10, 3.125e9),
  "v5p": _tpu("TPU v5p", 95.73, 459, 2.8e12, 6, 9e10, 6.25e9),
  "v6e": _tpu("TPU v6e", 31.24, 918, 1.64e12, 4, 9e10, 1.25e10),
  "tpu7x": _tpu("TPU7x", 94.74, 2307, 7.37e12, 6, 9e10, 1.25e10, per_chip=2),
  "h100": _gpu("NVIDIA H100 80GB HBM3", 79.1, 3.35e12, MEASURED),
  "h200": _gpu("NVIDIA H200", 140.0, 4.8e12, LIKE_H100),
  "a100": _gpu(
    "NVIDIA A100 80GB SXM",
    79.25,
    2.039e12,
    LIKE_H100,
    tflops=312,
    link_rate=3e11,
    adapter=2.5e10,
    host_rate=3.2e10,
  ),
  # For trying a plan out: no figures of a processor are known beforehand.
  "cpu": Device("CPU", 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
}
