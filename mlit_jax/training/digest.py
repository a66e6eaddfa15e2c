"""A digest of arrays that does not depend on where and how they are laid out over devices."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

LANES = 4  # of 32 bits each
BLOCK = 2**22  # elements hashed at once
# Odd numbers without a pattern: fractional parts of the square roots of 2, 3, 5, 7, and of 11, 13, 17, 19.
LOW_KEYS = (0x6A09E667, 0xBB67AE85, 0x3C6EF373, 0xA54FF539)
HIGH_KEYS = (0x510E527F, 0x9B05688D, 0x1F83D9AB, 0x5BE0CD19)


def digests(tree) -> dict[str, str]:
  """{path: "float32[4,192] 0f..."} with 128 bits for every array of a tree; all processes must call this.

  Each element's bits are hashed together with its position, in four ways, and the hashes are added up modulo
  2**32: any order of adding, so any mesh, gives the same sums. For a given position the hash is a bijection of
  the bits, so a change within one element always shows; one of several elements goes unseen once in 2**128.
  """
  leaves = named_leaves(tree)
  # All are under way before the first is waited for; no host sees more than the sums.
  sums = [_sums_of(x) for x in leaves.values()]
  sums_L4 = [_once(x, of) for x, of in zip(leaves.values(), sums, strict=True)]
  sums_L4 = over_processes(np.array(sums_L4, np.uint32).reshape(-1, LANES))
  return {
    name: f"{_kind(x)} {_hex(words)}"
    for (name, x), words in zip(leaves.items(), sums_L4, strict=True)
  }


def device_sums(tree) -> dict[str, jax.Array]:
  """{path: uint32[devices, 4]}, what each device's part of each array adds to its digest; a row on each device.

  The devices are those of the mesh that all the arrays lie on, in its order. Devices that hold the same part have
  the same sums. Nothing is exchanged between devices.
  """
  leaves = named_leaves(tree)
  assert all(isinstance(x.sharding, NamedSharding) for x in leaves.values())
  return {name: _sums_of(x) for name, x in leaves.items()}


def named_leaves(tree) -> dict[str, jax.Array]:
  """{"params/blocks/mlp/up_DF": array} of every array of a tree."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def over_processes(sums: np.ndarray) -> np.ndarray:
  """Numbers of 32 bits added up over all processes, modulo 2**32, on each of them."""
  if jax.process_count() == 1:
    return sums
  return multihost_utils.process_allgather(sums).sum(axis=0, dtype=np.uint32)


def differing(
  saved: dict[str, str], found: dict[str, str], names: tuple[str, ...] = ()
) -> list[str]:
  """What is not as it was saved, in words; with names, of the leaves below these alone."""
  out = []
  for path in sorted(saved.keys() | found.keys()):
    if names and path.split("/")[0] not in names:
      continue
    if saved.get(path) == found.get(path):
      continue
    if path not in found:
      out.append(f"{path} is missing")
    elif path not in saved:
      out.append(f"{path} was not saved")
    else:
      (kind, _), (kind_now, _) = saved[path].split(" "), found[path].split(" ")
      same = kind == kind_now
      out.append(f"{path} has other values" if same else f"{path} is {kind_now}, not {kind}")
  return out


def _sums_of(x: jax.Array) -> jax.Array:
  """uint32[4] of an array that lies on no mesh; on a mesh uint32[devices, 4], each device's part by itself."""
  sharding = x.sharding
  # A CPU computes with bfloat16 in float32: it would hold all of the array in that, and make one NaN of many.
  whole = next(iter(sharding.device_set)).platform == "cpu" and x.dtype.itemsize < 4
  if not isinstance(sharding, NamedSharding):
    return _program(None, P(), "", whole)(x)
  return _program(sharding.mesh, sharding.spec, sharding.memory_kind, whole)(x)


def _once(x: jax.Array, sums: jax.Array) -> np.ndarray:
  """uint32[4]: the sums of those parts that this process answers for; each part counts on one device of all."""
  if not isinstance(x.sharding, NamedSharding):
    return np.asarray(sums) * np.uint32(jax.process_index() == 0)  # the same on all processes
  first = {shard.device for shard in x.addressable_shards if shard.replica_id == 0}
  rows = [np.asarray(s.data)[0] for s in sums.addressable_shards if s.device in first]
  return np.sum(rows, axis=0, dtype=np.uint32) if rows else np.zeros(LANES, np.uint32)


