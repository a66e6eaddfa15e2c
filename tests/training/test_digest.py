"""The digest: one number for one content, wherever it lies; another for any other."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mlit_jax import mesh as meshes
from mlit_jax.training import digest
from mlit_jax.training.digest import differing, digests

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool", "float8_e4m3fn")  # fmt: skip


def reference(x: np.ndarray) -> str:
  """Written out once more, with 64 bits and one position after the other."""

  def mix(v):
    v = ((v ^ (v >> 16)) * 0x7FEB352D) % 2**32
    v = ((v ^ (v >> 15)) * 0x846CA68B) % 2**32
    return v ^ (v >> 16)

  words = np.frombuffer(x.tobytes(), {1: "u1", 2: "u2", 4: "u4"}[x.dtype.itemsize])
  sums = [
    sum(mix(int(word) ^ mix((i + key) % 2**32)) for i, word in enumerate(words)) % 2**32
    for key in digest.LOW_KEYS
  ]
  return f"{x.dtype.name}[{','.join(map(str, x.shape))}] " + "".join(f"{s:08x}" for s in sums)


def of(x) -> str:
  return digests({"x": jnp.asarray(x)})["x"]


def some(dtype: str, shape=(8, 2, 6)) -> np.ndarray:
  raw = np.random.default_rng(3).integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
  raw = raw % 2 if dtype == "bool" else raw
  return raw.view(np.dtype(dtype)).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_what_it_says_for_every_dtype(dtype):
  x = some(dtype)
  assert of(x) == reference(x)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (0, 3), (3, 1, 5), (2, 3, 1)])
def test_it_is_what_it_says_for_every_shape(shape):
  x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  assert of(x) == reference(x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_no_mesh_changes_it(sizes, dtype):
  mesh = meshes.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
  x = some(dtype, (8, 8, 6))
  specs = [P(), P("fsdp"), P(("data", "fsdp"), None, "tensor"), P("tensor", ("fsdp", "data"))]
  found = digests([jax.device_put(x, NamedSharding(mesh, spec)) for spec in specs])
  assert set(found.values()) == {reference(x)}


def test_it_is_the_same_in_the_memory_of_the_host():
  mesh = meshes.make_mesh(1, 4, 2)
  x = some("float32", (8, 8))
  there = NamedSharding(mesh, P("fsdp"), memory_kind=meshes.HOST_MEMORY)
  assert digests({"x": jax.device_put(x, there)})["x"] == reference(x)


@pytest.mark.parametrize("size", [1, 8, 20, 10**6])
def test_no_size_of_blocks_changes_it(monkeypatch, size):
  monkeypatch.setattr(digest, "BLOCK", size)
  digest._program.cache_clear()
  x = some("float32", (8, 5, 6))
  mesh = meshes.make_mesh(2, 4, 1)
  assert of(x) == reference(x)
  assert digests([jax.device_put(x, NamedSharding(mesh, P("fsdp")))]) == {"0": reference(x)}
  digest._program.cache_clear()


def test_every_single_bit_changes_it():
  x = some("float32", (4, 5))
  seen = {of(x)}
  for byte in range(x.nbytes):
    for bit in range(8):
      flipped = bytearray(x.tobytes())
      flipped[byte] ^= 1 << bit
      seen.add(of(np.frombuffer(bytes(flipped), np.float32).reshape(x.shape)))
  assert len(seen) == 8 * x.nbytes + 1


def test_every_exchange_of_two_elements_changes_it():
  """Also of two that differ in one bit only, such as x and -x: linear sums of words times odd numbers miss these."""
  x = np.arange(1, 25, dtype=np.float32)
  x[12:] = -x[:12]
  x = x.reshape(4, 6)
  seen = {of(x), of(x.T.reshape(x.shape)), of(x[::-1]), of(np.roll(x, 1))}
  for i in range(x.size):
    for j in range(i):
      swapped = x.copy()
      swapped.flat[[i, j]] = x.flat[[j, i]]
      seen.add(of(swapped))
  assert len(seen) == 4 + 24 * 23 // 2


def test_zeros_count_too():
  assert len({of(np.zeros(n, np.float32)).split()[1] for n in range(1, 9)}) == 8


def test_positions_beyond_32_bits_are_pairs_of_their_own():
  """[2**20, 2**14, 4] on four devices along its first axis: this part begins at 2**34 elements."""
  whole, local, offsets = (2**20, 2**14, 4), (2**18, 2**14, 4), (2**18, 0, 0)
  first = (
    2**14 * 3 - 1
  )  # the last row of the third of this part's stretch, and the first of the fourth
  low, high = digest._positions(first, 2, local, whole, offsets)
  at = [(2**18 + 2, 2**14 - 1), (2**18 + 3, 0)]
  flat = [[(a * 2**14 + b) * 4 + c for c in range(4)] for a, b in at]
  # The first axis alone is in `high`: 2**14 * 4 positions fit below it, and 2**20 times as many do not.
  assert (np.asarray(high, np.int64) * 2**16 + np.asarray(low, np.int64)).tolist() == flat


@pytest.mark.parametrize("dtype, most", [("float32", 2**20), ("bfloat16", 2**23 + 2**20)])
def test_its_memory_is_that_of_a_block(monkeypatch, dtype, most):
  """Of an array of 2**22 elements; narrow ones are copied once on a CPU."""
  monkeypatch.setattr(digest, "BLOCK", 2**14)
  digest._program.cache_clear()
  x = jax.ShapeDtypeStruct((2**10, 2**12), dtype)
  program = digest._program(None, P(), "", dtype == "bfloat16").lower(x).compile()
  digest._program.cache_clear()
  assert program.memory_analysis().temp_size_in_bytes < most


def test_what_differs_is_named():
  a, b = (np.full((2, 2), v, np.float32) for v in (1, 2))
  saved = digests({"params": {"a": jnp.asarray(a), "b": jnp.asarray(b)}, "step": jnp.int32(1)})
  assert differing(saved, saved) == []
  exchanged = digests({"params": {"a": jnp.asarray(b), "b": jnp.asarray(a)}, "step": jnp.int32(1)})
  assert differing(saved, exchanged) == ["params/a has other values", "params/b has other values"]
  other = digests({"params": {"a": jnp.asarray(a.astype(ml_dtypes.bfloat16)), "c": jnp.asarray(b)}})
  assert differing(saved, other, ("params",)) == [
    "params/a is bfloat16[2,2], not float32[2,2]",
    "params/b is missing",
    "params/c was not saved",
  ]
  assert "step is missing" in differing(saved, other)


def test_keys_and_wide_elements_have_one_too():
  key = jax.random.key(1)
  data = np.asarray(jax.random.key_data(key))
  assert of_key(key) == of(data).split()[1] and of_key(key) != of_key(jax.random.key(2))


def of_key(key) -> str:
  return digests({"x": key})["x"].split()[1]
