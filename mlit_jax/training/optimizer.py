"""The optimizer of a config, its state and where that lies; and the learning rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mlit_jax import mesh as meshes
from mlit_jax.errors import UserError
from mlit_jax.training import moments, rounding, rules

SCHEDULES = ("cosine", "linear", "constant")
NAMES = ("adamw", "adafactor", "muon")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """`c.optimizer`; see configs/base.py for the meaning of each."""

  learning_rate: float
  schedule: str
  warmup_steps: int
  final_learning_rate: float
  weight_decay: float
  b1: float
  b2: float
  eps: float
  gradient_clip_norm: float
  z_loss: float = 0.0
  name: str = "adamw"
  moments: str = "float32"
  offload: bool = False
  nonfinite: str = "stop"  # what a loop does about a step that is not applied
  max_skipped: int = 10


def make_schedule(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate of step 0, 1, ...: linear warmup from 0, then the named decay to the last step.

  Step s of the warmup uses learning_rate * (s + 1) / warmup_steps, so that no step is lost at 0.
  """
  if cfg.schedule not in SCHEDULES:
    raise UserError(
      f"optimizer.schedule is {cfg.schedule!r}; it must be one of {', '.join(SCHEDULES)}"
    )
  check_warmup(cfg.warmup_steps, steps)
  peak, end, rest = cfg.learning_rate, cfg.final_learning_rate, max(1, steps - cfg.warmup_steps)
  if cfg.schedule == "cosine":
    decay = optax.cosine_decay_schedule(peak, rest, alpha=end / peak if peak else 0.0)
  elif cfg.schedule == "linear":
    decay = optax.linear_schedule(peak, end, rest)
  else:
    decay = optax.constant_schedule(peak)
  if not cfg.warmup_steps:
    return decay
  first = peak / cfg.warmup_steps
  warmup = optax.linear_schedule(first, peak, max(1, cfg.warmup_steps - 1))
  return optax.join_schedules([warmup, decay], [cfg.warmup_steps])


def check_warmup(warmup_steps: int, steps: int) -> None:
  """Refuse a warmup that is as long as the run."""
  if warmup_steps >= steps and warmup_steps:
    raise UserError(
      f"optimizer.warmup_steps {warmup_steps} leaves nothing of the run's {steps} steps; lower it"
    )


class Optimizer(NamedTuple):
  """Writes parameters itself, where optax hands out differences: rounding by chance is to be done once."""

  init: Callable  # params -> state
  # (grads, scale, state, params, step, good=None) -> (params, state), by the gradients times scale; as they were,
  # bit by bit, where `good` is False
  apply: Callable
  shardings: Callable  # (param_shardings, param_shapes, mesh) -> those of the state


def make_optimizer(cfg: OptimizerConfig, steps: int, specs: dict, *, seed: int = 0) -> Optimizer:
  """The optimizer of the config, for parameters with these specs; matrices decay, all else does not.

  Its state is a dict like that of the parameters, with a dict of arrays in place of each. Clipping happens
  in the step, where the norm is known anyway. `seed` is that of rounding by chance.

  With `offload` the state rests in the host's memory. What is updated at once, a layer or where there are none an
  array, comes to the device for it and goes back.
  """
  schedule = make_schedule(cfg, steps)
  leaves = jax.tree.map_with_path(
    lambda path, spec: _make_leaf(cfg, "/".join(k.key for k in path), spec),
    specs,
    is_leaf=lambda s: hasattr(s, "axes"),
  )

  def init(params):
    del params  # neither their values nor their dtypes matter
    return jax.tree.map(
      lambda leaf: {name: jnp.zeros(k.shape, k.dtype) for name, k in leaf.kept.items()}, leaves
    )

  def apply(grads, scale, state, params, step, good=None):
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
    now = _Now(schedule(step), (step + 1).astype(jnp.float32), scale, key, good)
    out: dict = {}
    for stack, of in leaves.items():
      arrays = params[stack], state[stack], grads[stack]
      if cfg.offload:  # one stack after the other, and none before its gradients: all would be on the device at once
        arrays, _ = jax.lax.optimization_barrier((arrays, out))
      out[stack] = _update_stack(now, of, *arrays, cfg.offload)
    params, state = ({stack: new[i] for stack, new in out.items()} for i in (0, 1))
    return params, state

  def shardings(param_shardings, param_shapes, mesh):
    del param_shardings, param_shapes  # the specs say as much
    found = meshes.param_shardings(jax.tree.map(lambda leaf: leaf.kept, leaves), mesh)
    return meshes.in_host(found) if cfg.offload else found

  return Optimizer(init, apply, shardings)


def from_optax(transform: optax.GradientTransformation) -> Optimizer:
  """One of optax's, for float32 parameters."""

  def apply(grads, scale, state, params, step, good=None):
    del step
    grads = jax.tree.map(lambda g: g * scale, grads)
    updates, new = transform.update(grads, state, params)
    return rules.if_good(good, (optax.apply_updates(params, updates), new), (params, state))

  def shardings(param_shardings, param_shapes, mesh):
    return optax.tree.map_params(
      transform,
      lambda _, sharding: sharding,
      jax.eval_shape(transform.init, param_shapes),
      param_shardings,
      transform_non_params=lambda _: NamedSharding(mesh, P()),
    )

  return Optimizer(transform.init, apply, shardings)


