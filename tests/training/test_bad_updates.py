"""A step whose loss or gradient is no number leaves every bit of parameters and optimizer state as it was."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlit_jax import mesh as meshes
from mlit_jax.model import decoder
from mlit_jax.training.optimizer import from_optax
from tests.training import test_optimizers, test_step
from tests.training.test_optimizers import CFG, SPECS, optimizer_of, random_like
from tests.training.test_step import make_batch

KINDS = [  # name, moments, dtype of parameters, state in the host's memory
  ("adamw", "float32", "float32", False),
  ("muon", "float32", "float32", False),
  # The others are compiled for about ten seconds each.
  *(
    pytest.param(*kind, marks=pytest.mark.slow)
    for kind in (
      ("adamw", "float32", "float32", True),
      ("adamw", "bfloat16", "bfloat16", False),
      ("adamw", "int8", "bfloat16", False),
      ("adamw", "int8", "float32", True),
      ("adafactor", "float32", "bfloat16", False),
      ("muon", "int8", "bfloat16", True),
    )
  ),
]


def bits(tree) -> list[bytes]:
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def poisoned(batch, rows=(3,)):
  """Trained tokens of these rows weigh infinitely: their loss and all gradients are no numbers."""
  weights = np.array(batch.weights)
  for row in rows:
    weights[row][weights[row] > 0] = np.inf
  return dataclasses.replace(batch, weights=weights)


@pytest.mark.parametrize("name, moments, param_dtype, offload", KINDS)
def test_no_bit_of_a_bad_update_stays(name, moments, param_dtype, offload):
  mesh = meshes.make_mesh(1, 2, 2, devices=jax.devices()[:4])
  optimizer = optimizer_of(name, moments, offload=offload)
  at = meshes.param_shardings(SPECS, mesh)
  state_at = optimizer.shardings(at, decoder.param_shapes(CFG, param_dtype), mesh)
  params = jax.device_put(decoder.init_params(CFG, jax.random.key(7), param_dtype), at)
  state = jax.device_put(optimizer.init(params), state_at)
  grads = [jax.device_put(random_like(params, seed), at) for seed in range(2)]
  bad = jax.tree.map(lambda g: g.at[(0,) * g.ndim].set(jnp.nan), grads[1])
  update = jax.jit(
    lambda g, state, params, step, good: optimizer.apply(
      g, jnp.float32(0.5), state, params, step, good
    ),
    out_shardings=(at, state_at),
  )
  with jax.set_mesh(mesh):
    # Once by good gradients, so that there are moments of all sizes to be kept.
    params, state = update(grads[0], state, params, jnp.int32(0), jnp.bool_(True))
    same = update(bad, state, params, jnp.int32(1), jnp.bool_(False))
    moved = update(grads[1], state, params, jnp.int32(1), jnp.bool_(True))
  assert bits(same) == bits((params, state))
  # Of arrays; one that is all zeros, or rounded by chance to where it was, may stay.
  assert sum(a != b for a, b in zip(bits(moved), bits(same))) > 0.8 * len(bits(same))
  assert {x.sharding.memory_kind for x in jax.tree.leaves(same[1])} == {
    "pinned_host" if offload else "device"
  }


def test_the_step_goes_on_and_says_so():
  """Found on all devices where one has it; languages without it keep their sums."""
  trainer = test_step.Trainer(test_step.adamw(), sizes=(2, 2, 2), microbatches=1, clip_norm=1.0)
  trainer.run(make_batch(0))
  before = bits(trainer.state._replace(step=0))
  (told,) = trainer.run(poisoned(make_batch(1)))
  assert not told.finite and bits(trainer.state._replace(step=0)) == before
  assert int(trainer.state.step) == 2
  assert not np.isfinite(told.sums.nll[[0, 2]]).any() and told.sums.nll[1] == 0
  np.testing.assert_array_equal(told.sums.trained, trainer.run(make_batch(1))[0].sums.trained)
  (told,) = trainer.run(make_batch(2))
  assert told.finite and np.isfinite(told.grad_norm) and bits(trainer.state) != before


def test_a_gradient_alone_can_be_bad():
  """Its norm is no number where the squares are too large for float32, though the loss is one."""
  trainer = test_step.Trainer(from_optax(optax.sgd(0.1, momentum=0.9)), microbatches=4)
  before = bits(trainer.state._replace(step=0))
  batch = make_batch(0)
  (told,) = trainer.run(dataclasses.replace(batch, weights=np.float32(batch.weights * 3e34)))
  assert np.isfinite(told.sums.nll).all() and not np.isfinite(told.grad_norm)
  assert not told.finite and bits(trainer.state._replace(step=0)) == before


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, moments, param_dtype, offload",
  [
    ("adamw", "bfloat16", "bfloat16", True),
    ("adafactor", "float32", "float32", False),
    ("muon", "int8", "bfloat16", False),
  ],
)
def test_whole_steps_of_every_optimizer(name, moments, param_dtype, offload):
  """Donated, in microbatches, on four devices."""
  kind = (name, moments, param_dtype)
  trainer = test_optimizers.Trainer(*kind, sizes=(1, 2, 2), microbatches=2, offload=offload)
  step = trainer.step
  trainer.run(range(1))
  before = bits(trainer.state._replace(step=0))
  with jax.set_mesh(trainer.mesh):
    there = meshes.put_batch(poisoned(make_batch(1)), trainer.mesh, test_step.ROWS)
    old, (trainer.state, told) = trainer.state, step(trainer.state, there)
  assert not told.finite and bits(trainer.state._replace(step=0)) == before
  assert all(x.is_deleted() for x in jax.tree.leaves(old.opt_state)), "not given away"
