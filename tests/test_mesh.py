import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import mesh_utils
from jax.sharding import PartitionSpec as P

from mlit_jax import mesh as meshes
from mlit_jax.batch import Batch, empty_batch
from mlit_jax.errors import UserError
from mlit_jax.mesh import make_mesh


@pytest.fixture(scope="module", autouse=True)
def eight_devices():
  assert jax.device_count() == 8


@pytest.mark.parametrize(
  "sizes, shape",
  [
    (dict(), (1, 8, 1, 1, 1)),
    (dict(tensor=2), (1, 4, 1, 1, 2)),
    (dict(data=-1, fsdp=2, tensor=2), (2, 2, 1, 1, 2)),
    (dict(data=2, fsdp=4), (2, 4, 1, 1, 1)),
    (dict(data=1, fsdp=1, tensor=-1), (1, 1, 1, 1, 8)),
    (dict(data=8, fsdp=-1), (8, 1, 1, 1, 1)),
    (dict(expert=4), (1, 2, 4, 1, 1)),
    (dict(fsdp=2, expert=-1, tensor=2), (1, 2, 2, 1, 2)),
    (dict(context=4), (1, 2, 1, 4, 1)),
    (dict(fsdp=1, context=-1, tensor=2), (1, 1, 1, 4, 2)),
  ],
)
def test_mesh_sizes(sizes, shape):
  mesh = make_mesh(**sizes)
  assert tuple(mesh.shape.items()) == tuple(
    zip(("data", "fsdp", "expert", "context", "tensor"), shape, strict=True)
  )
  assert meshes.batch_shards(mesh) == shape[0] * shape[1] * shape[2]


@pytest.mark.parametrize(
  "sizes",
  [
    dict(tensor=3),
    dict(expert=3),
    dict(data=-1, fsdp=-1),
    dict(data=2, fsdp=2, tensor=1),
    dict(fsdp=16),
    dict(fsdp=0),
    dict(data=-2, fsdp=-1, tensor=-4),
    dict(data=-2, fsdp=-4),
  ],
)
def test_sizes_that_do_not_fit_are_refused(sizes):
  with pytest.raises(UserError) as e:
    make_mesh(**sizes)
  assert "does not fit" in str(e.value) and "mesh.fsdp" in str(e.value)


def test_some_devices_only():
  assert make_mesh(devices=jax.devices()[:1]).shape == dict.fromkeys(meshes.MESH_AXES, 1)


def test_rules():
  parts = ("fsdp", "context")
  assert meshes.spec(("embed", "mlp")) == P(parts, "tensor")
  assert meshes.spec(("layers", "embed", "kv_heads", "head_dim")) == P(None, parts, "tensor", None)
  rows = ("data", "fsdp", "expert")
  assert meshes.spec(("batch", "length", "width")) == P(rows, "context", None)
  assert meshes.spec(("expert", "embed", "mlp")) == P("expert", ("fsdp", "context"), "tensor")
  assert meshes.spec(("batch", "length")) == meshes.BATCH_SPEC
  with pytest.raises(KeyError):
    meshes.spec(("embed", "mlpp"))


@dataclasses.dataclass(frozen=True)
class Spec:
  shape: tuple
  axes: tuple


def test_parameters_are_cut_where_the_mesh_divides_them_and_whole_where_not():
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  specs = {
    "attn": {"k_DKH": Spec((16, 4, 8), ("embed", "kv_heads", "head_dim"))},
    "one": Spec((16, 1, 8), ("embed", "kv_heads", "head_dim")),  # a single kv head over tensor=2
    "odd": Spec((15, 6), ("embed", "mlp")),
  }
  shardings = meshes.param_shardings(specs, mesh)
  parts = ("fsdp", "context")
  assert shardings["attn"]["k_DKH"].spec == P(parts, "tensor", None)
  assert shardings["one"].spec == P(parts, None, None)
  assert shardings["odd"].spec == P(None, "tensor")
  assert shardings["odd"].shard_shape((15, 6)) == (15, 3)


