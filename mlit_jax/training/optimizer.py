"""AdamW and its learning rate."""

from __future__ import annotations

import dataclasses

import jax
import optax

from mlit_jax.errors import UserError

SCHEDULES = ("cosine", "linear", "constant")


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


def make_schedule(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate of step 0, 1, ...: linear warmup from 0, then the named decay to the last step.

  Step s of the warmup uses learning_rate * (s + 1) / warmup_steps, so that no step is lost at 0.
  """
  if cfg.schedule not in SCHEDULES:
    raise UserError(
      f"optimizer.schedule is {cfg.schedule!r}; it must be one of {', '.join(SCHEDULES)}"
    )
  if cfg.warmup_steps >= steps and cfg.warmup_steps:
    raise UserError(
      f"optimizer.warmup_steps {cfg.warmup_steps} leaves nothing of the run's {steps} steps; lower it"
    )
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


def make_optimizer(cfg: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """AdamW with float32 moments (Loshchilov & Hutter 2019); matrices decay, norms, biases and scalars do not.

  Clipping happens in the step, where the norm is known anyway.
  """
  return optax.adamw(
    make_schedule(cfg, steps),
    b1=cfg.b1,
    b2=cfg.b2,
    eps=cfg.eps,
    weight_decay=cfg.weight_decay,
    mask=_decays,
  )


def _decays(params):
  return jax.tree.map_with_path(
    # One axis at most, that of the layers: scalars.
    lambda path, p: p.ndim > 1 and not any(word in path[-1].key for word in ("scale", "bias")),
    params,
  )
