"""The mesh, and the one table that says which logical axis lies on which mesh axis."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mlit_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")

RULES = {
  "batch": ("data", "fsdp", "expert"),
  "embed": ("fsdp", "context"),
  "heads": "tensor",
  "attended_heads": ("tensor", "context"),  # within attention, which sees whole rows
  "kv_heads": "tensor",
  "mlp": "tensor",
  "expert": "expert",
  "router": None,  # its scores, one per expert
  "vocab": "tensor",
  "layer_input": None,  # the width of what each layer gets of a token besides the stream
  "layer_table": ("fsdp", "context"),  # the same, in the table it is looked up in
  "head_dim": None,
  "layers": None,
  "length": "context",
  "slots": None,  # of the past that decoding keeps
  "width": None,  # the model width of activations; "embed" is that of weights
}

# Of a host, as JAX names it: pages that stay where they are, so that devices copy from and to them.
HOST_MEMORY = "pinned_host"

BATCH_SPEC = P(RULES["batch"], RULES["length"])


def make_mesh(
  data: int = 1,
  fsdp: int = -1,
  tensor: int = 1,
  expert: int = 1,
  context: int = 1,
  devices=None,
) -> Mesh:
  """Mesh over MESH_AXES; at most one size may be -1: what is left of the devices.

  Of several TPU slices, `data` or else `fsdp` goes over the slow network between them, as a whole multiple
  of their number; all else stays inside a slice.
  """
  devices = jax.devices() if devices is None else devices
  sizes = {"data": data, "fsdp": fsdp, "expert": expert, "context": context, "tensor": tensor}
  check_sizes(**sizes)
  free = [name for name, size in sizes.items() if size == -1]
  known = int(np.prod([size for size in sizes.values() if size != -1]))
  if len(devices) % known or (not free and known != len(devices)):
    raise UserError(
      f"mesh {sizes} does not fit {len(devices)} devices. "
      "The product of mesh.data, mesh.fsdp, mesh.expert, mesh.context and mesh.tensor must be their number; "
      "one of them may be -1."
    )
  if free:
    sizes[free[0]] = len(devices) // known
  shape = tuple(sizes[axis] for axis in MESH_AXES)
  return Mesh(_arrange(shape, devices), MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def check_sizes(**sizes: int) -> None:
  """Refuse sizes that fit no number of devices."""
  if list(sizes.values()).count(-1) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
    raise UserError(
      f"mesh {sizes} does not fit any number of devices. Each of mesh.data, mesh.fsdp, mesh.expert, mesh.context and "
      "mesh.tensor must be 1 or more; one of them may be -1: all devices that are left."
    )


def _arrange(shape: tuple[int, ...], devices) -> np.ndarray:
  """The devices in that shape, near ones along the last axes and within a slice."""
  slices = len({getattr(d, "slice_index", None) for d in devices})
  try:
    if slices > 1 and devices[0].platform == "tpu":
      outside = _over_slices(shape, slices)
      inside = tuple(size // out for size, out in zip(shape, outside, strict=True))
      return _split_if_need_be(mesh_utils.create_hybrid_device_mesh, inside, outside, devices)
    return _split_if_need_be(mesh_utils.create_device_mesh, shape, devices)
  except (ValueError, NotImplementedError, AssertionError) as e:
    raise UserError(
      f"mesh {dict(zip(MESH_AXES, shape, strict=True))} cannot be laid on these {len(devices)} "
      f"{devices[0].device_kind} devices: {e}. Choose other sizes of mesh.data, mesh.fsdp, mesh.expert, "
      "mesh.context and mesh.tensor."
    ) from e


def _over_slices(shape: tuple[int, ...], slices: int) -> tuple[int, ...]:
  """How often each axis goes over the slices: data=4, two slices -> (2, 1, 1, 1, 1)."""
  for at in (MESH_AXES.index("data"), MESH_AXES.index("fsdp")):
    if shape[at] % slices == 0:
      return tuple(slices if i == at else 1 for i in range(len(shape)))
  raise UserError(
    f"mesh {dict(zip(MESH_AXES, shape, strict=True))} cannot be laid over {slices} slices: mesh.data must be a "
    f"multiple of {slices} (replicas over slices), or else mesh.fsdp"
  )


def _split_if_need_be(make: Callable, *args) -> np.ndarray:
  """A torus such as 8 x 8 x 8 has no axis of 128: then one of its axes is split between two of ours."""
  try:
    return make(*args)
  except NotImplementedError:
    return make(*args, allow_split_physical_axes=True)


def spec(axes: tuple[str, ...]) -> P:
  """("embed", "mlp") -> P(("fsdp", "context"), "tensor"); a KeyError is an axis without a rule."""
  return P(*(RULES[axis] for axis in axes))


def param_shardings(specs, mesh: Mesh):
  """Nested dict of NamedSharding for a nested dict of ParamSpec.

  An axis that the mesh does not divide (4 kv heads over tensor=8) is replicated.
  """
  return jax.tree.map(
    lambda s: NamedSharding(mesh, _fitting(s.axes, s.shape, mesh)),
    specs,
    is_leaf=lambda s: hasattr(s, "axes"),
  )


def in_host(shardings):
  """The same, of arrays that rest in the memory of the devices' hosts."""
  return jax.tree.map(lambda s: s.with_memory_kind(HOST_MEMORY), shardings)


