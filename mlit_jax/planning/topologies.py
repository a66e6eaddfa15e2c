"""Devices that are not there: topologies by name, as compilers know them.

  v5e:4x4  v5p:8x8x8  v6e:16x16  tpu7x:4x4x4  2*v5e:16x16 (two slices)     through libtpu
  h100:8  h100:256 (8 to a host)  h200:8  a100:8                           through JAX's CUDA plugin
  cpu:8                                                                    as many CPU devices

JAX must run on CPU (JAX_PLATFORMS=cpu): with any other platform the plugins look for hardware.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import math
import os
import pkgutil
import re

import jax
from jax.experimental import topologies

from mlit_jax.errors import UserError
from mlit_jax.planning.hardware import DEVICES, GIB, Device

GPUS_PER_HOST = 8
TPUS = ("v5e", "v5p", "v6e", "tpu7x")
GPUS = ("h100", "h200", "a100")
# libtpu is for compiling alone here: it may run beside another that does so too, or that has a TPU.
_TPU_SETTINGS = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
KNOWN = """\
v5e:4x4        TPU v5e, 16 chips; also 2x2, 2x4, 4x8, 8x8, 8x16, 16x16
v6e:16x16      TPU v6e, the same shapes
v5p:8x8x8      TPU v5p, 512 chips; three even sides, such as 2x2x2, 4x4x4, 4x4x8, 16x16x24
tpu7x:4x4x4    TPU7x, 64 chips, 128 devices
2*v5e:16x16    two slices; any TPU
h100:8         one host of 8 H100; h100:1, h100:2, h100:4 too
h100:256       32 hosts of 8
h200:8         the same of H200
a100:8         the same of A100 (80 GB, SXM)
cpu:8          8 CPU devices: to try a plan, without figures of speed"""


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices to compile for, and what one of them has."""

  name: str
  platform: str  # of lowering
  devices: list
  device: Device
  groups: tuple[
    int, ...
  ]  # of each device: its slice (TPU) or host (GPU), within which links are fast

  @property
  def group_word(self) -> str:
    return "host" if self.platform == "cuda" else "slice"


def open_topology(name: str, memory_gib: float = 0.0) -> Topology:
  """The topology of that name; UserError for one that is unknown or whose compiler is not installed.

  `memory_gib`: usable on a device, in place of what is known.
  """
  slices, kind, shape = _parse(name)
  device = DEVICES[kind]
  if memory_gib:
    stated = {"usable": "--memory_gib"}
    device = dataclasses.replace(device, usable=memory_gib * GIB, sources=device.sources | stated)
  if kind == "cpu":
    devices = _cpu_devices(math.prod(shape))
    return Topology(name, "cpu", devices, device, (0,) * len(devices))
  if kind in GPUS:
    devices = _gpu_devices(kind, math.prod(shape))
    groups = tuple(d.process_index for d in devices)
    return Topology(name, "cuda", devices, device, groups)
  devices = _tpu_devices(name, kind, shape, slices)
  groups = tuple(getattr(d, "slice_index", None) or 0 for d in devices)
  return Topology(name, "tpu", devices, device, groups)


def _parse(name: str) -> tuple[int, str, tuple[int, ...]]:
  """(slices, kind, sides): 2*v5e:4x4 -> (2, "v5e", (4, 4))."""
  found = re.fullmatch(r"(?:(\d+)\*)?([a-z0-9]+):(\d+(?:x\d+)*)", name)
  if not found or found[2] not in DEVICES:
    raise _unknown(name)
  slices, kind, shape = int(found[1] or 1), found[2], tuple(map(int, found[3].split("x")))
  if kind in TPUS:
    wanted = 2 if kind in ("v5e", "v6e") else 3
    if len(shape) != wanted or min(shape) < 1 or slices < 1:
      raise _unknown(name)
  elif len(shape) > 1 or shape[0] < 1 or found[1]:
    raise _unknown(name)
  elif kind in GPUS and shape[0] > GPUS_PER_HOST and shape[0] % GPUS_PER_HOST:
    raise UserError(
      f"--topology {name}: {shape[0]} GPUs are not a whole number of hosts of {GPUS_PER_HOST}"
    )
  return slices, kind, shape


def _unknown(name: str) -> UserError:
  names = [line.split()[0] for line in KNOWN.split("\n")]
  kind = name.partition(":")[0].rpartition("*")[2]
  near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
  near = [n for n in names if kind and n.startswith(kind)] or near
  return UserError(
    f"unknown topology {name!r}"
    + (f"; did you mean one like {near[0]!r}?" if near else "")
    + " `--topology list` shows what is known."
  )