@functools.cache  # a jit of its own for each place: made anew, every save would compile again
def _program(mesh: jax.sharding.Mesh | None, spec: P, memory_kind: str, whole: bool):
  """The program that hashes the part that each device has, by itself.

  Nothing is exchanged between devices: these are many programs at once, and on several processes of CPUs those of
  one process may begin in another order than those of the next and wait for each other for ever.

  whole: the array is turned into integers before it is cut into blocks, at the cost of a copy.
  """
  first = (lambda x: _bits(_plain(x))) if whole else _plain
  if mesh is None:
    return jax.jit(lambda x: _sums(first(x), x.shape, ()))

  def hashed(x):
    if memory_kind == "pinned_host":  # there nothing can be computed
      x = jax.device_put(x, NamedSharding(mesh, spec, memory_kind="device"))
    plain = first(x)
    of_axis = [axes for axes in (*spec, *[None] * plain.ndim)][: plain.ndim]
    of_axis = [(axes,) if isinstance(axes, str) else axes or () for axes in of_axis]

    def part(plain):
      return _sums(plain, x.shape, of_axis)[None]

    out = P(mesh.axis_names)
    return jax.shard_map(part, mesh=mesh, in_specs=spec, out_specs=out, check_vma=False)(plain)

  return jax.jit(hashed, out_shardings=NamedSharding(mesh, P(mesh.axis_names)))


def _plain(x: jax.Array) -> jax.Array:
  """Elements of 8, 16 or 32 bits; wider ones as several on a further axis."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.key_data(x)
  if x.dtype == jnp.bool_ or x.dtype.name in ("int4", "uint4", "int2", "uint2"):
    return x.astype(jnp.int8)
  return jax.lax.bitcast_convert_type(x, jnp.uint32) if x.dtype.itemsize > 4 else x


def _bits(x: jax.Array) -> jax.Array:
  """The same bits as unsigned integers."""
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  return jax.lax.bitcast_convert_type(x, unsigned)


def _sums(x: jax.Array, shape: tuple[int, ...], of_axis) -> jax.Array:
  """uint32[4] of the part of an array that a device has; of_axis: the mesh axes that split each axis.

  Block by block: compilers do not always fuse the hashes with their sums, and four times the largest array of a
  model would not fit beside it.
  """
  local = x.shape or (1,)
  offsets = [
    jax.lax.axis_index(axes) * size if axes else 0
    for axes, size in zip([*of_axis, *[()] * len(local)], local)
  ]
  whole = [*shape, *local[len(shape) :]]  # a further axis is never split
  rows, width = math.prod(local[:-1]), local[-1]
  x = x.reshape(rows, width)
  at_once = max(1, BLOCK // max(1, width))

  def block(first, count):
    low, high = _positions(first, count, local, whole, offsets)
    return _hashes(
      _bits(jax.lax.dynamic_slice_in_dim(x, first, count)).astype(jnp.uint32), low, high
    )

  total = jnp.zeros(LANES, jnp.uint32)
  if rows > at_once:
    total = jax.lax.fori_loop(
      0, rows // at_once, lambda i, sums: sums + block(i * at_once, at_once), total
    )
  rest = rows % at_once if rows > at_once else rows
  return total + block(rows - rest, rest) if rest and width else total


def _positions(first, count: int, local, whole, offsets) -> tuple[jax.Array, jax.Array | None]:
  """A pair of uint32 for each element of some rows, which no two elements of the array share.

  The first numbers the positions along as many of the last axes as 32 bits allow, the second those along the
  axes before; it is None where there are none.
  """
  split, inner = len(whole), 1
  while split and inner * whole[split - 1] <= 2**32:
    split -= 1
    inner *= whole[split]
  assert math.prod(whole[:split]) <= 2**32, whole
  row = jnp.uint32(first) + jnp.arange(count, dtype=jnp.uint32)
  numbers = [jnp.zeros(count, jnp.uint32), jnp.zeros(count, jnp.uint32)]
  stride = math.prod(local[:-1])
  for axis, size in enumerate(local[:-1]):
    stride //= size
    at = row // jnp.uint32(stride) % jnp.uint32(size) + jnp.uint32(offsets[axis])
    end = len(whole) if axis >= split else split
    numbers[axis < split] += at * jnp.uint32(math.prod(whole[axis + 1 : end]) % 2**32)
  column = jnp.arange(local[-1], dtype=jnp.uint32) + jnp.uint32(offsets[len(local) - 1])
  low = numbers[0][:, None] + column[None, :]
  return low, numbers[1][:, None] if split else None


def _hashes(words: jax.Array, low: jax.Array, high: jax.Array | None) -> jax.Array:
  sums = []
  for low_key, high_key in zip(LOW_KEYS, HIGH_KEYS, strict=True):
    key = _mix(low + jnp.uint32(low_key))
    if high is not None:
      key = _mix(key ^ _mix(high + jnp.uint32(high_key)))
    sums.append(jnp.sum(_mix(words ^ key), dtype=jnp.uint32))
  return jnp.stack(sums)


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of 32 bits in which each bit depends on each (xor-shift and odd multipliers, "lowbias32")."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def _kind(x: jax.Array) -> str:
  return f"{x.dtype.name}[{','.join(map(str, x.shape))}]"


def _hex(words) -> str:
  return "".join(f"{int(word):08x}" for word in words)
