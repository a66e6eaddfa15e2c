"""Checkpoints: Orbax for the bytes; here, what is kept, what is whole, what is newest and what is best."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from mlit_jax import checksums, runtime
from mlit_jax.errors import UserError
from mlit_jax.metrics import LOWER_IS_BETTER
from mlit_jax.redaction import redact
from mlit_jax.training import safety
from mlit_jax.training.digest import differing, digests
from mlit_jax.training.safety import DIGEST, Damaged
from mlit_jax.training.step import State

PARAMS, OPTIMIZER, META = "params", "optimizer", "meta"


@dataclasses.dataclass(frozen=True)
class _Begun:
  """A save that is on its way to disk."""

  step: int
  metric: float | None
  at: float  # time.monotonic()


class Checkpoints:
  """The steps saved under a folder. Saving is asynchronous: `wait` before relying on it.

  Parameters and optimizer state are items of their own, so that an export reads only the former. `meta`
  is JSON beside them: {"step", "plan", "trained", "metric", "digest" of every array, "seal" of all this}.

  alarm: called with (step, text) when a step cannot be saved; a UserError where there is none. say: is told what
  is on disk, and warn what was found damaged.
  """

  def __init__(
    self,
    folder: Path,
    *,
    keep_latest: int = 1,
    keep_best: int = 0,
    lower_is_better: bool = True,
    read_only: bool = False,
    alarm: Callable[[int, str], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = lambda text: None,
  ):
    self.folder = folder = Path(folder).resolve()
    self.keep_latest, self.keep_best = keep_latest, keep_best
    self.lower_is_better = lower_is_better
    self.alarm = _refuse if alarm is None else alarm
    self.say, self.warn = say, warn
    if not read_only:
      with runtime.together():
        if runtime.is_main():
          _make(folder)
    self.metrics = read_metrics(folder)
    self.writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
    self.begun: _Begun | None = None

  def save(self, state: State, meta: dict, metric: float | None) -> None:
    """Begin to save a step; what became of the one before is settled first."""
    self.wait()
    step = int(meta["step"])
    if self.has(step):
      return  # stopped again right where it went on
    metric = metric if metric is not None and math.isfinite(metric) else None
    try:
      with runtime.together():
        safety.check_can_save(self.folder, self._size(state))
    except (OSError, UserError) as e:
      self._failed(step, e, everywhere=True)
      return
    # A copy: Orbax writes it out later, while the loop adds to the ledger in `meta`.
    meta = copy.deepcopy(meta) | {"metric": metric, DIGEST: digests(state._asdict())}
    items = {
      PARAMS: ocp.args.StandardSave(state.params),
      OPTIMIZER: ocp.args.StandardSave({"opt_state": state.opt_state, "step": state.step}),
      META: ocp.args.JsonSave(checksums.sealed(meta)),
    }
    began = time.monotonic()
    try:
      self.writer.save(self.folder / str(step), args=ocp.args.Composite(**items))
    except (OSError, ValueError, RuntimeError) as e:
      self._failed(step, e)
      return
    self.begun = _Begun(step, metric, began)

  def poll(self) -> None:
    """Settle a save that has failed here, or is on disk (the first process alone looks), without waiting."""
    if self.begun is None:
      return
    try:
      self.writer.check_for_errors()
    except Exception as e:
      self._settle(e)
      return
    # Renamed to this when all is written.
    if runtime.is_main() and (self.folder / str(self.begun.step)).is_dir():
      self._settle()

  def wait(self) -> None:
    """Until all that was begun is on disk, or has failed and the alarm was raised."""
    if self.begun is not None:
      self._settle()

  def add_metric(self, step: int, metric: float | None) -> None:
    """The metric of a step that was saved before it was evaluated; it must be on disk."""
    if metric is None or not math.isfinite(metric):
      return
    self.metrics[step] = metric
    if not runtime.is_main():
      return
    file = _meta_file(self.folder / str(step))
    try:
      meta = checksums.read_sealed(file) | {"metric": metric}
      # What has no digest gets no seal: it would say that the arrays were as they had been saved.
      meta = checksums.sealed(meta) if DIGEST in meta else meta
      runtime.write_atomic(file, json.dumps(meta))
    except (OSError, ValueError) as e:
      self.warn(f"the metric of step {step} is not in its checkpoint: {safety.in_one_line(e)}")

  def steps(self) -> list[int]:
    """Those on disk."""
    return safety.steps_in(self.folder)

  def has(self, step: int) -> bool:
    """Whether a step is on disk, the same on all processes; a folder that cannot be read has none."""
    found = False
    with contextlib.suppress(OSError):
      found = step in self.steps()
    return runtime.main_says(found)

  def latest(self) -> int | None:
    return max(self.steps(), default=None)

  def restore_newest(self, abstract: State) -> tuple[int, State, dict] | None:
    """(step, state, meta) of the newest step that is as it was saved; None where none was ever saved.

    Damaged ones that are newer are moved to `quarantine`, but only once a whole one is found: if all are
    damaged, none is touched, and the run does not begin anew by itself.
    """
    damaged: dict[int, str] = {}
    while (step := self._next_after(damaged)) >= 0:
      try:
        state, meta = self._restore_twice(step, abstract)
      except UserError as e:
        damaged[step] = safety.in_one_line(e)
        continue
      self._set_aside(damaged, step)
      return step, state, meta
    if damaged:
      raise UserError(
        f"no checkpoint in {self.folder} can be used, and none was touched. "
        + "; ".join(f"step {step}: {why}" for step, why in damaged.items())
        + ". Restore one from a copy; or move the folder away to begin anew."
      )
    return None

  def restore(self, step: int, abstract: State) -> tuple[State, dict]:
    """(state, meta) of a step, verified; `abstract` has the shapes, dtypes and shardings wanted."""
    meta, out = self._read(
      step,
      **{
        PARAMS: ocp.args.StandardRestore(abstract.params),
        OPTIMIZER: ocp.args.StandardRestore(
          {"opt_state": abstract.opt_state, "step": abstract.step}
        ),
      },
    )
    optimizer = out[OPTIMIZER]
    state = State(optimizer["step"], out[PARAMS], optimizer["opt_state"])
    self._verify(step, meta, digests(state._asdict()))
    return state, {key: value for key, value in meta.items() if key != DIGEST}

  def restore_params(self, step: int, abstract_params: dict) -> dict:
    """The parameters of a step alone, verified."""
    meta, out = self._read(step, **{PARAMS: ocp.args.StandardRestore(abstract_params)})
    self._verify(step, meta, digests({PARAMS: out[PARAMS]}), (PARAMS,))
    return out[PARAMS]

  def _next_after(self, tried: Mapping[int, str]) -> int:
    """The newest step that was not tried yet, the same on all processes; -1 if there is none."""
    return runtime.main_says(max(set(self.steps()) - set(tried), default=-1))

  def _restore_twice(self, step: int, abstract: State) -> tuple[State, dict]:
    """A network disk may fail once; what fails twice is damaged."""
    with contextlib.suppress(UserError):
      return self.restore(step, abstract)
    return self.restore(step, abstract)

  def _read(self, step: int, **items) -> tuple[dict, ocp.args.Composite]:
    """(meta, the items) of a step; what cannot be read on one process is damaged on all."""
    folder = self.folder / str(step)
    with runtime.together():
      try:
        meta = checksums.read_sealed(_meta_file(folder))
        if meta["step"] != step:
          raise ValueError(f"it is of step {meta['step']}")
        # The handler and not the checkpointer: that would wait for a process which has failed.
        return meta, self.writer.handler.restore(folder, args=ocp.args.Composite(**items))
      except (jax.errors.JaxRuntimeError, MemoryError):
        raise  # of this machine, not of the files
      except Exception as e:
        raise Damaged(
          f"the checkpoint {folder} cannot be read ({safety.in_one_line(e)}). If it is damaged, use another step. "
          "--debug shows all."
        ) from e

  def _verify(self, step: int, meta: dict, found: dict, names: tuple[str, ...] = ()) -> None:
    if DIGEST not in meta:
      self.say(f"step {step} was saved without a digest: it is not verified")
      return
    wrong = differing(meta[DIGEST], found, names)
    if wrong:
      more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
      raise Damaged(
        f"the checkpoint {self.folder / str(step)} is not as it was saved: {', '.join(wrong[:3])}{more}. Use "
        "another step."
      )

  def _set_aside(self, damaged: Mapping[int, str], used: int) -> None:
    with runtime.together():
      for step, why in damaged.items() if runtime.is_main() else ():
        folder = self.folder / str(step)
        try:
          there = safety.set_aside(folder, why)
        except OSError as e:
          raise UserError(f"{folder} is damaged and cannot be moved away: {e}. Move it.") from e
        self.warn(f"step {step} is damaged and was moved to {there}; step {used} is used. {why}")
    for step in damaged:
      self.metrics.pop(step, None)

  def _size(self, state: State) -> int:
    """Bytes that a save will take: those of the last, if there is one."""
    latest = self.latest()
    if latest is not None:
      return safety.size_of(self.folder / str(latest))
    return sum(x.nbytes for x in jax.tree.leaves(state))

  def _settle(self, failed: Exception | None = None) -> None:
    """Wait for the save that was begun; say that it is on disk, or why it is not."""
    begun, self.begun = self.begun, None
    folder = self.folder / str(begun.step)
    try:
      if failed is not None:
        raise failed
      self.writer.wait_until_finished()
      if runtime.is_main():
        safety.make_durable(folder)
    except Exception as e:
      self._failed(begun.step, e)
      return
    if begun.metric is not None:
      self.metrics[begun.step] = begun.metric
    if runtime.is_main():
      size, seconds = safety.in_words(safety.size_of(folder)), time.monotonic() - begun.at
      self.say(f"step {begun.step} is durable: {size} on disk after {seconds:,.1f} s")
      self._prune()

  def _failed(self, step: int, error: Exception, *, everywhere: bool = False) -> None:
    """Raise the alarm. What failed here alone (not `everywhere`) the first process cannot tell, so this one does."""
    if runtime.is_main():
      safety.clean(self.folder)  # what was written takes room, and nothing will end it
    latest = None
    with contextlib.suppress(OSError):
      latest = self.latest()
    last = (
      f"the last good one is step {latest}"
      if latest is not None
      else f"no step is in {self.folder}"
    )
    why = safety.in_one_line(error)
    text = f"step {step} is not saved, {last}; the next save tries again: {why}"
    if not everywhere and not runtime.is_main():
      runtime.say_now(f"warning: process {jax.process_index()}: {redact(text)}")
    self.alarm(step, text)

  def _prune(self) -> None:
    steps = self.steps()
    kept = retained(
      steps, self.metrics, self.keep_latest, self.keep_best, lower_is_better=self.lower_is_better
    )
    for step in sorted(set(steps) - kept):
      try:
        safety.remove(self.folder / str(step))
      except OSError as e:
        self.warn(f"step {step} cannot be deleted: {safety.in_one_line(e)}")

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    try:
      with contextlib.nullcontext() if kind is None else contextlib.suppress(UserError):
        self.wait()
    finally:
      with contextlib.suppress(Exception):  # what failed was said
        self.writer.close()


def retained(
  steps: Sequence[int],
  metrics: Mapping[int, float],
  keep_latest: int,
  keep_best: int,
  *,
  lower_is_better: bool,
) -> set[int]:
  """The latest and the best of these steps; a metric that is not finite is none."""
  known = {step: metrics[step] for step in steps if math.isfinite(metrics.get(step, math.nan))}
  best = _ranked(known, lower_is_better)[:keep_best]
  return {*sorted(steps)[len(steps) - min(keep_latest, len(steps)) :], *best}


def read_step_meta(folder: Path, step: int) -> dict:
  """The `meta` of a step; Damaged where it is not as it was written."""
  try:
    return checksums.read_sealed(_meta_file(Path(folder) / str(step)))
  except (OSError, ValueError) as e:
    raise Damaged(f"step {step}: {safety.in_one_line(e)}") from e


def read_metrics(folder: Path) -> dict[int, float]:
  """The metric of each step that was saved with one; of a damaged step there is none."""
  found = {}
  for step in safety.steps_in(Path(folder)):
    with contextlib.suppress(Damaged):
      metric = read_step_meta(folder, step).get("metric")
      if isinstance(metric, int | float) and math.isfinite(metric):
        found[step] = metric
  return found


def resolve_step(folder: Path, name: str, *, lower_is_better: bool = True) -> int:
  """The step that `latest`, `best` or a number means among the checkpoints of a folder."""
  folder = Path(folder)
  steps = safety.steps_in(folder)
  if not steps:
    raise UserError(
      f"{folder} holds no checkpoint. Is this the workdir of a run that has saved one?"
    )
  if name == "latest":
    return steps[-1]
  if name == "best":
    known = read_metrics(folder)
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


def _make(folder: Path) -> None:
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f"cannot make {folder}: {e}. Choose another --workdir.") from e
  safety.clean(folder)


def _refuse(step: int, text: str) -> None:
  raise UserError(text)


def _meta_file(step_folder: Path) -> Path:
  return step_folder / META / "metadata"  # Orbax's name for an item of JSON
