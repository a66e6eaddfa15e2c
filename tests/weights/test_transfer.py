from concurrent import futures

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mlit_jax import mesh
from mlit_jax.weights import hf_files, table, transfer

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def test_casts_of_bfloat16_keep_every_bit():
  """All 65,536 of them, the subnormal ones included, there and back; NaN stays NaN."""
  every = np.arange(1 << 16, dtype=np.uint16).view(BFLOAT16)
  wide = np.zeros((1 << 8, 1 << 8), np.float32)
  table.fill(wide, every.reshape(wide.shape))
  wide = wide.reshape(-1)
  np.testing.assert_array_equal(wide.view(np.uint32) >> 16, every.view(np.uint16))
  back = np.asarray(transfer.cast(jnp.asarray(wide), BFLOAT16))
  nan = np.isnan(wide)
  np.testing.assert_array_equal(back.view(np.uint16)[~nan], every.view(np.uint16)[~nan])
  assert np.isnan(back.astype(np.float32)[nan]).all() and nan.sum() == 2 * 127


@pytest.mark.parametrize(
  "dtypes",
  [("bfloat16", "float32"), ("float32",) * 2, ("float16", "float32"), ("float32", "bfloat16")],
)
def test_axes_in_any_order_are_copied(dtypes):
  source, target = (BFLOAT16 if d == "bfloat16" else np.dtype(d) for d in dtypes)
  values = np.random.default_rng(0).standard_normal((5, 19, 33)).astype(source)
  for order in ((0, 1, 2), (2, 0, 1), (2, 1, 0), (1, 2, 0), (0, 2, 1)):
    view = values.transpose(order)[:, 1:]
    out = np.full(view.shape, np.nan, target)
    table.copy(out, view)
    np.testing.assert_array_equal(out, view.astype(target))
    for whole in (np.zeros(view.shape, target), np.zeros((*view.shape[:-1], 40), target)):
      out = whole[..., : view.shape[-1]]  # a piece of an axis too
      table.fill(out, view)
      np.testing.assert_array_equal(out, view.astype(target))


def test_float32_is_rounded_to_even_as_numpy_does():
  bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, np.uint32)
  ties = np.arange(0, 1 << 16, 7, np.uint32) << 16 | 0x8000
  wide = np.concatenate([bits, ties]).view(np.float32)
  wide = wide[~np.isnan(wide)]
  with np.errstate(over="ignore"):
    expected = wide.astype(BFLOAT16)
  np.testing.assert_array_equal(
    np.asarray(transfer.cast(jnp.asarray(wide), BFLOAT16)).view(np.uint16), expected.view(np.uint16)
  )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_is_not_finite_is_found(dtype):
  dtype = np.dtype(dtype) if dtype != "bfloat16" else BFLOAT16
  good = np.array([0.0, -1.5, float(ml_dtypes.finfo(dtype).max), 1e-45], dtype)
  assert transfer.is_finite(good)
  for bad in (np.nan, np.inf, -np.inf):
    assert not transfer.is_finite(np.append(good, np.array(bad, dtype)))


@pytest.mark.parametrize("spec", [(None, "fsdp", "tensor", None), (None, None, "tensor", "fsdp")])
@pytest.mark.parametrize("mixed", [False, True])
def test_experts_and_layers_of_mixed_dtypes_come_to_their_places(tmp_path, spec, mixed):
  """Two layers of four experts in files; experts whole on each shard, or spread over fsdp."""
  pattern = table.parse("F D -> D F")
  row = table.Row("gate_EDF", "l{layer}.e{expert}", pattern, (6, 8), (2, 4))
  values = np.random.default_rng(0).standard_normal((2, 4, 6, 8)).astype(BFLOAT16)
  tensors = {row.name(i): np.ascontiguousarray(values[i].T) for i in np.ndindex(2, 4)}
  if mixed:
    tensors[row.name((1, 2))] = tensors[row.name((1, 2))].astype(np.float32)
  layout = hf_files.plan_layout([(n, a.dtype.name, a.shape) for n, a in tensors.items()])
  ((file, header),) = layout.headers.items()
  with hf_files.open_shard(tmp_path / file, header) as write:
    for tensor in hf_files.parse_header(header, file):
      write(tensor, tensors[tensor.name])
  arrays = hf_files.map_tensors(tmp_path, layout)
  cut = NamedSharding(mesh.make_mesh(1, 2, 2, devices=jax.devices()[:4]), P(*spec))
  for sharding in (None, cut):
    told = []
    with futures.ThreadPoolExecutor(3) as pool:
      placed = transfer.place(arrays, row, sharding, jnp.float32, pool, told.append)
    np.testing.assert_array_equal(np.asarray(placed), values.astype(np.float32))
    assert sum(told) == transfer.bytes_to_read(arrays, row, sharding) > 0
    if sharding:
      assert placed.sharding == sharding
    for index in ((0, 0), (1, 2)):
      part = np.full((6, 8), np.nan, BFLOAT16)
      for where, found in transfer.on_host(transfer.take(placed, index, "bfloat16")):
        assert np.isnan(part[where]).all()  # replicas once
        part[where] = found
      np.testing.assert_array_equal(part.astype(np.float32), values[index].astype(np.float32))
