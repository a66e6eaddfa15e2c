"""The train step of a config: built in one place, for the run and for what is found out before it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mlit_jax import mesh as meshes
from mlit_jax.attention.choice import Choice
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig
from mlit_jax.training.checkpoint import abstract_like
from mlit_jax.training.optimizer import Optimizer, OptimizerConfig, make_optimizer
from mlit_jax.training.step import State, make_row_losses, make_train_step, state_shardings


@dataclasses.dataclass(frozen=True)
class Stepping:
  """How one config trains one decoder on one mesh."""

  cfg: DecoderConfig
  specs: dict  # of ParamSpec
  shardings: State
  optimizer: Optimizer
  train_step: Callable  # jitted (State, Batch) -> (State, StepMetrics)
  row_losses: Callable  # jitted (params, Batch) -> (nll_B, trained_B)
  param_dtype: jnp.dtype
  unrolled: bool  # its layers are not in a loop

  def first_state(self, params: dict) -> State:
    """The state of a run that has done nothing, for jit and eval_shape."""
    return State(jnp.zeros((), jnp.int32), params, self.optimizer.init(params))

  def begin(self, params: dict) -> State:
    """The first state, where it lives; the parameters are given away."""
    kinds = {s.memory_kind for s in jax.tree.leaves(self.shardings.opt_state)}
    if meshes.HOST_MEMORY not in kinds:
      return jax.jit(self.first_state, out_shardings=self.shardings, donate_argnums=0)(params)
    # Made where it rests: a program would hold all of it on the devices first.
    shapes = self.state_shapes()
    zeros = jax.tree.map(_zeros, shapes._replace(params=None))
    return zeros._replace(params=params)

  def state_shapes(self) -> State:
    """What a state is, with the dtypes and places of its arrays, and none of their values."""
    shapes = jax.eval_shape(self.first_state, decoder.param_shapes(self.cfg, self.param_dtype))
    return abstract_like(shapes, self.shardings)


def make_stepping(
  c, cfg: DecoderConfig, mesh: Mesh, *, total_steps: int, num_languages: int, max_segments: int = 0
) -> Stepping:
  """All that a step is made of; nothing is computed. max_segments: examples of a row at most, 0 if not known."""
  specs = decoder.param_specs(cfg)
  optimizer_cfg = OptimizerConfig(**c.optimizer)
  if meshes.HOST_MEMORY not in meshes.memory_kinds(mesh):
    # Refused for a run (checks.py). To a compiler of GPUs that are not here all memory is one: a plan reckons.
    optimizer_cfg = dataclasses.replace(optimizer_cfg, offload=False)
  optimizer = make_optimizer(optimizer_cfg, total_steps, specs, seed=c.seed)
  dtype, param_dtype = jnp.dtype(c.model.dtype), jnp.dtype(c.model.param_dtype)
  param_shardings = meshes.param_shardings(specs, mesh)
  shardings = state_shardings(
    optimizer, param_shardings, decoder.param_shapes(cfg, param_dtype), mesh
  )
  attention = Choice.on(mesh, c.model.attention, max_segments)
  whole = mesh.size == mesh.shape["data"] * mesh.shape["fsdp"]  # rows and products, on each device
  on_cpu = meshes.platform(mesh) == "cpu" and jax.process_count() == 1 and whole
  # A loop over layers stacks what their gradients will read; where they compute it again there is little.
  unrolled = on_cpu and c.model.remat == "none"

  def forward(params, *arrays, unrolled=False):
    return decoder.hidden(
      params,
      cfg,
      *arrays,
      dtype=dtype,
      remat=c.model.remat,
      attention=attention,
      together=on_cpu,
      unrolled=unrolled,
    )

  train_step = make_train_step(
    functools.partial(forward, unrolled=unrolled),
    optimizer,
    shardings,
    mesh,
    num_languages=num_languages,
    microbatches=c.batch.microbatches,
    accumulation_dtype=jnp.dtype(c.batch.accumulation_dtype),
    clip_norm=c.optimizer.gradient_clip_norm,
    num_experts=cfg.num_experts,
    router_loss_weight=cfg.router_loss_weight,
    loss_chunk=c.model.loss_chunk,
    z_loss=c.optimizer.z_loss,
  )
  row_losses = make_row_losses(
    forward,
    param_shardings,
    mesh,
    microbatches=c.batch.microbatches,
    loss_chunk=c.model.loss_chunk,
  )
  return Stepping(cfg, specs, shardings, optimizer, train_step, row_losses, param_dtype, unrolled)


def _zeros(like: jax.ShapeDtypeStruct) -> jax.Array:
  part = np.zeros(like.sharding.shard_shape(like.shape), like.dtype)
  return jax.make_array_from_callback(like.shape, like.sharding, lambda index: part)
