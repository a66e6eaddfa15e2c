"""The loop: evaluate and save if due, take a batch, dispatch the step, read the step before."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from mlit_jax import mesh as meshes
from mlit_jax.batch import Batch, check_batch
from mlit_jax.routing import balance_loss
from mlit_jax.runtime import Stopped
from mlit_jax.signals import StopSignal
from mlit_jax.training.clock import Clock
from mlit_jax.training.console import Meter, Terminal
from mlit_jax.training.profile import Profile
from mlit_jax.training.step import State, StepMetrics

MUCH_WAITING = 0.02  # share of the time of steps, from which waiting for data is shown


@dataclasses.dataclass
class Run:
  """All that the loop needs, built above it. Steps are numbered by how many are done."""

  mesh: jax.sharding.Mesh
  strata: list[tuple[str, str]]  # (language, source) of each number in Batch.language
  total_steps: int
  rows: int
  max_length: int
  train_step: Callable  # (state, batch on the mesh) -> (state, StepMetrics)
  waits: Callable  # step -> whether train_step returns only once it is computed
  batches: Iterator[Batch]
  learning_rate: Callable  # step -> float
  step_flops: Callable  # step -> float
  peak_flops: float | None
  evaluate: Callable  # (step, params) -> what "best" goes by: then the step is saved; or None
  save: Callable  # (state, trained, metric) -> None: begins to
  poll: Callable  # () -> None: says what became of a save, if that is known
  settle: Callable  # step -> None: waits for its save; raises NotSaved if it is not on disk then
  has_stalled: Callable  # step -> whether the evaluations up to it say that the run should end
  log: Callable  # (step, {name: value}) -> None
  stop: StopSignal
  at: Callable  # step -> None: is told how many steps are done and read
  note: Callable | None  # (step, batch on the mesh), for `log.batches`
  terminal: Terminal
  clock: Clock
  profile: Profile
  watch: (
    Callable  # (step, StepMetrics on the host, batch, params): raises where numbers end the run
  )
  trained: dict[str, dict[str, int]]  # the ledger's counts so far; grows with every step read
  skipped: dict  # the same, of steps that were not applied
  eval_every: int
  save_every: int
  log_every: int


class Pending(NamedTuple):
  """A step that is on its way."""

  step: int
  metrics: StepMetrics
  batch: Batch  # on the mesh


def train(run: Run, state: State) -> State:
  """Train from the state's step to the end. Raises Stopped after a signal, with the state saved."""
  start = step = int(state.step)
  pending: Pending | None = None
  meter = Meter()
  stalled = run.has_stalled(step)
  with (
    jax.set_mesh(run.mesh),
    run.terminal.bar(run.total_steps, step) as bar,
    # A silent copy between host and device stops the run: it would wait for the step.
    jax.transfer_guard("disallow"),
    contextlib.closing(run.profile),
  ):
    while step < run.total_steps and not stalled:
      run.at(step - (pending is not None))
      stopping = run.stop.agreed()
      if stopping or _due(step, start, run.eval_every) or _due(step, start, run.save_every):
        _read(run, pending, meter, state)
        pending = None
        metric = None
        with jax.transfer_guard("allow"):
          if not stopping and _due(step, start, run.eval_every):
            metric = run.evaluate(step, state.params)
            stalled = run.has_stalled(step)
            stopping = (
              run.stop.agreed()
            )  # asked for meanwhile; the evaluation may have been left out
          if stopping or _due(step, start, run.save_every) or metric is not None:
            run.save(state, run.trained, metric)
      if stalled:
        break
      if stopping:
        with jax.transfer_guard("allow"):
          run.settle(step)
        raise Stopped(
          f"{run.stop.name or 'SIGTERM'}: saved step {step} of {run.total_steps}; run again to go on"
        )
      with run.clock.spent("data_wait"):
        batch = next(run.batches, None)
      assert batch is not None, f"the plan ended before step {step} of {run.total_steps}"
      with run.clock.spent("step"), run.profile.step(step) as traced:
        there = _put(batch, run, step)
        if run.waits(step):  # the one before would be read after it, and given its time
          _read(run, pending, meter, state)
          pending = None
        state, metrics = run.train_step(state, there)
        traced(metrics)
        _read(run, pending, meter, state)
      pending = Pending(step, metrics, there)
      step += 1
      bar.update(step)
      run.poll()
      if step == start + 1:
        _first_step(run, pending)
    _read(run, pending, meter, state)
    _log(run, step, meter)
  return state


