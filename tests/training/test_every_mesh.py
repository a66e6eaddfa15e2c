"""One step on every mesh of eight devices gives the numbers of one device."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlit_jax import mesh as meshes
from mlit_jax.attention.choice import Choice
from mlit_jax.batch import Batch
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig
from mlit_jax.training.optimizer import from_optax
from mlit_jax.training.step import State, make_train_step, state_shardings
from tests.few import few

ROWS, LENGTH, LANGUAGES = 8, 16, 3
SIZES = dict(
  vocab_size=40, d_model=16, num_layers=2, num_heads=8, num_kv_heads=2, head_dim=4, d_ff=24
)
CONFIGS = {
  "dense": DecoderConfig("mistral", **SIZES, windows=(0, 5), tied=False),
  # Six query heads: over four parts of a row, or over two and tensor=2, they cannot be dealt out.
  "six_heads": DecoderConfig(
    "gemma2", **SIZES | dict(num_heads=6), windows=(0, 5), attn_softcap=3.0
  ),
  "experts": DecoderConfig(
    "mixtral", **SIZES, num_experts=8, experts_per_token=2, router_loss_weight=0.5
  ),
}
ALL = [
  dict(zip(meshes.MESH_AXES, sizes, strict=True))
  for sizes in itertools.product((1, 2, 4, 8), repeat=len(meshes.MESH_AXES))
  if math.prod(sizes) == 8
]
# In every run of the tests; the rest in the slow ones.
SOME = [
  dict(data=2, fsdp=2, tensor=2),
  dict(fsdp=2, context=4),
]


def make_batch() -> Batch:
  """Two examples a row and padding at its end."""
  rng = np.random.default_rng(0)
  shape = (ROWS, LENGTH)
  first = rng.integers(3, 9, (ROWS, 1))
  end = rng.integers(11, LENGTH + 1, (ROWS, 1))
  at = np.broadcast_to(np.arange(LENGTH), shape)
  segments = np.where(at < first, 1, np.where(at < end, 2, 0)).astype(np.int32)
  positions = np.where(segments == 2, at - first, np.where(segments == 1, at, 0)).astype(np.int32)
  weights = ((rng.random(shape) < 0.6) & (segments > 0)).astype(np.float32)
  tokens, targets = rng.integers(0, 40, (2, *shape)).astype(np.int32)
  language = rng.integers(0, LANGUAGES, shape).astype(np.int32)
  return Batch(tokens, targets, weights, positions, segments, language)


def one_step(cfg, sizes: dict, attention: str):
  """(metrics, gradient) of a step, on the host."""
  mesh = meshes.make_mesh(**sizes, devices=jax.devices()[: math.prod(sizes.values())])
  optimizer = from_optax(optax.sgd(0.1, momentum=0.9))  # after one step its trace is the gradient
  shardings = state_shardings(
    optimizer,
    meshes.param_shardings(decoder.param_specs(cfg), mesh),
    decoder.param_shapes(cfg),
    mesh,
  )
  rng = np.random.default_rng(7)
  params = jax.tree.map(
    lambda a: a + 0.2 * rng.standard_normal(a.shape).astype(np.float32),
    decoder.init_params(cfg, jax.random.key(7)),
  )
  state = jax.device_put(State(jnp.zeros((), jnp.int32), params, optimizer.init(params)), shardings)
  step = make_train_step(
    functools.partial(forward, cfg, attention),
    optimizer,
    shardings,
    mesh,
    num_languages=LANGUAGES,
    num_experts=cfg.num_experts,
    router_loss_weight=cfg.router_loss_weight,
    loss_chunk=4,
  )
  with jax.set_mesh(mesh):
    state, metrics = step(state, meshes.put_batch(make_batch(), mesh, ROWS))
  return jax.device_get((metrics, state.opt_state[0].trace))


def forward(cfg, attention, params, *arrays):
  return decoder.hidden(params, cfg, *arrays, remat="attention_saved", attention=Choice(attention))


@functools.cache
def of_one_device(name: str):
  return one_step(CONFIGS[name], dict(fsdp=1), "xla")


def cases():
  for sizes in ALL:
    marks = () if {k: v for k, v in sizes.items() if v > 1} in [
      {k: v for k, v in of.items() if v > 1} for of in SOME
    ] else pytest.mark.slow  # fmt: skip
    yield pytest.param(sizes, marks=marks, id=",".join(str(n) for n in sizes.values()))


@pytest.mark.parametrize("sizes", [*cases()])
def test_every_mesh_equals_one_device(sizes, assert_close):
  name = "experts" if sizes["expert"] > 1 else "dense"
  found = one_step(CONFIGS[name], sizes, "xla_chunked")
  assert_close(found, of_one_device(name))


def test_the_plain_attention_on_cut_rows(assert_close):
  found = one_step(CONFIGS["dense"], dict(fsdp=2, context=4), "xla")
  assert_close(found, of_one_device("dense"))


@pytest.mark.parametrize(
  "sizes, attention",
  few(
    1,
    [
      (dict(fsdp=2, context=4), "xla_chunked"),
      (dict(fsdp=2, context=4), "xla"),
      (dict(data=2, fsdp=1, context=2, tensor=2), "xla_chunked"),
      (dict(fsdp=1, context=8), "xla_chunked"),
    ],
  ),
)
def test_heads_that_cannot_be_dealt_out_over_cut_rows(sizes, attention, assert_close):
  found = one_step(CONFIGS["six_heads"], sizes, attention)
  assert_close(found, of_one_device("six_heads"))
