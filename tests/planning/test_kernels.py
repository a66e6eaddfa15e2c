"""Attention kernels compiled for accelerators that are not here; skipped where their compilers are not installed."""

import importlib.util
from contextlib import ExitStack

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mlit_jax.attention import cudnn, mosaic_gpu
from mlit_jax.attention.choice import BACKENDS, Needs, attend
from mlit_jax.attention.scoring import Rows, Scoring, is_saved
from mlit_jax.mesh import make_mesh
from mlit_jax.planning import topologies

tpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
gpu = pytest.mark.skipif(not topologies._has_cuda_plugin(), reason="needs JAX's CUDA plugin")
SIZES = [
  (64, None, (0,)),
  pytest.param(80, 30.0, (0,), marks=pytest.mark.slow),
  pytest.param(96, None, (0, 512), marks=pytest.mark.slow),
  pytest.param(128, 50.0, (512,), marks=pytest.mark.slow),
  (256, 50.0, (0, 512)),
]


@pytest.fixture(autouse=True)
def _rank_promotion():
  with jax.numpy_rank_promotion("allow"):  # tokamax relies on it
    yield


def compiled(topology, name, head_dim, softcap=None, windows=(0,), length=1024, policy=None):
  """A sum of one layer's attention and its gradients, rows over all devices."""
  if name in ("splash", "mosaic_gpu"):
    pytest.importorskip("tokamax")
  there = topologies.open_topology(topology)
  mesh = make_mesh(devices=there.devices)
  platform = "gpu" if there.platform == "cuda" else there.platform
  capability = "9.0" if platform == "gpu" else ""
  scoring, dtype = Scoring(head_dim**-0.5, softcap), jnp.dtype("bfloat16")
  needs = Needs(platform, dtype, length, 4, 2, head_dim, scoring, windows, False, 64, capability)
  backend = BACKENDS[name]
  assert not backend.refusal(needs)

  def loss(q, k, v, rows, window):
    o = attend(backend, q, k, v, backend.prepare(rows, needs), window, needs)
    return jnp.sum(jnp.sin(o.astype(jnp.float32)))

  def like(*shape, dtype=dtype):
    spec = P(("data", "fsdp")) if shape else P()
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

  B = len(there.devices)
  of_rows = Rows(*(like(B, length, dtype=jnp.int32) for _ in range(2)))
  q, k = like(B, length, 4, head_dim), like(B, length, 2, head_dim)
  if policy is not None:
    loss = jax.checkpoint(loss, policy=policy)
  grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
  with ExitStack() as stack:
    stack.enter_context(jax.set_mesh(mesh))
    if platform == "gpu":
      stack.enter_context(cudnn.ahead_of_time(capability))
      stack.enter_context(mosaic_gpu.ahead_of_time(capability))
    traced = grad.trace(q, k, k, of_rows, like(dtype=jnp.int32))
  with jax.set_mesh(mesh):
    return traced.lower(lowering_platforms=(there.platform,)).compile()


def scores_bytes(length: int) -> int:
  """Of one row's scores in float32, which no kernel writes to memory."""
  return 4 * 4 * length**2


@tpu
@pytest.mark.parametrize("head_dim, softcap, windows", SIZES)
@pytest.mark.parametrize("name", ["splash", "jax_splash"])
def test_splash_on_tpu(name, head_dim, softcap, windows):
  found = compiled("v5e:2x2", name, head_dim, softcap, windows)
  assert found.memory_analysis().temp_size_in_bytes < scores_bytes(1024)
  forward = [line for line in found.as_text().splitlines() if is_kernel(line, "splash_mha_fwd")]
  assert len(forward) == len(windows)


@tpu
@pytest.mark.parametrize("name", ["splash", "jax_splash"])
@pytest.mark.parametrize("policy, kernels", [(is_saved, 1), (None, 1), ("nothing", 2)])
def test_results_are_kept(name, policy, kernels):
  """A layer computed again: one forward kernel where the policy keeps its results, two where it does not."""
  policy = jax.checkpoint_policies.nothing_saveable if policy == "nothing" else policy
  text = compiled("v6e:2x2", name, 128, policy=policy).as_text()
  assert sum(is_kernel(line, "splash_mha_fwd") for line in text.splitlines()) == kernels


@gpu
@pytest.mark.parametrize("head_dim, softcap, windows", SIZES)
def test_mosaic_on_h100(head_dim, softcap, windows):
  found = compiled("h100:1", "mosaic_gpu", head_dim, softcap, windows)
  assert found.memory_analysis().temp_size_in_bytes < scores_bytes(1024)
  assert sum(is_kernel(line, "mosaic_gpu") for line in found.as_text().splitlines()) == 3


def is_kernel(line: str, name: str) -> bool:
  return "custom-call(" in line and name in line