class _Now(NamedTuple):
  """What all updates of one step share."""

  rate: jax.Array
  t: jax.Array  # steps, this one included
  scale: jax.Array  # of the gradients
  key: jax.Array
  good: jax.Array | None  # whether the gradients may be used; None: they may


@dataclasses.dataclass(frozen=True)
class _Leaf:
  """How one parameter is updated; a leaf to JAX."""

  path: str
  rule: rules.AdamW | rules.Adafactor | rules.Muon
  kept: dict[str, moments.Kept]
  decay: float
  is_stacked: bool
  by_layer: bool  # whether the rule is for one layer's slice

  def update(self, now: _Now, layer, p, state: dict, g) -> tuple[jax.Array, dict]:
    """The new parameter and state, of the whole array or of the slice of one layer."""
    bits = None
    if any(x.dtype != jnp.float32 for x in (p, *state.values())):
      bits = self._random_bits(now, layer, p.shape)
    p_f32 = p.astype(jnp.float32)
    g_f32 = g.astype(jnp.float32) * now.scale
    direction, state = self.rule.update(g_f32, state, now.t, bits, now.good)
    if self.decay:  # times 0, XLA:GPU reads an array of zeros for it
      direction = direction + self.decay * p_f32
    new_f32 = p_f32 - now.rate * direction
    new = rounding.round_to(new_f32, p.dtype, None if bits is None else rounding.low(bits))
    # Here, where old and new are at hand: chosen later, all of the old state would be kept until then.
    return rules.if_good(now.good, new, p), state

  def _random_bits(self, now: _Now, layer, shape: tuple[int, ...]) -> jax.Array:
    """Those of a layer are its own, whether layers are updated one by one or all at once."""
    key = rounding.path_key(now.key, self.path)
    if not self.is_stacked:
      return rounding.random_bits(key, shape)

    def of_layer(layer, shape):
      return rounding.random_bits(jax.random.fold_in(key, layer), shape)

    if layer is not None:
      return of_layer(layer, shape)
    return jax.vmap(lambda layer: of_layer(layer, shape[1:]))(jnp.arange(shape[0]))


def _make_leaf(cfg: OptimizerConfig, path: str, spec) -> _Leaf:
  name, is_stacked = path.split("/")[-1], spec.axes[:1] == ("layers",)
  shape, axes = (spec.shape[1:], spec.axes[1:]) if is_stacked else (spec.shape, spec.axes)
  matrix = rules.matrix_of(name, axes)
  is_vector = matrix is None
  # Norms and biases are few: eight bits would save nothing there.
  kept_as = "float32" if is_vector else cfg.moments
  rule = rules.AdamW(cfg.b1, cfg.b2, cfg.eps, kept_as)
  if cfg.name == "adafactor":
    rule = rules.Adafactor(matrix)
  elif cfg.name == "muon" and not (is_vector or rules.is_table(axes)):
    rule = rules.Muon(matrix, kept_as)
  kept = rule.kept(moments.Kept(shape, axes, None))
  if is_stacked:
    L = spec.shape[0]
    kept = {n: moments.Kept((L, *k.shape), ("layers", *k.axes), k.dtype) for n, k in kept.items()}
  decays = len(spec.axes) > 1 and not any(word in name for word in rules.NAMED_VECTORS)
  # What is elementwise takes a whole stack in place, and reads and writes each number once: a loop over layers
  # takes them out and puts them back besides.
  elementwise = cfg.name == "adamw" and cfg.moments != "int8"
  by_layer = is_stacked and (cfg.offload or not elementwise)
  return _Leaf(path, rule, kept, cfg.weight_decay if decays else 0.0, is_stacked, by_layer)


def _update_stack(now: _Now, leaves, params, state, grads, offload: bool):
  """(params, state) of what lies under one name at the top; a layer at a time where rules are for a layer."""
  each = jax.tree.leaves(leaves)
  if not all(leaf.by_layer for leaf in each):
    assert not any(leaf.by_layer for leaf in each), [leaf.path for leaf in each]
    params, state = _update_all(now, None, leaves, params, _to_device(state, offload), grads)
    return params, _to_host(state, offload)

  def update_layer(i, carry):
    take = lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1, 0)  # noqa: E731
    params, state, of_grads = jax.tree.map(take, (*carry, grads))
    arrays = params, _to_device(state, offload), of_grads
    new = _update_all(now, i, leaves, *jax.tree.map(lambda x: x[0], arrays))
    params, state = jax.tree.map(lambda x: x[None], new)
    put = lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, i, 0)  # noqa: E731
    return jax.tree.map(put, carry, (params, _to_host(state, offload)))

  num_layers = len(jax.tree.leaves(params)[0])
  return jax.lax.fori_loop(0, num_layers, update_layer, (params, state))


def _update_all(now: _Now, layer, leaves, params, state, grads):
  def update(leaf, *arrays):
    return leaf.update(now, layer, *arrays)

  out = jax.tree.map(update, leaves, params, state, grads)
  first = jax.tree.map(lambda _, new: new[0], leaves, out)
  return first, jax.tree.map(lambda _, new: new[1], leaves, out)


def _to_device(state, offload: bool):
  return jax.device_put(state, jax.memory.Space.Device) if offload else state


def _to_host(state, offload: bool):
  return jax.device_put(state, jax.memory.Space.Host) if offload else state
