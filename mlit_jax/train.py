"""Tune a decoder on a mixture of languages.

  python -m mlit_jax.train --config configs/quickstart.py --workdir runs/quickstart
  python -m mlit_jax.train --config configs/quickstart.py --config.optimizer.learning_rate=1e-3

The same command again goes on where the run stopped. Exit codes: 0 done, 2 something to mend (one message),
75 stopped by a signal after saving, 1 a fault of ours.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mlit_jax import mesh as meshes
from mlit_jax import runtime
from mlit_jax.config import load_config
from mlit_jax.data import ledger as ledgers
from mlit_jax.data.encode import Encoded, encode_conversations
from mlit_jax.data.evalset import EvalSet, make_eval_set
from mlit_jax.data.loader import load_batches
from mlit_jax.data.plan import Plan, make_plan
from mlit_jax.data.rows import RowSet, read_sources
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.errors import UserError
from mlit_jax.evals import summary
from mlit_jax.evals.evaluator import Evaluator
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig, from_hf, from_scratch, to_hf
from mlit_jax.training import card, console, flops, report, workdir
from mlit_jax.training.checkpoint import (
  LOWER_IS_BETTER,
  Checkpoints,
  abstract_like,
  prefers_lower,
)
from mlit_jax.training.loop import Run, train
from mlit_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from mlit_jax.training.step import State, make_train_step, state_shardings
from mlit_jax.weights import load, source


def main() -> int:
  parser = argparse.ArgumentParser(
    "mlit_jax.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", required=True, help="Python file with get_config()")
  parser.add_argument("--workdir", default="", help="where the run is written (config key workdir)")
  parser.add_argument("--debug", action="store_true", help="tracebacks for user errors too")
  args, overrides = parser.parse_known_args()
  return runtime.run_main(lambda: run(args.config, args.workdir, overrides), debug=args.debug)


def run(file: str, folder: str, overrides: list[str]) -> None:
  """The whole run: check, build, train, evaluate, write."""
  c = load_config(file, overrides)
  if folder:
    c.workdir = folder
  check_config(c)
  runtime.start()
  terminal = console.Terminal(shown=runtime.is_main())
  root = Path(c.workdir)
  with runtime.locked(root, exclusive=runtime.is_main()):
    workdir.check_free(root, c)
    base = source.read_source(c.model.path) if c.model.path else None
    tokenizer = open_tokenizer(c, base)
    rows, encoded, plan = open_data(c, tokenizer, root, terminal)
    sets = open_eval_sets(c, tokenizer)
    cfg = from_hf(base.config) if base else from_scratch(dict(c.model.sizes), tokenizer.vocab_size)
    check_vocabulary(cfg, tokenizer)
    if base:
      load.check_names(base.folder, cfg)
    mesh = meshes.make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tensor)
    check_mesh(c, mesh)
    ledger = ledgers.make_ledger(rows, encoded, plan, mixture=c.data.mixture, seed=c.seed)
    workdir.check_plan(root, plan.hash)
    job = Job(c, root, cfg, mesh, tokenizer, encoded, plan, sets, ledger, terminal)
    # All is checked that can be: from here on, files are written.
    workdir.write_config(root, c)
    workdir.keep_ledger(root, ledger)
    terminal.table(card.plan_table(ledger))
    workdir.keep_tokenizer(root, tokenizer)
    if base:
      if runtime.is_main():
        source.save_source_copy(base, root)
    else:
      hf = to_hf(
        cfg,
        max_length=c.batch.max_length,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
      )
      workdir.keep_base(root, hf, tokenizer)
    job.run(base)


class Job:
  """One training job: the parts of the run, put together for the loop."""

  def __init__(self, c, root, cfg, mesh, tokenizer, encoded, plan, sets, ledger, terminal):
    self.c, self.root, self.cfg, self.mesh, self.terminal = c, root, cfg, mesh, terminal
    self.tokenizer, self.encoded, self.plan, self.ledger = tokenizer, encoded, plan, ledger
    self.dtype = jnp.dtype(c.model.dtype)
    optimizer_config = OptimizerConfig(**c.optimizer)
    schedule = make_schedule(optimizer_config, plan.steps)
    self.rates = np.asarray(jax.vmap(schedule)(jnp.arange(plan.steps)))
    self.optimizer = make_optimizer(optimizer_config, plan.steps)
    self.specs = decoder.param_specs(cfg)
    self.shapes = decoder.param_shapes(cfg)
    self.param_shardings = meshes.param_shardings(self.specs, mesh)
    self.shardings = state_shardings(self.optimizer, self.param_shardings, self.shapes, mesh)
    self.best_metric = c.checkpoint.best or (f"{sets[0].name}/mean/loss" if sets else "")
    check_best(self.best_metric, sets)
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
      languages=[lang for lang, count in plan.counts.items() if count],
    )

  def run(self, base) -> None:
    """Restore or begin, train, evaluate, and write what the run leaves behind."""
    c, plan, terminal = self.c, self.plan, self.terminal
    with Checkpoints(
      self.root / "checkpoints",
      keep_latest=c.checkpoint.keep_latest,
      keep_best=c.checkpoint.keep_best,
      lower_is_better=prefers_lower(self.best_metric),
    ) as checkpoints:
      self.checkpoints = checkpoints
      state, trained = self.restore_or_begin(base)
      first = int(state.step)
      self.log_parameters()
      every = c.eval.every_steps
      due = first % every == 0 if first and every else c.eval.at_start and first == 0
      if due and not (first and workdir.read_evaluation(self.root, first)):
        self.evaluate(first, state.params)  # the first, or the one that a signal to stop left out
      loop = Run(
        mesh=self.mesh,
        languages=self.encoded.languages,
        total_steps=plan.steps,
        rows=c.batch.rows,
        max_length=c.batch.max_length,
        train_step=make_train_step(
          lambda params, *arrays: decoder.apply(
            params, self.cfg, *arrays, dtype=self.dtype, remat=c.model.remat
          ),
          self.optimizer,
          self.shardings,
          self.mesh,
          num_languages=len(self.encoded.languages),
          microbatches=c.batch.microbatches,
          clip_norm=c.optimizer.gradient_clip_norm,
        ),
        batches=load_batches(
          self.encoded, plan, first, meshes.process_rows(self.mesh, c.batch.rows)
        ),
        learning_rate=self.rates.__getitem__,
        step_flops=lambda step: flops.step_flops(
          self.cfg, self.encoded.lengths[np.concatenate(plan.rows(step))]
        ),
        peak_flops=flops.peak_flops(c.log.peak_tflops),
        evaluate=self.evaluate,
        save=self.save,
        log=lambda step, event: workdir.log(self.root, step, event),
        terminal=terminal,
        trained=trained,
        eval_every=c.eval.every_steps,
        save_every=c.checkpoint.every_steps,
        log_every=c.log.every_steps,
      )
      state = train(loop, state)
      if checkpoints.latest() != plan.steps:
        self.save(state, trained, self.evaluate(plan.steps, state.params))
      checkpoints.wait()
    self.finish(trained)

  def restore_or_begin(self, base) -> tuple[State, dict]:
    """The newest checkpoint of this run, or its first state; and what was trained on so far."""
    step = self.checkpoints.latest()
    if step is None:
      workdir.forget_after(self.root, -1)
      return self.begin(base), {name: {} for name in ledgers.TRAINED}
    abstract = abstract_like(jax.eval_shape(self._state, self.shapes), self.shardings)
    state, meta = self.checkpoints.restore(step, abstract)
    if meta["plan"] != self.plan.hash:
      raise UserError(
        f"{self.root}: the checkpoint of step {step} was trained on plan {meta['plan']}, the data now give plan "
        f"{self.plan.hash}. Files, tokenizer or template have changed since. Restore them, or use another --workdir."
      )
    workdir.forget_after(self.root, step)
    self.terminal.line(f"resumed at step {step} of {self.plan.steps}")
    return state, meta["trained"]

  def begin(self, base) -> State:
    """Parameters of the base model, or fresh ones; an optimizer that has seen nothing."""
    if base:
      params = load.load_params(base.folder, self.cfg, self.param_shardings)
    else:
      init = jax.jit(
        lambda key: decoder.init_params(self.cfg, key), out_shardings=self.param_shardings
      )
      params = init(jax.random.key(self.c.seed))
    return jax.jit(self._state, out_shardings=self.shardings)(params)

  def _state(self, params) -> State:
    return State(jnp.zeros((), jnp.int32), params, self.optimizer.init(params))

  def evaluate(self, step: int, params) -> float | None:
    """All sets and languages at this step: files, events and lines; returns the metric for `best`."""
    if not self.evaluator.sets:
      return None
    figures, records = self.evaluator.run(params)
    flat = summary.flatten(figures)
    if runtime.is_main():
      summary.write_evaluation(
        self.root / "evals" / str(step), figures, records, model=f"{self.root}@{step}"
      )
    workdir.log(self.root, step, flat)
    for name, by_lang in figures.items():
      self.terminal.line(card.eval_line(step, self.plan.steps, name, by_lang))
    return flat[f"eval/{self.best_metric}"] if self.c.checkpoint.keep_best else None

  def save(self, state: State, trained: dict, metric: float | None) -> None:
    meta = {"step": int(state.step), "plan": self.plan.hash, "trained": trained}
    self.checkpoints.save(state, meta, metric)

  def log_parameters(self) -> None:
    """One line per parameter into parameters.txt: path, shape, where it lies."""
    if runtime.is_main():
      lines = workdir.parameter_lines(self.specs, self.param_shardings)
      runtime.write_atomic(self.root / "parameters.txt", "\n".join(lines) + "\n")
    self.terminal.line(
      f"{decoder.count_params(self.cfg):,} parameters, mesh "
      + " ".join(f"{axis}={size}" for axis, size in self.mesh.shape.items())
      + f", {self.plan.steps} steps of {self.c.batch.rows} x {self.c.batch.max_length} tokens"
    )

  def finish(self, trained: dict) -> None:
    """The ledger with both columns, the card, and what to do next."""
    ledger = ledgers.with_trained(self.ledger, trained)
    workdir.keep_ledger(self.root, ledger)
    self.terminal.table(card.ledger_table(ledger))
    before = workdir.read_evaluation(self.root, 0)
    last = workdir.read_evaluation(self.root, self.plan.steps)
    for name in last:
      self.terminal.table(summary.table(last, name))
    if runtime.is_main():
      card.write_card(self.root, self.c, ledger, before, last)
      report.write_report(self.root)
    wrong = ledgers.differences(ledger)
    assert not wrong, f"the run did not train on what the plan says: {'; '.join(wrong)}"
    self.terminal.line(f"\nchat    python -m mlit_jax.generate --model {self.root}")
    self.terminal.line(
      f"export  python -m mlit_jax.export --workdir {self.root} --out {self.root}/export"
    )


def check_config(c) -> None:
  """What a config can get wrong beyond names and types."""
  if not c.workdir:
    raise UserError("workdir is empty; give --workdir DIR")
  if (c.steps > 0) == (c.epochs > 0):
    raise UserError(
      f"steps = {c.steps} and epochs = {c.epochs}: set exactly one of them to more than 0"
    )
  if not c.data.train or not c.data.mixture:
    raise UserError("data.train and data.mixture must be set, see configs/quickstart.py")
  if not c.model.path and not c.tokenizer.path:
    raise UserError("a model from scratch (model.path is empty) needs tokenizer.path")
  for key, allowed in (
    ("model.dtype", ("bfloat16", "float32")),
    ("model.remat", decoder.REMAT),
    ("data.groups", ("together", "independent")),
    ("data.bad_rows", ("error", "drop")),
  ):
    group, name = key.split(".")
    if c[group][name] not in allowed:
      raise UserError(f"{key} is {c[group][name]!r}; it must be one of {', '.join(allowed)}")
  for key in ("batch.rows", "batch.max_length", "batch.microbatches", "data.max_repeats", "log.every_steps"):
    group, name = key.split(".")
    if c[group][name] < 1:
      raise UserError(f"{key} is {c[group][name]}; it must be at least 1")
  if c.batch.rows % c.batch.microbatches:
    raise UserError(
      f"batch.rows {c.batch.rows} is not a multiple of batch.microbatches {c.batch.microbatches}"
    )


def check_mesh(c, mesh) -> None:
  shards = meshes.batch_shards(mesh)
  if (c.batch.rows // c.batch.microbatches) % shards:
    raise UserError(
      f"batch.rows {c.batch.rows} / batch.microbatches {c.batch.microbatches} is not a multiple of the "
      f"{shards} shards of the batch (mesh.data * mesh.fsdp); change one of them"
    )


def check_best(metric: str, sets: list[EvalSet]) -> None:
  """Whether the evaluations will have the figure that `checkpoint.best` goes by."""
  known = [
    f"{s.name}/{lang}/{name}"
    for s in sets
    for lang in (*s.encoded.languages, summary.MEAN, summary.WORST)
    for name in summary.METRICS
    if s.questions or name in LOWER_IS_BETTER
  ]
  if metric and metric not in known:
    near = difflib.get_close_matches(metric, known, n=1, cutoff=0)
    raise UserError(
      f"checkpoint.best is {metric!r}, which no evaluation measures; it must be <set>/<language>/<metric>"
      + (f", such as {near[0]!r}" if near else ", and eval.sets is empty")
    )


def check_vocabulary(cfg: DecoderConfig, tokenizer: Tokenizer) -> None:
  if tokenizer.vocab_size > cfg.vocab_size:
    raise UserError(
      f"the tokenizer has {tokenizer.vocab_size} tokens, the model {cfg.vocab_size} rows. "
      "Set tokenizer.path to the tokenizer this model was trained with."
    )


def open_tokenizer(c, base) -> Tokenizer:
  """The tokenizer and template that the config names, else the base model's own."""
  return Tokenizer.load(
    c.tokenizer.path or base.folder,
    template=c.tokenizer.chat_template or None,
    template_kwargs=dict(c.tokenizer.template_kwargs),
    date=c.tokenizer.date,
  )