def memory_kinds(mesh: Mesh) -> set[str]:
  """Where arrays can rest, as JAX names it; nothing for GPUs that are only described, which do not tell."""
  return {memory.kind for memory in mesh.local_devices[0].addressable_memories()}


def platform(mesh: Mesh) -> str:
  """ "cpu", "gpu" or "tpu": of the devices themselves, which need not be here."""
  return mesh.devices.flat[0].platform


def batch_shards(mesh: Mesh) -> int:
  """Over how many shards the rows of a batch are spread."""
  return _size(RULES["batch"], mesh)


def process_rows(mesh: Mesh, rows: int) -> np.ndarray:
  """Which rows of a global batch this process must bring, in order.

  Often one stretch, but not on a TPU slice: there `jax.make_mesh` orders devices by the torus, and a
  host's 2 x 2 chips of a 4 x 4 slice hold rows 0, 1, 4 and 5.
  """
  sharding = NamedSharding(mesh, P(RULES["batch"], None))
  indices = sharding.addressable_devices_indices_map((rows, 1)).values()
  return np.unique(np.concatenate([np.arange(*i[0].indices(rows)) for i in indices]))


def put_batch(batch, mesh: Mesh, rows: int):
  """A batch of numpy arrays with this process's rows becomes global arrays on the mesh."""
  sharding = NamedSharding(mesh, BATCH_SPEC)
  mine = process_rows(mesh, rows)

  def put(x):
    def shard(index):
      start, stop, _ = index[0].indices(rows)
      first = np.searchsorted(mine, start)
      return x[first : first + stop - start, index[1]]

    return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, shard)

  return jax.tree.map(put, batch)