class ProcessView:
  """A NamedSharding as process `rank` of several sees it, each with its part of the devices in a row."""

  rank, processes = 0, 1

  def __init__(self, mesh, spec):
    self.whole = jax.sharding.NamedSharding(mesh, spec)

  def addressable_devices_indices_map(self, shape):
    mine = np.array_split(np.array(jax.devices()), self.processes)[self.rank]
    return {d: i for d, i in self.whole.devices_indices_map(shape).items() if d in set(mine)}


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize(
  "sizes",
  [
    dict(),
    dict(data=2, fsdp=4),
    dict(fsdp=4, tensor=2),
    dict(data=2, fsdp=1, tensor=4),
    dict(fsdp=2, expert=2, tensor=2),
    dict(fsdp=2, context=4),
  ],
)
def test_rows_of_all_processes_are_the_batch_in_order(monkeypatch, sizes, processes):
  mesh = make_mesh(**sizes)
  shards = meshes.batch_shards(mesh)
  monkeypatch.setattr(meshes, "NamedSharding", ProcessView)
  monkeypatch.setattr(ProcessView, "processes", processes)
  parts = []
  for rank in range(processes):
    monkeypatch.setattr(ProcessView, "rank", rank)
    parts.append(meshes.process_rows(mesh, 24).tolist())
  # Processes of one shard (tensor across processes) bring the same rows.
  distinct = [part for i, part in enumerate(parts) if i == 0 or part != parts[i - 1]]
  assert [row for part in distinct for row in part] == list(range(24))
  assert len(distinct) == min(processes, shards)


def made_batch(rows, length):
  batch = empty_batch(rows, length)
  for k, field in enumerate(dataclasses.fields(Batch)):
    getattr(batch, field.name)[:] = np.arange(rows * length).reshape(rows, length) + 1000 * k
  return batch


@pytest.mark.parametrize("sizes, columns", [(dict(tensor=2), 6), (dict(context=2), 3)])
def test_a_batch_comes_whole_to_the_mesh_with_its_tokens_in_place(sizes, columns):
  mesh = make_mesh(data=2, fsdp=2, **sizes)
  batch = made_batch(8, 6)
  on_mesh = meshes.put_batch(batch, mesh, 8)
  for field in dataclasses.fields(Batch):
    there, here = getattr(on_mesh, field.name), getattr(batch, field.name)
    assert there.dtype == here.dtype and there.sharding.spec == meshes.BATCH_SPEC
    np.testing.assert_array_equal(there, here)
    for shard in there.addressable_shards:
      assert shard.data.shape == (2, columns)
      np.testing.assert_array_equal(shard.data, here[shard.index])


def test_constrain_follows_the_rules_and_is_nothing_without_a_mesh():
  x = jnp.arange(8.0 * 4 * 6).reshape(8, 4, 6)
  assert meshes.constrain(x, "batch", "length", "width") is x
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  with jax.set_mesh(mesh):
    activations = jax.jit(lambda x: meshes.constrain(x, "batch", "length", "mlp"))(x)
    unfit = jax.jit(lambda x: meshes.constrain(x, "batch", "length", "mlp"))(x[:, :, :5])
  assert activations.sharding.is_equivalent_to(
    jax.NamedSharding(mesh, P(("data", "fsdp"), None, "tensor")), 3
  )
  assert unfit.sharding.is_equivalent_to(
    jax.NamedSharding(mesh, P(("data", "fsdp"), None, None)), 3
  )
  np.testing.assert_array_equal(activations, x)


def test_gather_undoes_fsdp_and_keeps_tensor():
  mesh = make_mesh(fsdp=4, tensor=2)
  sharding = jax.NamedSharding(mesh, meshes.spec(("embed", "mlp")))
  w_DF = jax.device_put(jnp.arange(8.0 * 6).reshape(8, 6), sharding)
  with jax.set_mesh(mesh):
    gathered = jax.jit(lambda w: meshes.gather(w, ("embed", "mlp")))(w_DF)
  assert gathered.sharding.shard_shape((8, 6)) == (8, 3)
  np.testing.assert_array_equal(gathered, w_DF)