def open_data(c, tokenizer, root: Path, terminal) -> tuple[RowSet, Encoded, Plan]:
  """Rows, tokens and plan."""
  rows = read_sources(c.data.train, where="data.train", drop_bad=c.data.bad_rows == "drop")
  with terminal.bar(len(rows.conversations), what="tokenise") as bar:
    done = 0

    def progress(n):
      nonlocal done
      done += n
      bar.update(done)

    encoded = encode_conversations(
      rows.conversations,
      tokenizer,
      max_length=c.batch.max_length,
      over_long=c.data.over_long,
      cache_dir=Path(c.data.cache_dir or root / "cache"),
      progress=progress,
    )
  plan = make_plan(
    encoded,
    c.data.mixture,
    seed=c.seed,
    rows_per_step=c.batch.rows,
    max_length=c.batch.max_length,
    epochs=c.epochs,
    steps=c.steps,
    packing=c.batch.packing,
    groups=c.data.groups,
    max_repeats=c.data.max_repeats,
  )
  return rows, encoded, plan


def open_eval_sets(c, tokenizer) -> list[EvalSet]:
  """The sets of `eval.sets`, tokenised and packed."""
  sets = []
  for name, files in c.eval.sets.items():
    rows = read_sources(files, where=f"eval.sets[{name!r}]", drop_bad=c.data.bad_rows == "drop")
    sets.append(
      make_eval_set(
        name,
        rows.conversations,
        tokenizer,
        max_length=c.batch.max_length,
        generate_rows=c.eval.generate_rows,
        packing=c.batch.packing,
      )
    )
  return sets


if __name__ == "__main__":
  sys.exit(main())