def spread(axes: tuple[str, ...], shape: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
  """Of each axis of an array, the mesh axes it is cut along by the rules; () where there is no mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return ((),) * len(axes)
  cuts = map(_names, _fitting(axes, shape, mesh))
  return tuple(tuple(name for name in cut if mesh.shape[name] > 1) for cut in cuts)


def shards(names: tuple[str, ...]) -> int:
  """Into how many parts these axes of the mesh that is set cut an array."""
  return _size(names, jax.sharding.get_abstract_mesh())


def is_one_device() -> bool:
  """Whether no mesh is set, or one of a single device."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.empty or mesh.size == 1


def constrain(x: jax.Array, *axes: str) -> jax.Array:
  """Keep activation `x` on the mesh as the rules say; nothing where no mesh is set."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, _fitting(axes, x.shape, mesh))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(w: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """The FSDP gather of a weight that is about to be used, already in the compute dtype.

  Its gradient goes where the weight came from. JAX's own derivative of a constraint is the same
  constraint: the gradient would be summed whole on every device.
  """
  return constrain(w, *("width" if axis == "embed" else axis for axis in axes))


def _gather_forward(w, axes):
  return gather(w, axes), None


def _gather_backward(axes, _, g):
  return (constrain(g, *axes),)


gather.defvjp(_gather_forward, _gather_backward)


def on_each(run: Callable, in_specs, out_specs) -> Callable:
  """`run` as every device does it for its part of the arguments; `run` itself where there is one device."""
  if is_one_device():
    return run
  return jax.shard_map(run, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def by_row(run: Callable, x: jax.Array):
  """`run(x_BT...)` by every device for its own tokens alone, where XLA would bring all together."""
  if is_one_device():
    return run(x)
  tokens = _fitting(("batch", "length"), x.shape[:2], jax.sharding.get_abstract_mesh())
  return jax.shard_map(run, in_specs=tokens, out_specs=tokens)(x)


def by_head(run: Callable, q_BTNH, k_BSKH, v_BSKH, rows, window, slopes_N=None) -> jax.Array:
  """`run` of attention, o_BTNH, by every device for its rows and query heads and the kv heads that those read.

  Where `context` cuts rows, its devices exchange tokens for heads before and after, so that each sees whole rows
  (Jacobs et al. 2023, DeepSpeed-Ulysses). Heads that cannot be dealt out so stay, with the queries of the device's
  part of a row, and it gathers that row's keys and values (Llama 3, 2024): see row_parts.

  rows: a tree of arrays [B, ...], whole in both cases; window: the same for all. Last `run` gets where in the
  row its queries begin.
  """
  mesh = jax.sharding.get_abstract_mesh()
  batch, length = _fitting(("batch", "length"), q_BTNH.shape[:2], mesh)
  heads, kv_heads = (_head_axes(x.shape[2], mesh.shape) for x in (q_BTNH, k_BSKH))
  stays = length if is_cut(q_BTNH.shape[1], q_BTNH.shape[2]) else None
  num_groups = q_BTNH.shape[2] // k_BSKH.shape[2]

  def here(q, k, v, rows, window, slopes_N):
    if of_kv[1]:  # gathered here, as the gradient is then scattered, not summed whole
      k, v = (jax.lax.all_gather(x, length, axis=1, tiled=True) for x in (k, v))
    if heads != kv_heads:  # fewer kv heads than devices: each takes those its queries read
      first = _index(heads) * q.shape[2]
      first_kv = _index(kv_heads) * k.shape[2]
      if num_groups % q.shape[2] and q.shape[2] % num_groups:
        read = (first + np.arange(q.shape[2])) // num_groups - first_kv
        k, v = (jnp.take(x, read, axis=2) for x in (k, v))
      else:
        start, size = first // num_groups - first_kv, max(1, q.shape[2] // num_groups)
        k, v = (jax.lax.dynamic_slice_in_dim(x, start, size, axis=2) for x in (k, v))
    start = jax.lax.axis_index(stays) * q.shape[1] if stays else 0
    return run(q, k, v, rows, window, slopes_N, start)

  of_q = P(batch, stays, heads)
  of_kv = P(batch, length if stays or heads != kv_heads else None, kv_heads)
  in_specs = (of_q, of_kv, of_kv, P(batch), P(), P(heads))
  spread = jax.shard_map(here, in_specs=in_specs, out_specs=of_q, check_vma=False)
  return spread(q_BTNH, k_BSKH, v_BSKH, rows, window, slopes_N)


def row_parts(num_heads: int, sizes: Mapping[str, int]) -> int:
  """Into how many parts the queries of a row are cut within attention, on a mesh of these sizes.

  1 where so many heads can be dealt out over all that share the row, else what `context` cuts it into.
  """
  context = RULES["length"]
  return 1 if context in _head_axes(num_heads, sizes) else sizes[context]


def is_cut(length: int, num_heads: int) -> bool:
  """Whether each device keeps a part of the queries of a row on the mesh that is set."""
  mesh = jax.sharding.get_abstract_mesh()
  parts = row_parts(num_heads, mesh.shape)
  return parts > 1 and length % parts == 0


def _head_axes(num_heads: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
  """Over which axes so many heads are spread within attention."""
  names, size = (), 1
  for name in RULES["attended_heads"]:
    if num_heads % (size * sizes[name]):
      break
    names, size = (*names, name), size * sizes[name]
  return names


def _index(names: tuple[str, ...]):
  return jax.lax.axis_index(names) if names else 0


def by_expert(run: Callable, tokens: tuple, weights: tuple, axes: tuple) -> jax.Array:
  """Sum over all experts of `run(*tokens, *weights, first)`, which runs those from `first` on alone.

  tokens: arrays [B, T, ...]; the result is one like the first of them. weights: [E, ...], with their axes.
  Each device brings its rows to all that lie along `expert` with it, and runs its experts on theirs:
  E / expert of them, whole along `embed`. What a row got from each is added up where the row lies.
  """
  if is_one_device():
    return run(*tokens, *weights, 0)
  mesh = jax.sharding.get_abstract_mesh()
  rows, length = _fitting(("batch", "length"), tokens[0].shape[:2], mesh)
  specs = tuple(_fitting(names, w.shape, mesh) for names, w in zip(axes, weights, strict=True))
  embed, mlp, expert = (
    name if _size(name, mesh) > 1 and any(name in spec for spec in specs) else None
    for name in (RULES["embed"], RULES["mlp"], RULES["expert"])
  )

  def whole(w, spec):
    if embed is None or embed not in spec:
      return w
    return jax.lax.all_gather(w, embed, axis=spec.index(embed), tiled=True)

  def here(tokens, weights):
    weights = [whole(w, spec) for w, spec in zip(weights, specs, strict=True)]
    if expert and rows:
      tokens = [jax.lax.all_gather(x, expert, axis=0, tiled=True) for x in tokens]
    first = jax.lax.axis_index(expert) * len(weights[0]) if expert else 0
    out = run(*tokens, *weights, first)
    if mlp:
      out = jax.lax.psum(out, mlp)
    if expert and rows:
      return jax.lax.psum_scatter(out, expert, scatter_dimension=0, tiled=True)
    return jax.lax.psum(out, expert) if expert else out

  of_tokens = P(rows, length)
  spread = jax.shard_map(here, in_specs=(of_tokens, specs), out_specs=of_tokens, check_vma=False)
  return spread(tokens, weights)


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """An entry of a spec or of the rules, which may be one name or none."""
  return (entry,) if isinstance(entry, str) else entry or ()


def _size(entry, mesh) -> int:
  """Into how many parts it cuts."""
  return int(np.prod([mesh.shape[name] for name in _names(entry)]))


def _fitting(axes, shape, mesh) -> P:
  """As the rules say, but whole along an axis that the mesh does not divide."""
  return P(
    *(
      RULES[axis] if size % _size(RULES[axis], mesh) == 0 else None
      for axis, size in zip(axes, shape, strict=True)
    )
  )