def _cpu_devices(number: int) -> list:
  """So many CPU devices. Their number is settled when JAX first looks for devices."""
  with contextlib.suppress(RuntimeError):  # settled before: there may be enough
    jax.config.update("jax_num_cpu_devices", number)
  devices = jax.devices("cpu")
  if len(devices) < number:
    raise UserError(
      f"--topology cpu:{number}: this process has {len(devices)} CPU devices already; start the command anew"
    )
  return devices[:number]


def _tpu_devices(name: str, kind: str, shape: tuple[int, ...], slices: int) -> list:
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      f"--topology {name}: libtpu, the compiler for TPUs, is not installed (no TPU is needed). "
      "pip install 'mlit_jax[plan-tpu]'"
    )
  # Else it asks the network what machine this is, and complains when nobody answers.
  for key, value in _TPU_SETTINGS.items():
    os.environ.setdefault(key, value)
  options = {"num_slices": slices} if slices > 1 else {}
  if math.prod(shape) < 4:
    options["chips_per_host_bounds"] = [*shape, 1][:3]
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=f"{kind}:{'x'.join(map(str, shape))}", **options
    )
  except jax.errors.JaxRuntimeError as e:
    if "INVALID_ARGUMENT" not in str(e):
      raise
    raise UserError(
      f"--topology {name}: the compiler knows no such topology ({_one_line(e)}). "
      "`--topology list` shows shapes that are sold."
    ) from e
  return list(found.devices)


def _gpu_devices(kind: str, number: int) -> list:
  if not _has_cuda_plugin():
    raise UserError(
      f"--topology {kind}:{number}: JAX's CUDA plugin, the compiler for GPUs, is not installed (no GPU is "
      "needed). pip install 'mlit_jax[plan-gpu]'"
    )
  hosts, each = max(1, number // GPUS_PER_HOST), min(number, GPUS_PER_HOST)
  try:
    found = topologies.get_topology_desc(
      platform="cuda", topology=f"1x{hosts}x{each}", target_config=TARGETS[kind]
    )
  except (NotImplementedError, jax.errors.JaxRuntimeError) as e:
    raise UserError(
      f"--topology {kind}:{number}: JAX's CUDA plugin cannot compile without a GPU here ({_one_line(e)}). "
      "Run with JAX_PLATFORMS=cpu, and install the plugin of your jaxlib: pip install 'mlit_jax[plan-gpu]'"
    ) from e
  return list(found.devices)


def _has_cuda_plugin() -> bool:
  """xla_cuda13 today; its name moves with CUDA."""
  if importlib.util.find_spec("jax_plugins") is None:
    return False
  import jax_plugins  # a namespace that exists where a plugin does

  return any(m.name.startswith("xla_cuda") for m in pkgutil.iter_modules(jax_plugins.__path__))


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split())[:200]


def _target(
  name: str,
  compute: tuple[int, int],
  *,
  cores: int,
  per_core: int,
  clock_ghz: float,
  cache: int,
  memory: int,
  memory_rate: int,
  shared: tuple[int, int],
) -> str:
  """A GpuTargetConfig in protobuf's text: what XLA would ask such a GPU itself.

  `shared`: bytes of shared memory of a core, and of them what one block may ask for.
  """
  return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared[0]} shared_memory_per_block_optin: {shared[1]}
  core_count: {cores} fpus_per_core: {per_core} clock_rate_ghz: {clock_ghz}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {memory_rate} l2_cache_size: {cache} device_memory_size: {memory}
  cuda_compute_capability {{ major: {compute[0]} minor: {compute[1]} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""


# As such boards describe themselves; XLA's own collection of targets has the same figures.
_HOPPER = dict(
  compute=(9, 0), cores=132, per_core=128, clock_ghz=1.98, cache=52_428_800, shared=(233_472, 232_448)
)  # fmt: skip
TARGETS = {
  "h100": _target(
    "NVIDIA H100 80GB HBM3", memory=84_929_347_584, memory_rate=3_352_320_000_000, **_HOPPER
  ),
  "h200": _target("NVIDIA H200", memory=150_323_855_360, memory_rate=4_800_000_000_000, **_HOPPER),
  "a100": _target(
    "NVIDIA A100-SXM4-80GB", (8, 0), cores=108, per_core=64, clock_ghz=1.41, cache=41_943_040,
    memory=85_100_068_864, memory_rate=2_039_040_000_000, shared=(167_936, 166_912),
  ),
}  # fmt: skip
