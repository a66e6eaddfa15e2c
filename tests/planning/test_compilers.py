"""Steps compiled by the compilers of accelerators that are not here; skipped where those are not installed."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from mlit_jax.config import load_config
from mlit_jax.errors import UserError
from mlit_jax.mesh import MESH_AXES, make_mesh
from mlit_jax.model.config import from_hf, from_scratch
from mlit_jax.model.families import FAMILIES
from mlit_jax.planning import compiling, planner, topologies
from mlit_jax.planning.topologies import open_topology
from tests import families
from tests.commands import ROOT

tpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
gpu = pytest.mark.skipif(not topologies._has_cuda_plugin(), reason="needs JAX's CUDA plugin")
TINY = dict(d_model=64, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=128, tied=True)
WIDE = dict(d_model=4096, num_layers=24, num_heads=32, num_kv_heads=8, d_ff=14336, tied=False)


def plan(name, sizes=TINY, vocab=512, **settings):
  lines = [f"--config.{key.replace('__', '.')}={value}" for key, value in settings.items()]
  c = load_config(
    str(ROOT / "configs" / "quickstart.py"), ["--config.model.dtype=bfloat16", *lines]
  )
  return planner.make_plan(c, from_scratch(sizes, vocab), open_topology(name), rows_per_device=1)


@tpu
def test_a_tpu_slice():
  f = plan("v5e:2x2", batch__max_length=256)
  m = f["memory"]
  assert f["devices"] == 4 and m["fits"] is True and m["usable"] == int(15.75 * 2**30)
  # A TPU pads small arrays to its tiles.
  assert m["arguments"] >= m["params"] + m["optimizer"] + m["batch"]
  gathers = next(c for c in f["collectives"] if c["kind"] == "all-gather")
  assert gathers["near_bytes"] > 0 and gathers["far_bytes"] == 0
  assert 0 < f["estimate"]["overlapped"]["step_seconds"] < f["estimate"]["serial"]["step_seconds"]


@tpu
def test_two_slices_keep_a_copy_each():
  f = plan("2*v5e:2x2", batch__max_length=256, mesh__data=2)
  assert f["mesh"] == {"data": 2, "fsdp": 4, "expert": 1, "context": 1, "tensor": 1}
  far = {c["kind"] for c in f["collectives"] if c["far_bytes"]}
  assert far == {"all-reduce"}, f["collectives"]
  assert not f["advice"]


@tpu
def test_what_a_tpu_cannot_hold_is_refused_with_a_figure():
  f = plan("v5e:2x2", WIDE, 128_256, batch__max_length=2048)
  m = f["memory"]
  assert m["fits"] is False and m["peak"] > m["usable"] and f["collectives"] is None
  assert f["estimate"] is None


@tpu
@pytest.mark.parametrize("name", ["v5p:2x2x2", "v6e:2x4", "tpu7x:2x2x1", "v5e:1x1"])
def test_topologies_open(name):
  found = open_topology(name)
  sides = name.partition(":")[2].split("x")
  assert len(found.devices) == np.prod([int(n) for n in sides]) * (
    2 if name.startswith("tpu7x") else 1
  )
  assert make_mesh(devices=found.devices).size == len(found.devices)


@tpu
def test_a_shape_that_no_tpu_has():
  with pytest.raises(UserError, match="knows no such topology"):
    open_topology("v5e:3x5")


@tpu
@pytest.mark.parametrize(
  "sizes, by_slice",
  [
    (dict(data=2), [[0], [1]]),
    (dict(data=4, tensor=2), [[0], [0], [1], [1]]),
    (dict(fsdp=-1), [[0, 1]]),
  ],
)
def test_copies_lie_over_slices(sizes, by_slice):
  mesh = make_mesh(**sizes, devices=open_topology("2*v5e:4x4").devices)
  slices = np.vectorize(lambda d: d.slice_index)(mesh.devices)
  assert [sorted(set(part.flat)) for part in slices] == by_slice
  # What is split over `tensor` stays within a slice in any case.
  assert (slices == slices[..., :1]).all()


@tpu
def test_a_mesh_that_cannot_lie_over_slices_is_refused():
  with pytest.raises(UserError, match="multiple of 2"):
    make_mesh(fsdp=1, tensor=-1, devices=open_topology("2*v5e:4x4").devices)


@tpu
def test_a_torus_is_split_where_it_must_be():
  mesh = make_mesh(fsdp=128, tensor=4, devices=open_topology("v5p:8x8x8").devices)
  assert dict(mesh.shape) == dict(zip(MESH_AXES, (1, 128, 1, 1, 4)))
  assert len({d.id for d in mesh.devices.flat}) == 512


@gpu
@pytest.mark.parametrize(
  "name",
  ["h100:8", *(pytest.param(n, marks=pytest.mark.slow) for n in ("h200:8", "a100:8"))],
)
def test_gpus_of_one_host(name):
  f = plan(name, batch__max_length=256)
  m = f["memory"]
  assert f["devices"] == 8 and m["fits"] is True
  assert m["arguments"] == m["params"] + m["optimizer"] + m["batch"]
  kinds = {c["kind"]: c for c in f["collectives"]}
  # bfloat16 weights of both layers forward and backward, and the tied table for input and output.
  layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
  assert kinds["all-gather"]["payload_bytes"] >= 2 * (2 * 2 * layer + 2 * 64 * 512)
  assert all(c["far_bytes"] == 0 for c in f["collectives"])


@gpu
def test_hosts_of_eight():
  f = plan("h100:16", batch__max_length=64)
  assert any(c["far_bytes"] for c in f["collectives"]) and any(
    "mesh.data=2" in a for a in f["advice"]
  )


@gpu
def test_a_gpu_says_nothing_so_the_budget_does():
  f = plan("h100:1", WIDE, 128_256, batch__max_length=256)
  m = f["memory"]
  assert m["fits"] is False and m["peak"] > m["usable"] and f["collectives"] is not None


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", [pytest.param("v5e:2x2", marks=tpu), pytest.param("h100:8", marks=gpu)]
)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family(family, name):
  cfg = from_hf(families.keys_of(families.one_of(family), families.IDS))
  c = load_config(
    str(ROOT / "configs" / "quickstart.py"),
    ["--config.model.dtype=bfloat16", "--config.batch.max_length=128"],
  )
  f = planner.make_plan(c, cfg, open_topology(name), rows_per_device=1)
  assert f["memory"]["fits"] is True and f["unknown_loops"] == 0 and f["collectives"]
  assert f["estimate"]["serial"]["step_seconds"] > 0


# Layers small beside all of them, so that a state that came whole would show.
DEEP = dict(d_model=256, num_layers=16, num_heads=4, num_kv_heads=2, d_ff=1024, tied=True)


@tpu
def test_a_tpu_tells_the_hosts_memory_apart():
  here, there = (
    plan("v5e:2x2", DEEP, batch__max_length=256, optimizer__offload=offload)["memory"]
    for offload in (False, True)
  )
  # Nothing was taken off by arithmetic: it is the compiler that does not count what rests in the host's memory.
  assert there["host"] == here["optimizer"] - 4
  # The rest is padding of small arrays to a TPU's tiles, far less than the state.
  assert 0 <= there["arguments"] - (there["params"] + there["batch"]) < there["host"] / 8
  assert here["arguments"] - there["arguments"] >= there["host"]
  assert there["peak"] < here["peak"]
  # What comes of it to the device is a few layers, coming and going.
  assert there["temporaries"] - here["temporaries"] < there["host"] / 3


@gpu
def test_what_a_gpus_compiler_does_not_tell_is_reckoned():
  here, there = (
    plan("h100:8", DEEP, batch__max_length=256, optimizer__offload=offload)
    for offload in (False, True)
  )
  a, b = here["memory"], there["memory"]
  assert b["host"] == a["optimizer"] - 4
  assert b["arguments"] == b["params"] + b["optimizer"] + b["batch"]
  # A layer that comes, and a layer that goes.
  assert 2 * b["host"] / 20 < b["peak"] - (a["peak"] - b["host"]) < 2 * b["host"] / 10
  assert any("by arithmetic" in line for line in there["advice"])
  assert there["estimate"]["host_seconds"] > 0 and here["estimate"]["host_seconds"] == 0


@tpu
def test_a_tpus_memory_is_what_is_allocated():
  """A large array used twice: `memory_analysis` counts it three times, the compiler accepts what has room for two."""
  devices = open_topology("v5e:1x1").devices
  x, y = (
    jax.ShapeDtypeStruct((1024, n), jnp.bfloat16, sharding=SingleDeviceSharding(devices[0]))
    for n in (4096, 6 * 2**16)
  )

  def run(x, y):
    def add(i, total):
      return total + jnp.matmul(x.T, y * i.astype(y.dtype), preferred_element_type=jnp.float32)

    found = jax.lax.fori_loop(0, 4, add, jnp.zeros((4096, 6 * 2**16)))
    return jnp.sin(found).reshape(16, 256, -1).sum(0)

  program, allocated = compiling._compile(jax.jit(run).lower(x, y), "tpu")
  assert 12 * 2**30 < allocated < 15.75 * 2**30 < program.memory_analysis().temp_size_in_bytes