def test_a_process_whose_rows_lie_apart(monkeypatch):
  """As jax.make_mesh lays out a TPU slice: a host's 2 x 2 chips in a torus of 2 x 4."""

  class Torus(ProcessView):
    def addressable_devices_indices_map(self, shape):
      mine = {jax.devices()[i] for i in (0, 1, 4, 5)}
      return {d: i for d, i in self.whole.devices_indices_map(shape).items() if d in mine}

  mesh, batch = make_mesh(), made_batch(8, 5)
  monkeypatch.setattr(meshes, "NamedSharding", Torus)
  mine = meshes.process_rows(mesh, 8)
  assert mine.tolist() == [0, 1, 4, 5]
  shards = {}

  def make(shape, sharding, shard):
    for device, index in sharding.addressable_devices_indices_map(shape).items():
      shards[device.id] = shard(index)

  monkeypatch.setattr(jax, "make_array_from_callback", make)
  meshes.put_batch(batch.tokens[mine], mesh, 8)
  for device, rows in shards.items():
    np.testing.assert_array_equal(rows, batch.tokens[device : device + 1])


def tpu_slices(slices: int, side: int) -> list:
  """What meshes go by of the devices of v5e slices of side x side chips."""
  return [
    types.SimpleNamespace(
      id=s * 1000 + side * y + x, process_index=0, platform="tpu", device_kind="TPU v5 lite", slice_index=s,
      coords=(x, y, 0), core_on_chip=0,
    )
    for s in range(slices) for y in range(side) for x in range(side)
  ]  # fmt: skip


@pytest.mark.parametrize(
  "shape, by_first_axis",
  [
    ((2, 16, 1, 1, 1), [{0}, {1}]),
    ((4, 4, 1, 1, 2), [{0}, {0}, {1}, {1}]),
    ((1, 32, 1, 1, 1), [{0, 1}]),
    ((1, 8, 2, 1, 2), [{0, 1}]),
    ((2, 4, 1, 4, 1), [{0}, {1}]),
  ],
)
def test_over_slices_goes_data_or_else_fsdp(shape, by_first_axis):
  devices = meshes._arrange(shape, tpu_slices(2, 4))
  assert devices.shape == shape and len({d.id for d in devices.flat}) == 32
  slices = np.vectorize(lambda d: d.slice_index)(devices)
  assert [set(part.flat) for part in slices] == by_first_axis
  # Experts, rows and tensors are never cut by the slow network.
  assert (slices == slices[:, :, :1, :1, :1]).all()


def test_other_axes_do_not_go_over_slices():
  with pytest.raises(UserError) as e:
    meshes._arrange((1, 1, 1, 1, 32), tpu_slices(2, 4))
  assert "over 2 slices" in str(e.value) and "mesh.data must be a multiple of 2" in str(e.value)


def test_an_axis_of_the_torus_is_split_where_it_must_be():
  """A cube of 4 x 4 x 4 has no axis of 32."""
  cube = [
    types.SimpleNamespace(
      id=16 * z + 4 * y + x, process_index=0, platform="tpu", device_kind="TPU v5", coords=(x, y, z), core_on_chip=0
    )
    for z in range(4) for y in range(4) for x in range(4)
  ]  # fmt: skip
  with pytest.raises(NotImplementedError):
    mesh_utils.create_device_mesh((1, 32, 1, 1, 2), cube)
  devices = meshes._arrange((1, 32, 1, 1, 2), cube)
  assert devices.shape == (1, 32, 1, 1, 2) and len({d.id for d in devices.flat}) == 64


@pytest.mark.parametrize("sizes", [(2, 8, 1, 1, 1), (2, 2, 1, 1, 4), (4, 4, 1, 1, 1)])
def test_copies_lie_over_hosts_of_gpus(sizes):
  """Two hosts of eight: what is split over fsdp and tensor stays within one."""
  gpus = [
    types.SimpleNamespace(id=i, process_index=i // 8, platform="gpu", device_kind="NVIDIA H100", slice_index=i // 8)
    for i in range(16)
  ]  # fmt: skip
  hosts = np.vectorize(lambda d: d.process_index)(meshes._arrange(sizes, gpus))
  assert [set(copy.flat) for copy in hosts] == [{i * 2 // sizes[0]} for i in range(sizes[0])]
