"""State and the train step: gradient sums over microbatches, one division, one update."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mlit_jax import mesh as meshes
from mlit_jax.batch import Batch
from mlit_jax.training.loss import Sums, batch_sums


class State(NamedTuple):
  """Everything a step changes; all of it is saved."""

  step: jax.Array  # int32, steps done
  params: dict
  opt_state: optax.OptState


class StepMetrics(NamedTuple):
  """What a step tells: sums per language, and the norm of the gradient before clipping."""

  sums: Sums
  grad_norm: jax.Array


def state_shardings(optimizer, param_shardings: dict, param_shapes: dict, mesh: Mesh) -> State:
  """Where the state lives: moments like their parameters, all else replicated."""
  everywhere = NamedSharding(mesh, P())
  opt_shapes = jax.eval_shape(optimizer.init, param_shapes)
  opt = optax.tree.map_params(
    optimizer,
    lambda _, sharding: sharding,
    opt_shapes,
    param_shardings,
    transform_non_params=lambda _: everywhere,
  )
  return State(step=everywhere, params=param_shardings, opt_state=opt)


def make_train_step(
  apply: Callable,
  optimizer: optax.GradientTransformation,
  shardings: State,
  mesh: Mesh,
  *,
  num_languages: int,
  microbatches: int = 1,
  clip_norm: float = 0.0,
) -> Callable:
  """Jitted (state, batch) -> (state, StepMetrics); the state is donated.

  Loss = sum over the trained tokens of the whole global batch / their number: microbatches add sums,
  and the division happens once, before clipping.
  """

  def objective(params, batch):
    sums = batch_sums(apply, params, batch, num_languages)
    return jnp.sum(sums.nll), sums

  def grads_and_sums(params, batch):
    if microbatches == 1:
      (_, sums), grads = jax.value_and_grad(objective, has_aux=True)(params, batch)
      return grads, sums

    def add(carry, part):
      (_, sums), grads = jax.value_and_grad(objective, has_aux=True)(params, part)
      return jax.tree.map(jnp.add, carry, (grads, sums)), None

    zeros = jax.tree.map(jnp.zeros_like, params), _zero_sums(num_languages)
    return jax.lax.scan(add, zeros, split_rows(batch, microbatches))[0]

  def step(state: State, batch: Batch) -> tuple[State, StepMetrics]:
    grads, sums = grads_and_sums(state.params, batch)
    trained = jnp.maximum(jnp.sum(sums.trained), 1).astype(jnp.float32)
    grads = jax.tree.map(lambda g: g / trained, grads)
    norm = optax.tree.norm(grads)
    if clip_norm:
      grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, clip_norm / (norm + 1e-6)), grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return State(state.step + 1, params, opt_state), StepMetrics(sums, norm)

  everywhere = NamedSharding(mesh, P())
  return jax.jit(
    step,
    in_shardings=(shardings, NamedSharding(mesh, meshes.BATCH_SPEC)),
    out_shardings=(shardings, everywhere),
    donate_argnums=0,
  )


def split_rows(batch: Batch, parts: int) -> Batch:
  """[B, T] -> [parts, B / parts, T]; part p takes rows p, p + parts, ..., so that no row changes device."""
  return jax.tree.map(
    lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch
  )


def _zero_sums(num_languages: int) -> Sums:
  ints = jnp.zeros(num_languages, jnp.int32)
  return Sums(jnp.zeros(num_languages, jnp.float32), ints, ints, ints)
