"""A training job: the parts of a run, put together for the loop."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mlit_jax import mesh as meshes
from mlit_jax import runtime
from mlit_jax.checks import check_best
from mlit_jax.config import nested
from mlit_jax.data import ledger as ledgers
from mlit_jax.data.loader import load_batches
from mlit_jax.errors import NotSaved
from mlit_jax.evals import summary
from mlit_jax.evals.evaluator import Evaluator
from mlit_jax.evals.suites.suite import metric_names
from mlit_jax.model import decoder
from mlit_jax.opening import Data
from mlit_jax.redaction import redact, redact_all
from mlit_jax.signals import Interrupted
from mlit_jax.stepping import make_stepping
from mlit_jax.training import card, flops, report, trackers, workdir
from mlit_jax.training.batch_log import BatchLog
from mlit_jax.training.checkpoint import (
  Checkpoints,
  prefers_lower,
  rounds_since_best,
)
from mlit_jax.training.events import Events
from mlit_jax.training.loop import Run, train
from mlit_jax.training.optimizer import OptimizerConfig, make_schedule
from mlit_jax.training.profile import Profile
from mlit_jax.training.recheck import Recheck
from mlit_jax.training.spikes import Spikes
from mlit_jax.training.step import State
from mlit_jax.training.watch import NONFINITE, SPIKES, Example, Watch
from mlit_jax.weights import load

# Of a program that runs once: LLVM takes a third of the time, the bits are the same.
_ONCE = {"xla_backend_optimization_level": 1}
# Computed twice at each start of a run on several devices of one CPU without a loop over layers: on one machine XLA did not
# give the same numbers twice there, for a reason that was not found (docs/log.md).
_DOUBTED_STEPS = 2


class Job:
  """One training job: the parts of the run, put together for the loop."""

  def __init__(self, c, root, cfg, mesh, tokenizer, data: Data, terminal, clock, stop, watchdog):
    self.c, self.root, self.cfg, self.mesh = c, root, cfg, mesh
    self.terminal, self.clock, self.stop, self.watchdog = terminal, clock, stop, watchdog
    self.events, self.failed = Events(root, terminal.warning), ""
    self.tokenizer, self.encoded = tokenizer, data.encoded
    self.plan, self.ledger = data.plan, data.ledger
    encoded, plan, sets, suites = data.encoded, data.plan, data.sets, data.suites
    self.dtype = jnp.dtype(c.model.dtype)
    schedule = make_schedule(OptimizerConfig(**c.optimizer), plan.steps)
    self.rates = np.asarray(jax.vmap(schedule)(jnp.arange(plan.steps)))
    self.stepping = make_stepping(
      c,
      cfg,
      mesh,
      total_steps=plan.steps,
      num_languages=len(encoded.strata),
      max_segments=plan.most_in_a_row,
    )
    self.best_metric = c.checkpoint.best or default_best(sets, suites)
    of_sets = {s.name: (s.encoded.languages, bool(s.questions)) for s in sets}
    check_best(self.best_metric, of_sets, suites)
    self.evaluator = Evaluator(
      cfg,
      mesh,
      tokenizer,
      sets,
      rows=c.batch.rows,
      max_new_tokens=c.eval.max_new_tokens,
      temperature=c.eval.temperature,
      top_p=c.eval.top_p,
      seed=c.seed,
      dtype=self.dtype,
      languages=plan.languages,
      suites=suites,
      max_length=c.batch.max_length,
      max_seconds=c.eval.max_seconds,
      lid=c.eval.lid,
      lid_key="eval.lid",
      beat=self.beat,
    )

  def run(self, base) -> None:
    """Restore or begin, train, evaluate, and write what the run leaves behind."""
    c, terminal = self.c, self.terminal
    with (
      Checkpoints(
        self.root / "checkpoints",
        keep_latest=c.checkpoint.keep_latest,
        keep_best=c.checkpoint.keep_best,
        lower_is_better=prefers_lower(self.best_metric),
        alarm=self.alarm,
        say=terminal.line,
        warn=terminal.warning,
      ) as checkpoints,
      runtime.fail_fast(),
    ):
      self.checkpoints = checkpoints
      with self.clock.spent("weights"):
        state, trained, self.skipped = self.restore_or_begin(base)
      first = int(state.step)
      self.trackers = self.open_trackers(first)
      self.log_parameters()
      if self.is_evaluation_due(first):
        self.evaluate(first, state.params)
      loop = self.loop(first, trained)
      self.clock.started()
      state = train(loop, state)
      self.save_last(state, trained)
    self.leave_files(int(state.step), trained)

  def loop(self, first: int, trained: dict) -> Run:
    """What training needs from step `first` on."""
    c, plan, recheck = self.c, self.plan, self.recheck(first)
    return Run(
      mesh=self.mesh,
      strata=self.encoded.strata,
      total_steps=plan.steps,
      rows=c.batch.rows,
      max_length=c.batch.max_length,
      train_step=recheck or self.stepping.train_step,
      waits=recheck.is_due if recheck else lambda step: False,
      batches=load_batches(self.encoded, plan, first, meshes.process_rows(self.mesh, c.batch.rows)),
      learning_rate=self.rates.__getitem__,
      step_flops=self.step_flops,
      peak_flops=flops.peak_flops(c.log.peak_tflops),
      evaluate=self.evaluate,
      save=self.save,
      poll=self.poll,
      settle=self.settle,
      has_stalled=self.has_stalled,
      log=self.log,
      stop=self.stop,
      at=self.watchdog.at,
      note=self.batch_log(first),
      terminal=self.terminal,
      clock=self.clock,
      profile=Profile(self.root / "profile", c.profile.steps, self.terminal.line),
      watch=self.watch(first),
      trained=trained,
      skipped=self.skipped,
      eval_every=c.eval.every_steps,
      save_every=c.checkpoint.every_steps,
      log_every=c.log.every_steps,
    )

  def save_last(self, state: State, trained: dict) -> None:
    """The last step, evaluated and on disk; Stopped where the run is to stop before it is."""
    done = int(state.step)
    with self.clock.spent("saving"):
      self.checkpoints.wait()
    if self.checkpoints.has(done):
      return
    evaluated = runtime.main_says(workdir.was_evaluated(self.root, done))
    self.save(state, trained, None if evaluated else self.evaluate(done, state.params))
    if self.stop.stopping:
      self.settle(done)
      raise runtime.Stopped(
        f"{self.stop.name or 'SIGTERM'}: saved the last step, {done}; run again to evaluate it and to end the run"
      )
    with self.clock.spent("saving"):
      self.checkpoints.wait()

  def leave_files(self, done: int, trained: dict) -> None:
    """The files that a run ends with; NotSaved where they, or events, could not be written."""
    missing = ""
    try:
      self.finish(trained, done)
    except OSError as e:
      missing = f"the files that a run ends with are not whole: {e}"
    self.trackers.close()
    self.settle(done)
    if self.events.held:
      missing = f"{len(self.events.held)} events are not in {self.events.path}"
    if missing:
      raise NotSaved(
        f"{missing}. Step {done} is saved: mend {self.root}, then run again to end it."
      )

  def restore_or_begin(self, base) -> tuple[State, dict, dict]:
    """The newest checkpoint of this run, or its first state; and what was trained on and skipped so far."""
    skipped = {ledgers.STEPS: []} | {name: {} for name in ledgers.TRAINED}
    found = self.checkpoints.restore_newest(self.stepping.state_shapes())
    if found is None:
      workdir.forget_after(self.root, -1)
      return self.begin(base), {name: {} for name in ledgers.TRAINED}, skipped
    step, state, meta = found
    workdir.check_same_plan(self.root, meta["plan"], self.plan.hash)
    workdir.forget_after(self.root, step)
    self.terminal.line(f"resumed at step {step} of {self.plan.steps}")
    return state, meta["trained"], meta.get("skipped", skipped)

  def is_evaluation_due(self, first: int) -> bool:
    """Whether the step that this run (re)starts at is to be evaluated before it goes on."""
    if first == 0:
      return self.c.eval.at_start
    every = self.c.eval.every_steps
    # Done already, but where a signal to stop left it out.
    due = (every > 0 and first % every == 0) or first == self.plan.steps
    return due and not runtime.main_says(workdir.was_evaluated(self.root, first))

  def begin(self, base) -> State:
    """Parameters of the base model, or fresh ones; an optimizer that has seen nothing."""
    shardings, dtype = self.stepping.shardings, self.stepping.param_dtype
    if base:
      with self.terminal.transfer("import") as progress:
        params = load.load_params(
          base.folder, self.cfg, shardings.params, dtype=dtype, progress=progress
        )
    else:
      init = jax.jit(
        lambda key: decoder.init_params(self.cfg, key, dtype),
        out_shardings=shardings.params,
        compiler_options=_ONCE if meshes.platform(self.mesh) == "cpu" else None,
      )
      params = init(jax.random.key(self.c.seed))
    return self.stepping.begin(params)

  def evaluate(self, step: int, params) -> float | None:
    """All sets and languages at this step: files, events and lines; returns the metric for `best`."""
    if not (self.evaluator.sets or self.evaluator.suites):
      return None
    with self.clock.spent("evaluation"):
      try:
        return self._evaluate(step, params)
      except Interrupted:
        self.terminal.line(f"step {step} is evaluated when the run goes on")
        return None

  def beat(self) -> None:
    """A part of an evaluation is done; Interrupted if the run is to stop."""
    self.watchdog.beat()
    self.stop.check()

  def _evaluate(self, step: int, params) -> float | None:
    figures, records = self.evaluator.run(params)
    flat = summary.flatten(figures)
    metric = flat[f"eval/{self.best_metric}"] if self.c.checkpoint.keep_best else None
    if runtime.is_main():
      try:
        summary.write_evaluation(
          self.root / "evals" / str(step), figures, records, model=f"{self.root}@{step}"
        )
      except OSError as e:
        self.alarm(step, f"the evaluation of step {step} is not in evals/{step}: {e}")
    if step in self.checkpoints.steps():  # saved on a signal, before this evaluation
      self.checkpoints.add_metric(step, metric)
    self.log(step, flat)  # last: by this event a restart knows that all is written
    for line in self.evaluator.cut:
      self.terminal.line(line)
    for name, by_lang in figures.items():
      self.terminal.line(card.eval_line(step, self.plan.steps, name, by_lang))
    return metric

  def save(self, state: State, trained: dict, metric: float | None) -> None:
    meta = {"step": int(state.step), "plan": self.plan.hash, "trained": trained}
    if self.skipped[ledgers.STEPS]:
      meta["skipped"] = self.skipped
    with self.clock.spent("saving"):
      self.checkpoints.save(state, meta, metric)

  def alarm(self, step: int, text: str) -> None:
    """What could not be written, said at once; the run goes on from memory."""
    self.terminal.warning(text)
    self.events.log(step, {"alarm": redact(text)})
    self.failed = text

  def poll(self) -> None:
    if self.checkpoints.begun:
      with self.clock.spent("saving"):
        self.checkpoints.poll()

  def settle(self, step: int) -> None:
    """Until the save of this step has ended; NotSaved if the step is not on disk then."""
    with self.clock.spent("saving"):
      self.checkpoints.wait()
    if not self.checkpoints.has(step):
      raise NotSaved(
        f"step {step} of {self.plan.steps} could not be saved: {self.failed}. Mend that, then run again to go on "
        "from the last good step."
      )

  def open_trackers(self, first: int) -> trackers.Trackers:
    """Those of the first process; the others have none."""
    if not runtime.is_main():
      return trackers.Trackers({}, self.terminal.line)
    return trackers.open_trackers(
      self.root,
      self.c.log.trackers,
      first_step=first,
      config=redact_all(nested(self.c)),
      say=self.terminal.warning,
    )

  def log(self, step: int, event: dict) -> None:
    """One event, into metrics.jsonl and to all trackers."""
    self.events.log(step, event)
    self.trackers.log(step, event)

  def batch_log(self, first: int) -> Callable | None:
    """What `log.batches` writes for each batch, if it is asked for."""
    if not self.c.log.batches:
      return None
    return BatchLog(self.root, first, self.places, self.terminal.warning).note

  def places(self, step: int) -> list[list[str]]:
    """Where the examples of each row of a step come from."""
    return [[self.encoded.place(i) for i in row] for row in self.plan.rows(step)]

  def examples(self, step: int) -> list[list[Example]]:
    """Those of each row of a step."""
    of = self.encoded
    return [
      [Example(of.place(i), of.languages[of.language[i]], int(of.trained_counts[i])) for i in row]
      for row in self.plan.rows(step)
    ]

  def recheck(self, first: int) -> Recheck | None:
    """The train step with some computed twice, as the config says or where need be; None: none is."""
    every, doubted = self.c.debug.recheck_every, self.stepping.unrolled and self.mesh.size > 1
    opening = _DOUBTED_STEPS if doubted and every >= 0 else 0
    if every <= 0 and not opening:
      return None
    step, say = self.stepping.train_step, self.terminal.line
    return Recheck(
      step, self.mesh, self.clock, say, first=first, every=max(0, every), opening=opening
    )

  def watch(self, first: int) -> Watch:
    c, warn = self.c, self.terminal.warning
    languages = [lang for lang, _ in self.encoded.strata]
    begin = max(first, c.optimizer.warmup_steps)
    return Watch(
      languages=languages,
      policy=c.optimizer.nonfinite,
      max_skipped=c.optimizer.max_skipped,
      skipped=self.skipped,
      spikes=Spikes(languages, height=c.log.spikes, first=begin) if c.log.spikes else None,
      examples=self.examples,
      row_losses=self.stepping.row_losses,
      nonfinite_file=Events(self.root, warn, NONFINITE),
      spikes_file=Events(self.root, warn, SPIKES),
      log=self.log,
      warn=warn,
    )

  def log_parameters(self) -> None:
    """One line per parameter into parameters.txt: path, shape, where it lies."""
    if runtime.is_main():
      lines = workdir.parameter_lines(self.stepping.specs, self.stepping.shardings.params)
      runtime.write_atomic(self.root / "parameters.txt", "\n".join(lines) + "\n")
    self.terminal.line(
      f"{decoder.count_params(self.cfg):,} parameters, mesh "
      + " ".join(f"{axis}={size}" for axis, size in self.mesh.shape.items())
      + f", {self.plan.steps} steps of {self.c.batch.rows} x {self.c.batch.max_length} tokens"
    )

  def step_flops(self, step: int) -> float:
    """Useful arithmetic of a step."""
    rows = np.concatenate(self.plan.rows(step))
    trained = int(self.encoded.trained_counts[rows].sum())
    return flops.step_flops(self.cfg, self.encoded.lengths[rows], trained)

  def has_stalled(self, step: int) -> bool:
    """Whether the best metric has not got better for `eval.patience` evaluations, and say so."""
    patience = self.c.eval.patience
    if not patience:
      return False
    values = workdir.measured(self.root, f"eval/{self.best_metric}", step)
    since = rounds_since_best(
      list(values.values()), lower_is_better=prefers_lower(self.best_metric)
    )
    stalled = runtime.main_says(len(values) > patience and since >= patience)
    if stalled:
      self.terminal.line(
        f"ends at step {step} of {self.plan.steps}: {self.best_metric} has not got better for {patience} "
        "evaluations (eval.patience)"
      )
    return stalled

  def finish(self, trained: dict, done: int) -> None:
    """The ledger with both columns, the card, and what to do next; `done` steps were trained."""
    due = None
    if done < self.plan.steps:
      due = ledgers.planned_sums(self.encoded, self.plan, done)
    ledger = ledgers.with_trained(self.ledger, trained, due, self.skipped) | {"steps_done": done}
    workdir.keep_ledger(self.root, ledger)
    self.terminal.table(card.ledger_table(ledger))
    for line in card.judged_line(ledger) + card.skipped_line(ledger):
      self.terminal.line(line)
    before = workdir.read_evaluation(self.root, 0)
    last = workdir.read_evaluation(self.root, done)
    for name in last:
      self.terminal.table(summary.table(last, name))
    if runtime.is_main():
      card.write_card(self.root, self.c, ledger, before, last)
      report.write_report(self.root)
    wrong = ledgers.differences(ledger)
    assert not wrong, f"the run did not train on what the plan says: {'; '.join(wrong)}"
    if self.clock.seconds["step"]:
      self.log(done, {"goodput": self.clock.goodput()})
      self.terminal.line(f"\ntime    {self.clock.total():,.0f} s: {self.clock.line()}")
    self.terminal.line(f"\nchat    python -m mlit_jax.generate --model {self.root}")
    self.terminal.line(
      f"export  python -m mlit_jax.export --workdir {self.root} --out {self.root}/export"
    )


def default_best(sets, suites) -> str:
  """What `checkpoint.best` goes by where the config does not say."""
  if sets:
    return f"{sets[0].name}/mean/loss"
  return f"{suites[0].name}/mean/{metric_names(suites[0])[0]}" if suites else ""
