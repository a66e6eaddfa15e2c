import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from mlit_jax.config import load_config
from mlit_jax.mesh import make_mesh
from mlit_jax.model import experts
from mlit_jax.model.config import from_scratch
from mlit_jax.planning import planner
from mlit_jax.planning.arithmetic import product_flops
from mlit_jax.planning.compiling import written_flops
from tests.commands import ROOT

A, B = jnp.zeros((3, 5)), jnp.zeros((5, 7))
PRODUCT = 2 * 3 * 5 * 7


def flops(run, *args):
  return product_flops(jax.make_jaxpr(run)(*args))


def test_one_product():
  assert flops(jnp.dot, A, B) == PRODUCT
  assert flops(lambda a, b: jnp.einsum("xij,xjk->xik", a, b), A[None], B[None]) == PRODUCT


def test_loops_are_multiplied_out():
  def run(a, b):
    def layer(total, _):
      return total + jnp.sum(a @ b), None

    return jax.lax.scan(lambda t, _: jax.lax.scan(layer, t, None, length=4), 0.0, None, length=3)[0]

  assert flops(run, A, B) == 12 * PRODUCT


def test_the_dearest_branch_counts():
  def run(a, b):
    return jax.lax.cond(
      jnp.sum(a) > 0, lambda: jnp.sum(a @ b), lambda: jnp.sum(a @ b) + jnp.sum(b.T @ a.T)
    )

  assert flops(run, A, B) == 2 * PRODUCT


def test_what_is_written_for_one_device_counts_for_all():
  mesh = make_mesh(fsdp=8)
  run = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(P("fsdp"), P()), out_specs=P("fsdp"))
  assert flops(run, jnp.zeros((24, 5)), B) == 8 * PRODUCT


def test_a_derivative_counts_its_products_once():
  @jax.custom_vjp
  def product(a, b):
    return a @ b

  def backward(kept, g):
    a, b = kept
    return g @ b.T, a.T @ g

  product.defvjp(lambda a, b: (a @ b, (a, b)), backward)
  loss = lambda a, b: jnp.sum(product(a, b) ** 2)  # noqa: E731
  assert flops(loss, A, B) == PRODUCT
  assert flops(jax.grad(loss, argnums=(0, 1)), A, B) == 3 * PRODUCT


def test_recomputation_counts():
  def loss(a, b):
    return jnp.sum(jnp.sin(jnp.sin(a @ b) @ b.T))

  def grad(run):
    return flops(jax.grad(run, argnums=(0, 1)), A, B)

  assert grad(loss) == 6 * PRODUCT
  assert grad(jax.checkpoint(loss, prevent_cse=False)) in (7 * PRODUCT, 8 * PRODUCT)


@pytest.mark.parametrize("fsdp, microbatches", [(1, 1), (8, 1), (2, 2)])
def test_a_whole_step_on_any_mesh(fsdp, microbatches):
  """6 * weights * tokens, and 12 * layers * heads * head_dim * T * T for attention that masks a square."""
  d, layers, heads, kv, hidden, vocab, rows, T = 64, 3, 4, 2, 96, 320, 8, 32
  cfg = from_scratch(
    dict(d_model=d, num_layers=layers, num_heads=heads, num_kv_heads=kv, d_ff=hidden, tied=True),
    vocab,
  )
  c = load_config(
    str(ROOT / "configs" / "quickstart.py"),
    [
      f"--config.batch.rows={rows}",
      f"--config.batch.max_length={T}",
      f"--config.batch.microbatches={microbatches}",
      "--config.model.remat=none",
    ],
  )
  H = d // heads
  weights = layers * (2 * d * heads * H + 2 * d * kv * H + 3 * d * hidden) + d * vocab
  squares = 12 * layers * heads * H * T * T
  mesh = make_mesh(fsdp=fsdp, devices=jax.devices()[:fsdp])
  assert written_flops(c, cfg, mesh) == rows * (6 * weights * T + squares)


def test_kernels_do_not_count():
  """Whoever plans adds what theirs do: a trace does not tell which parts of its grid a kernel skips."""

  def kernel(x_ref, y_ref, o_ref):
    o_ref[...] = x_ref[...] @ y_ref[...]

  shape = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  x = jnp.zeros((8, 8))
  assert flops(pl.pallas_call(kernel, grid=(3,), out_shape=shape), x, x) == 0


@pytest.mark.parametrize("remat, products", [("attention_saved", 7), ("full", 9)])
def test_attention_of_kernels_is_added_to_a_plan(remat, products):
  c = load_config(str(ROOT / "configs" / "quickstart.py"))
  c.model.remat, c.model.attention, c.batch.max_length, c.batch.rows = remat, "xla_chunked", 256, 3
  sizes = dict(d_model=64, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64)
  cfg, mesh = from_scratch(sizes, 100), make_mesh(fsdp=1, devices=jax.devices()[:1])
  assert planner.kernel_flops(c, cfg, mesh, 0) == 0
  gpu = types.SimpleNamespace(
    devices=np.array([types.SimpleNamespace(platform="gpu", compute_capability="9.0")]), shape={}
  )
  c.model.attention, c.model.dtype = "cudnn", "bfloat16"
  pairs = 128**2 / 2 * 2  # two causal segments of 128
  of_a_product = 2 * pairs * 64 * cfg.num_layers * c.batch.rows
  assert planner.kernel_flops(c, cfg, gpu, 128) == pytest.approx(of_a_product * products)


@pytest.mark.parametrize("platforms", ["default", "tpu"])
@pytest.mark.parametrize("of", [4, 16])
def test_experts_count_the_pairs_that_are_theirs(of, platforms, monkeypatch):
  """1,024 pairs in blocks of 128 rows, ours 4 of `of` experts: the full blocks, and half a begun one of each.

  Forward three products of rows by 32 x 24; their gradients twice as many.
  """
  if platforms == "tpu":  # each way counted alone: of two branches the dearest counts
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *a, tpu, default: tpu(*a))
  else:
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *a, tpu, default: default(*a))
  x = jnp.zeros((1, 512, 32))
  choice, weight = jnp.zeros((1, 512, 2), jnp.int32), jnp.zeros((1, 512, 2))
  gate, up, down = jnp.zeros((4, 32, 24)), jnp.zeros((4, 32, 24)), jnp.zeros((4, 24, 32))
  run = lambda x, *w: jnp.sum(experts.run(x, choice, weight, *w, of=of))  # noqa: E731
  rows = 1024 * 4 // of + 4 * 128 // 2
  product = 2 * rows * 32 * 24
  assert flops(run, x, gate, up, down) == pytest.approx(3 * product, rel=1e-5)
  grad = jax.grad(run, argnums=(0, 1, 2, 3))
  assert flops(grad, x, gate, up, down) == pytest.approx(9 * product, rel=1e-5)
