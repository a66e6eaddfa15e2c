"""State and the train step: gradient sums over microbatches, one division, one update."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mlit_jax import mesh as meshes
from mlit_jax.batch import Batch
from mlit_jax.routing import Routing, balance_loss
from mlit_jax.training.head_loss import AUTOMATIC, usual_chunk
from mlit_jax.training.loss import Sums, batch_loss, row_losses
from mlit_jax.training.optimizer import Optimizer


class State(NamedTuple):
  """Everything a step changes; all of it is saved."""

  step: jax.Array  # int32, steps done
  params: dict
  opt_state: dict


class StepMetrics(NamedTuple):
  """What a step tells: sums per language, and the norm of the gradient before clipping."""

  sums: Sums
  grad_norm: jax.Array
  finite: jax.Array  # bool, whether loss and norm are numbers; if not, the step was not applied


def state_shardings(
  optimizer: Optimizer, param_shardings: dict, param_shapes: dict, mesh: Mesh
) -> State:
  """Where the state lives: moments like their parameters, all else replicated."""
  opt = optimizer.shardings(param_shardings, param_shapes, mesh)
  return State(step=NamedSharding(mesh, P()), params=param_shardings, opt_state=opt)


def make_train_step(
  forward: Callable,
  optimizer: Optimizer,
  shardings: State,
  mesh: Mesh,
  *,
  num_languages: int,
  microbatches: int = 1,
  accumulation_dtype=jnp.float32,
  clip_norm: float = 0.0,
  num_experts: int = 0,
  router_loss_weight: float = 0.0,
  loss_chunk: int = AUTOMATIC,
  z_loss: float = 0.0,
) -> Callable:
  """Jitted (state, batch) -> (state, StepMetrics); the state is donated.

  Loss = sum over the trained tokens of the whole global batch / their number: microbatches add sums,
  and the division happens once, before clipping.

  Where the loss or the norm of the gradient is not finite, parameters and optimizer state stay as they are, bit
  by bit; `step` goes on all the same. All devices decide alike, as both are sums over all of them.

  forward, loss_chunk, z_loss: see batch_loss; AUTOMATIC is what suits the mesh's devices.
  accumulation_dtype: of the sum of the microbatches' gradients; one microbatch has none.

  With experts, router_loss_weight * balance_loss is added. Its figure in the sums is that of the whole
  batch, on any mesh and in any number of microbatches; so is its gradient on any mesh. But the loss is a
  product of two sums, so in the gradient each microbatch is held to its own balance, and counts by its
  tokens.
  """

  def objective(params, batch, per_token):
    chunk = _chunk(loss_chunk, mesh, batch)
    loss, sums = batch_loss(forward, params, batch, num_languages, chunk=chunk, z_loss=z_loss)
    if num_experts:
      loss += per_token * jnp.sum(batch.segments > 0) * balance_loss(sums.routing)
    return loss, sums

  def grads_and_sums(params, batch):
    per_token = router_loss_weight * _trained_per_token(batch) if num_experts else None
    if microbatches == 1:
      (_, sums), grads = jax.value_and_grad(objective, has_aux=True)(params, batch, per_token)
      return grads, sums

    def add(carry, part):
      (_, sums), grads = jax.value_and_grad(objective, has_aux=True)(params, part, per_token)
      grads, sums = jax.tree.map(lambda a, b: a + b.astype(a.dtype), carry, (grads, sums))
      return (grads, sums), None

    zeros = jax.tree.map(lambda p: jnp.zeros_like(p, accumulation_dtype), params)
    zeros = zeros, _zero_sums(num_languages, num_experts)
    return jax.lax.scan(add, zeros, split_rows(batch, microbatches))[0]

  def step(state: State, batch: Batch) -> tuple[State, StepMetrics]:
    grads, sums = grads_and_sums(state.params, batch)
    trained = jnp.maximum(jnp.sum(sums.trained), 1).astype(jnp.float32)
    norm = _norm(grads) / trained
    scale = 1 / trained
    if clip_norm:
      scale *= jnp.minimum(1.0, clip_norm / (norm + 1e-6))
    # The scale is the optimizer's to apply: in bfloat16 gradients would be rounded once more, and in float32
    # they would be a second time in memory.
    finite = jnp.isfinite(norm) & jnp.isfinite(jnp.sum(sums.nll))
    params, opt_state = optimizer.apply(
      grads, scale, state.opt_state, state.params, state.step, finite
    )
    return State(state.step + 1, params, opt_state), StepMetrics(sums, norm, finite)

  everywhere = NamedSharding(mesh, P())
  return jax.jit(
    step,
    in_shardings=(shardings, NamedSharding(mesh, meshes.BATCH_SPEC)),
    out_shardings=(shardings, everywhere),
    donate_argnums=0,
  )


def make_row_losses(
  forward: Callable,
  param_shardings: dict,
  mesh: Mesh,
  *,
  microbatches: int = 1,
  loss_chunk: int = AUTOMATIC,
) -> Callable:
  """Jitted (params, batch) -> (nll_B, trained_B), see row_losses; on every device, in as many parts as a step."""

  def losses(params, batch):
    def of_part(part):
      return row_losses(forward, params, part, chunk=_chunk(loss_chunk, mesh, part))

    # The sizes of a step, so that it fits where a step does.
    out = jax.lax.map(of_part, split_rows(batch, microbatches))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1), out)

  return jax.jit(
    losses,
    in_shardings=(param_shardings, NamedSharding(mesh, meshes.BATCH_SPEC)),
    out_shardings=NamedSharding(mesh, P()),
  )


def _chunk(loss_chunk: int, mesh: Mesh, batch: Batch) -> int:
  if loss_chunk != AUTOMATIC:
    return loss_chunk
  tokens = batch.tokens.size // (meshes.batch_shards(mesh) * mesh.shape["context"])
  return usual_chunk(meshes.platform(mesh), tokens)


def _norm(grads) -> jax.Array:
  """Of all values together, added up in float32."""
  squares = [jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)]
  return jnp.sqrt(sum(squares))


def split_rows(batch: Batch, parts: int) -> Batch:
  """[B, T] -> [parts, B / parts, T]; part p takes rows p, p + parts, ..., so that no row changes device."""
  return jax.tree.map(
    lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch
  )


def _trained_per_token(batch: Batch) -> jax.Array:
  """Times tokens, it is what the division by trained tokens leaves at 1."""
  trained = jnp.maximum(jnp.sum(batch.weights > 0), 1)
  return trained / jnp.maximum(jnp.sum(batch.segments > 0), 1)


def _zero_sums(num_languages: int, num_experts: int) -> Sums:
  ints, routing = jnp.zeros(num_languages, jnp.int32), None
  if num_experts:
    zeros_E = jnp.zeros(num_experts, jnp.float32)
    routing = Routing(zeros_E.astype(jnp.int32), zeros_E, jnp.zeros((), jnp.int32))
  return Sums(jnp.zeros(num_languages, jnp.float32), ints, ints, ints, routing)