def _first_step(run: Run, pending: Pending) -> None:
  """Wait for it once, to say what a user waits for: the first is the slowest."""
  with run.clock.spent("step"):
    jax.block_until_ready(pending.metrics)
  run.stop.early = False  # from here on there is something to save
  run.terminal.line(f"first step after {run.clock.total():,.1f} s: {run.clock.line()}")


def _due(step: int, start: int, every: int) -> bool:
  """Whether something stands before this step; what stood where the run (re)started is done."""
  return every > 0 and step > start and step % every == 0


def _put(batch: Batch, run: Run, step: int):
  check_batch(batch, len(meshes.process_rows(run.mesh, run.rows)), run.max_length)
  with jax.transfer_guard("allow"):
    there = meshes.put_batch(batch, run.mesh, run.rows)
    if run.note is not None:
      run.note(step, there)
    return there


def _read(run: Run, pending: Pending | None, meter: Meter, state: State) -> None:
  """Wait for a dispatched step and add up what it says; `state` is the newest, after it or the one behind."""
  if pending is None:
    return
  step = pending.step
  with run.clock.spent("step"):
    told = jax.device_get(pending.metrics)
  with run.clock.spent("other"):
    run.watch(step, told, pending.batch, state.params)
  sums, counts = told.sums, run.trained if told.finite else run.skipped
  names = {"examples": sums.examples, "tokens": sums.tokens, "trained_tokens": sums.trained}
  for name, values in names.items():
    for (lang, source), value in zip(run.strata, values, strict=True):
      if value:
        key = f"{lang}/{source}"
        counts[name][key] = counts[name].get(key, 0) + int(value)
  if told.finite:
    useful = run.step_flops(step) if run.peak_flops else 0.0
    meter.add(sums, float(told.grad_norm), useful, run.rows * run.max_length)
  if (step + 1) % run.log_every == 0:
    _log(run, step + 1, meter)


def _log(run: Run, step: int, meter: Meter) -> None:
  """One event and one line for the steps since the last."""
  if not meter.steps:
    return
  sums, split = meter.sums, run.clock.split()
  # The speed is that of training: what else was done meanwhile stands beside it.
  seconds = max(1e-9, split.get("step", 0.0) + split.get("data_wait", 0.0))
  trained, tokens = int(sums.trained.sum()), int(sums.tokens.sum())
  per_lang = {}
  for lang in dict.fromkeys(lang for lang, _ in run.strata):
    here = [i for i, (of, _) in enumerate(run.strata) if of == lang]
    if mine := int(sums.trained[here].sum()):
      per_lang[lang] = (float(sums.nll[here].sum()) / mine, mine / trained)
  loss = float(sums.nll.sum()) / max(1, trained)
  rate = float(run.learning_rate(step - 1))
  event = {
    "train/loss": loss,
    **{f"train/loss/{lang}": value for lang, (value, _) in per_lang.items()},
    **{f"train/share/{lang}": share for lang, (_, share) in per_lang.items()},
    "train/tokens_per_second": tokens / seconds,
    "train/trained_tokens_per_second": trained / seconds,
    "train/padding": 1 - tokens / meter.slots,
    "train/grad_norm": meter.norm,
    "train/learning_rate": rate,
  }
  event |= {f"time/{kind}": spent for kind, spent in split.items()}
  if sums.routing:
    event["train/router_loss"] = float(balance_loss(sums.routing))
  if run.peak_flops:
    event["train/mfu"] = meter.flops / seconds / run.peak_flops
  run.log(step, event)
  worst = max(per_lang, key=lambda lang: per_lang[lang][0], default="")
  parts = [f"step {step:>{len(str(run.total_steps))}}/{run.total_steps}", f"loss {loss:.3f}"]
  if len(per_lang) > 1:
    parts.append(f"worst {worst} {per_lang[worst][0]:.3f}")
  parts += [f"{tokens / seconds:,.0f} tokens/s", f"grad {meter.norm:.2f}", f"lr {rate:.2e}"]
  if run.peak_flops:
    parts.append(f"mfu {event['train/mfu']:.1%}")
  waited = split.get("data_wait", 0.0) / seconds
  if waited > MUCH_WAITING:
    parts.append(f"waits for data {waited:.0%}")
  run.terminal.line("  ".join(parts))
  meter.reset()
