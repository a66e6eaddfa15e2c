"""Checkpoints: Orbax for the bytes; here, what is kept, what is newest and what is best."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from mlit_jax import runtime
from mlit_jax.errors import UserError
from mlit_jax.metrics import LOWER_IS_BETTER
from mlit_jax.training.step import State

PARAMS, OPTIMIZER, META = "params", "optimizer", "meta"


class Checkpoints:
  """The steps saved under a folder. Saving is asynchronous: `wait` before relying on it.

  Parameters and optimizer state are items of their own, so that an export reads only the former. `meta`
  is JSON beside them: {"step", "plan", "trained", "metric"}.
  """

  def __init__(
    self,
    folder: Path,
    *,
    keep_latest: int = 1,
    keep_best: int = 0,
    lower_is_better: bool = True,
    read_only: bool = False,
  ):
    self.folder = folder = Path(folder).resolve()
    self.metrics = _read_metrics(folder)
    best = _Best(self.metrics, keep_best, lower_is_better)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep_latest), best]),
      cleanup_tmp_directories=not read_only,  # they may be those of a run at work
      enable_async_checkpointing=True,
    )
    self.manager = ocp.CheckpointManager(folder, options=options)

  def save(self, state: State, meta: dict, metric: float | None) -> None:
    """Begin to save a step; the one before must be on disk first, so that its failure is not missed."""
    self.manager.wait_until_finished()
    step = int(meta["step"])
    metric = metric if metric is not None and math.isfinite(metric) else None
    if metric is not None:
      self.metrics[step] = metric
    self.manager.save(
      step,
      args=ocp.args.Composite(
        **{
          PARAMS: ocp.args.StandardSave(state.params),
          OPTIMIZER: ocp.args.StandardSave({"opt_state": state.opt_state, "step": state.step}),
          # A copy: Orbax writes it out later, while the loop adds to the ledger in `meta`.
          META: ocp.args.JsonSave(copy.deepcopy(meta) | {"metric": metric}),
        }
      ),
      force=True,
    )

  def add_metric(self, step: int, metric: float | None) -> None:
    """The metric of a step that was saved before it was evaluated; it must be on disk."""
    if metric is None or not math.isfinite(metric):
      return
    self.metrics[step] = metric
    if runtime.is_main():
      file = _meta_file(self.folder / str(step))
      runtime.write_atomic(file, json.dumps(json.loads(file.read_text()) | {"metric": metric}))

  def steps(self) -> list[int]:
    return sorted(self.manager.all_steps())

  def latest(self) -> int | None:
    return max(self.steps(), default=None)

  def restore(self, step: int, abstract: State) -> tuple[State, dict]:
    """(state, meta) of a step; `abstract` has the shapes, dtypes and shardings wanted."""
    out = self._read(
      step,
      **{
        PARAMS: ocp.args.StandardRestore(abstract.params),
        OPTIMIZER: ocp.args.StandardRestore(
          {"opt_state": abstract.opt_state, "step": abstract.step}
        ),
        META: ocp.args.JsonRestore(),
      },
    )
    optimizer = out[OPTIMIZER]
    return State(optimizer["step"], out[PARAMS], optimizer["opt_state"]), out[META]

  def restore_params(self, step: int, abstract_params: dict) -> dict:
    """The parameters of a step alone."""
    return self._read(step, **{PARAMS: ocp.args.StandardRestore(abstract_params)})[PARAMS]

  def _read(self, step: int, **items):
    try:
      return self.manager.restore(step, args=ocp.args.Composite(**items))
    except (ValueError, OSError) as e:
      raise UserError(
        f"the checkpoint {self.folder / str(step)} cannot be read ({' '.join(str(e).split())[:200]} ...). If it "
        "is damaged, move that folder away: the step before it is used then. --debug shows all."
      ) from e

  def wait(self) -> None:
    """Until all that was begun is on disk; raises what went wrong with it."""
    self.manager.wait_until_finished()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.manager.close()


class _Best:
  """A policy of Orbax that keeps the best steps by the metric in their `meta`.

  Orbax's own BestN forgets the metrics when the folder is opened again, and then deletes the best step.
  """

  def __init__(self, metrics: dict[int, float], n: int, lower_is_better: bool):
    self.metrics, self.n, self.lower_is_better = metrics, n, lower_is_better

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    known = {c.step: self.metrics[c.step] for c in checkpoints if c.step in self.metrics}
    best = _ranked(known, self.lower_is_better)[: self.n]
    return [c.step in best for c in checkpoints]


def resolve_step(folder: Path, name: str, *, lower_is_better: bool = True) -> int:
  """The step that `latest`, `best` or a number means among the checkpoints of a folder."""
  folder = Path(folder)
  steps = sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit() and p.is_dir())
  if not steps:
    raise UserError(
      f"{folder} holds no checkpoint. Is this the workdir of a run that has saved one?"
    )
  if name == "latest":
    return steps[-1]
  if name == "best":
    known = _read_metrics(folder)
    if not known:
      raise UserError(
        f"{folder}: no checkpoint was saved with an evaluation; use latest or one of {steps}"
      )
    return _ranked(known, lower_is_better)[0]
  if name.isdigit() and int(name) in steps:
    return int(name)
  raise UserError(
    f"{folder} has no step {name!r}; it has latest, best and {', '.join(map(str, steps))}"
  )


def abstract_like(shapes, shardings):
  """Shapes with shardings, for restore."""
  return jax.tree.map(
    lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
  )


def rounds_since_best(values: Sequence[float | None], *, lower_is_better: bool) -> int:
  """How many values came after the best one; a value that is missing or not finite is no better.

  lower_is_better   3.0 2.0 2.5 2.0 -> 2
  """
  sign = -1 if lower_is_better else 1
  best, at = -math.inf, -1
  for i, value in enumerate(values):
    if value is not None and math.isfinite(value) and sign * value > best:
      best, at = sign * value, i
  return len(values) - 1 - at


def prefers_lower(metric: str) -> bool:
  """Whether smaller is better for "<set>/<language>/<metric>"."""
  return metric.split("/")[-1] in LOWER_IS_BETTER


def _ranked(metrics: dict[int, float], lower_is_better: bool) -> list[int]:
  """Steps, the best first; of equals the earlier one."""
  sign = 1 if lower_is_better else -1
  return sorted(metrics, key=lambda step: (sign * metrics[step], step))


def _read_metrics(folder: Path) -> dict[int, float]:
  """The metric of each step that was saved with one."""
  files = {int(p.name): _meta_file(p) for p in folder.glob("*") if p.name.isdigit()}
  found = {
    step: json.loads(file.read_text()).get("metric")
    for step, file in files.items()
    if file.exists()
  }
  return {step: metric for step, metric in found.items() if metric is not None}


def _meta_file(step_folder: Path) -> Path:
  return step_folder / META / "metadata"  # Orbax's name for an item of JSON
