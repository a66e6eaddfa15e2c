"""The step of a config, compiled from shapes alone for devices that are not there."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mlit_jax import mesh as meshes
from mlit_jax.attention import cudnn, mosaic_gpu
from mlit_jax.attention.choice import Choice
from mlit_jax.batch import Batch, empty_batch
from mlit_jax.model import kinds
from mlit_jax.model.config import DecoderConfig
from mlit_jax.planning.arithmetic import product_flops
from mlit_jax.planning.topologies import Topology
from mlit_jax.stepping import make_stepping

# A schedule needs to know of how many steps it is; the program is the same for any.
STEPS = 1000
# Of TPU compilers, by version: all that was wanted of a device's memory, or the temporaries alone.
_USED = re.compile(r"[Uu]sed ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm")
_TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMGT])\)")
# What a TPU's compiler writes down of a program that fits, of the memory of the device first.
_REPORT, _ALLOCATED = "*memory-usage-report.txt", re.compile(r"Total bytes: (\d+)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one device."""

  params: int
  optimizer: int  # what of it rests on the device
  batch: int
  arguments: int  # the three together as the compiler lays them out
  temporaries: int  # at the peak, besides the arguments
  peak: int
  host: int = 0  # of the host's memory, for this device: what of the optimizer rests there


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What a compiler said of a step. A step that does not fit has no program where the compiler refuses it."""

  memory: Memory
  text: str | None  # of the compiled module; None where the compiler refused
  flops: (
    float  # of all matrix products of all devices, as the step is written, recomputation included
  )
  seconds: float


def compile_step(
  c, cfg: DecoderConfig, mesh: Mesh, topology: Topology, num_languages: int, max_segments: int = 0
) -> Compiled:
  """Compile the step of this config for these devices. max_segments: examples of a row at most."""
  traced, state, batch = _trace(c, cfg, mesh, num_languages, max_segments)
  kept = device_bytes(state.opt_state)
  sizes = {
    "params": device_bytes(state.params),
    "optimizer": device_bytes(state.step) + (0 if c.optimizer.offload else kept),
    "batch": device_bytes(batch),
    "host": kept if c.optimizer.offload else 0,
  }
  flops = product_flops(traced.jaxpr)
  started = time.monotonic()
  with jax.set_mesh(mesh):
    lowered = traced.lower(lowering_platforms=(topology.platform,))
    try:
      program, allocated = _compile(lowered, topology.platform)
    except jax.errors.JaxRuntimeError as e:
      if "RESOURCE_EXHAUSTED" not in str(e):
        raise
      return Compiled(refused_memory(str(e), sizes), None, flops, time.monotonic() - started)
  seconds = time.monotonic() - started
  found, moved = program.memory_analysis(), 0
  if topology.platform == "cuda":  # where these are only described, nothing is moved
    moved = streamed_bytes(state.opt_state, cfg)
  arguments, peak = _arguments_and_peak(found, sizes["host"], moved, topology.platform)
  peak = allocated or peak
  memory = Memory(**sizes, arguments=arguments, temporaries=max(0, peak - arguments), peak=peak)
  return Compiled(memory, program.as_text(), flops, seconds)


def _compile(lowered, platform: str) -> tuple[jax.stages.Compiled, int]:
  """The program, and the bytes of a device's memory that it gets; 0 where the compiler does not say."""
  if platform != "tpu":
    return lowered.compile(), 0
  with tempfile.TemporaryDirectory(prefix="mlit_plan_") as folder:
    program = lowered.compile(compiler_options={"xla_dump_to": folder})
    reports = sorted(Path(folder).glob(_REPORT))
    found = _ALLOCATED.search(reports[-1].read_text(errors="replace")) if reports else None
  return program, int(found[1]) if found else 0


def written_flops(c, cfg: DecoderConfig, mesh: Mesh) -> float:
  """Of all matrix products of a step, as it is written."""
  return product_flops(_trace(c, cfg, mesh, 1)[0].jaxpr)


def _trace(c, cfg, mesh, num_languages, max_segments=0):
  stepping = make_stepping(
    c,
    cfg,
    mesh,
    total_steps=STEPS,
    num_languages=num_languages,
    max_segments=max_segments,
  )
  state, batch = stepping.state_shapes(), batch_shapes(c.batch.rows, c.batch.max_length, mesh)
  capability = Choice.on(mesh).capability
  with jax.set_mesh(mesh), _gpu_of(capability):
    return stepping.train_step.trace(state, batch), state, batch


@contextmanager
def _gpu_of(capability: str):
  """As if such a GPU were here; "": none is needed."""
  if not capability:
    yield
    return
  with cudnn.ahead_of_time(capability), mosaic_gpu.ahead_of_time(capability):
    yield


def batch_shapes(rows: int, max_length: int, mesh: Mesh) -> Batch:
  """A batch as the step gets it."""
  sharding = NamedSharding(mesh, meshes.BATCH_SPEC)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((rows, max_length), x.dtype, sharding=sharding),
    empty_batch(1, 1),
  )


def device_bytes(tree) -> int:
  """Bytes on one device of arrays that are only described."""
  return sum(
    int(np.prod(x.sharding.shard_shape(x.shape))) * jnp.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )


def refused_memory(message: str, sizes: dict[str, int]) -> Memory:
  """Of a step that a TPU compiler refuses, from its message; the peak is 0 where that gives no figure."""
  arguments = sum(sizes.values()) - sizes.get("host", 0)
  if found := _USED.search(message):
    peak = int(float(found[1]) * _UNITS[found[2]])
  elif found := _TEMPORARIES.search(message):
    peak = arguments + int(float(found[1]) * _UNITS[found[2]])
  else:
    return Memory(**sizes, arguments=arguments, temporaries=0, peak=0)
  return Memory(**sizes, arguments=arguments, temporaries=max(0, peak - arguments), peak=peak)


def _arguments_and_peak(found, in_host: int, moved: int, platform: str) -> tuple[int, int]:
  """(arguments, peak): arguments, results that do not take their place, and the temporaries' whole allocation.

  XLA's own peak is that of what is alive; the CPU's leaves the temporaries out, and a TPU's adds what rests in the
  host's memory. That is told apart by a TPU's compiler alone; of others' figures it is taken by arithmetic, and
  `moved` added: what comes to the device and goes back, where they did not compile that.
  """
  parts = (
    found.argument_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes
    + found.temp_size_in_bytes
  )
  arguments = int(found.argument_size_in_bytes)
  if not in_host:
    return arguments, max(int(parts), int(getattr(found, "peak_memory_in_bytes", 0)))
  if platform == "tpu":
    return arguments, int(parts)
  return arguments - in_host, int(parts) - in_host + moved


def streamed_bytes(opt_state: dict, cfg: DecoderConfig) -> int:
  """Most that is on a device at once of a state that rests in the host's memory: what comes, and what goes back.

  A layer of a stack at a time, and of what is not stacked all under one name.
  """
  layers = {kind.stack: len(kind.layers) for kind in kinds.kinds(cfg)}
  return 2 * max(device_bytes(of) // layers.get(name, 1) for name, of in opt_state.items())
