"""Values on their way between files and devices."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mlit_jax.cores import usable_cores
from mlit_jax.weights import hf_files, table

# Twice the cores: half of the threads wait for the disk.
THREADS = min(16, 2 * usable_cores())
_PIECE = 1 << 21  # values that one thread reads at once
_ALIGNMENT = 64  # bytes
_CHUNK = 1 << 18  # values looked at together: they stay in the cache


def place(
  arrays, row: table.Row, sharding, dtype, pool: futures.Executor, count: Callable[[int], None]
) -> jax.Array:
  """The parameter of `row` on its devices, from the mapped tensors `arrays`.

  One slice at a time is made on the host, its layers side by side, by the threads of `pool`. `sharding`
  None is the default device. `count` is told the bytes read, from any thread.
  """
  shards = []
  for bounds, devices in _slices(row, sharding).items():  # replicas are read once
    host = _read(arrays, row, bounds, np.dtype(dtype), pool, count)
    shards += jax.block_until_ready([jax.device_put(host, device) for device in devices])
    del host
  if not sharding:
    return shards[0]
  return jax.make_array_from_single_device_arrays(row.full_shape, sharding, shards)


def bytes_to_read(arrays, row: table.Row, sharding) -> int:
  """The bytes of the files behind the slices that this process's devices hold, each slice once."""
  total = 0
  for bounds in _slices(row, sharding):
    num_values = math.prod(stop - start for start, stop in bounds[len(row.stack) :])
    total += num_values * sum(arrays[name].itemsize for name, _ in _names(row, bounds))
  return total


def take(leaf, index: Sequence[int], dtype: str) -> jax.Array:
  """leaf[index] in `dtype`, where the first process can read it; a collective if spread out.

  Not waited for unless it is spread over processes.
  """
  if isinstance(leaf, np.ndarray):
    leaf = jnp.asarray(leaf[tuple(index)])
    index = ()
  with jax.transfer_guard("allow"):
    part = _slice(leaf, np.asarray(index, np.int32), np.dtype(dtype))
    if not part.is_fully_addressable:
      # Waited for everywhere: a process that runs ahead holds several whole tensors on its devices,
      # and collectives of several programs at once can lock each other out.
      part = jax.device_put(part, NamedSharding(part.sharding.mesh, P())).block_until_ready()
    return part


def on_host(part: jax.Array) -> list[tuple[tuple[slice, ...], np.ndarray]]:
  """The slices of an array that this process's devices hold, each once; on a CPU they are not copied."""
  shards = {
    tuple((s.start, s.stop) for s in shard.index): shard for shard in part.addressable_shards
  }
  with jax.transfer_guard("allow"):
    return [(shard.index, np.asarray(shard.data)) for shard in shards.values()]


def is_finite(array: np.ndarray) -> bool:
  """Whether no value is NaN or infinite: all ones in the exponent."""
  exponent = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}[array.dtype.name]
  bits = array.reshape(-1).view(np.uint16 if array.itemsize == 2 else np.uint32)
  exponent = bits.dtype.type(exponent)
  parts = (bits[start : start + _CHUNK] for start in range(0, bits.size, _CHUNK))
  return not any(((part & exponent) == exponent).any() for part in parts)


def cast(x: jax.Array, dtype) -> jax.Array:
  """x in `dtype`, rounded to nearest even.

  To bfloat16 on the bits: an accelerator's own cast may flush the smallest values to zero, and an export
  would not be the source.
  """
  if (x.dtype, dtype) != (jnp.float32, jnp.bfloat16):
    return x.astype(dtype)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
  rounded = jnp.where(jnp.isnan(x), jnp.uint32(0x7FC0), rounded)
  return jax.lax.bitcast_convert_type(rounded.astype(jnp.uint16), jnp.bfloat16)


def _slices(row: table.Row, sharding) -> dict[tuple, list]:
  """{bounds of each axis: this process's devices that hold that slice}."""
  if not sharding:
    return {tuple((0, size) for size in row.full_shape): [None]}
  holders: dict[tuple, list] = {}
  indices = sharding.addressable_devices_indices_map(row.full_shape)
  for device, index in indices.items():
    bounds = tuple(part.indices(n)[:2] for part, n in zip(index, row.full_shape, strict=True))
    holders.setdefault(bounds, []).append(device)
  return holders


def _names(row: table.Row, bounds) -> list[tuple[str, tuple[int, ...]]]:
  """The tensors of theirs behind a slice, each with its place along the slice's leading axes."""
  leading = bounds[: len(row.stack)]
  return [
    (row.name([i + start for i, (start, _) in zip(here, leading, strict=True)]), here)
    for here in np.ndindex(*(stop - start for start, stop in leading))
  ]


def _read(arrays, row: table.Row, bounds, dtype, pool, count: Callable[[int], None]) -> np.ndarray:
  out = _zeros([stop - start for start, stop in bounds], dtype)
  cut = [slice(*pair) for pair in bounds[len(row.stack) :]]

  def read(name, here, index, place):
    run = hf_files.read(table.rows_read(arrays[name], row, index))
    values = table.turn(run, row, index)
    table.fill(out[(*here, *place, ...)], values)  # ...: a view of a scalar too
    count(values.nbytes)

  begun = [
    pool.submit(read, name, here, index, place)
    for name, here in _names(row, bounds)
    for index, place in table.pieces(row, cut, _PIECE)
  ]
  for done in begun:
    done.result()
  return out


def _zeros(shape, dtype) -> np.ndarray:
  """An array of zeros that a CPU device takes over as it is, where it would copy one that begins elsewhere.

  A large one is not written to: new memory holds zeros.
  """
  num_bytes = math.prod(shape) * dtype.itemsize
  memory = np.zeros(num_bytes + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + num_bytes].view(dtype).reshape(shape)


@functools.partial(jax.jit, static_argnums=2)
def _slice(leaf, index, dtype):
  for i in range(index.size):
    leaf = jax.lax.dynamic_index_in_dim(leaf, index[i], 0, keepdims=False)
  return cast(leaf, dtype)
