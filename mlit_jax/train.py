"""Tune a decoder on a mixture of languages.

  python -m mlit_jax.train --config configs/quickstart.py --workdir runs/quickstart
  python -m mlit_jax.train --config configs/quickstart.py --config.optimizer.learning_rate=1e-3

The same command again goes on where the run stopped. Exit codes: 0 done, 2 something to mend (one message),
75 stopped by a signal, run again to go on, 1 a fault of ours or of the machine, or the run no longer got on.
"""

from __future__ import annotations

from mlit_jax import large_pages

if __name__ == "__main__":
  # Starts this process again, so nothing is imported before it.
  large_pages.use("mlit_jax.train", "mlit", "train.py")

import argparse
import contextlib
import json
import sys
from pathlib import Path

import mlit_jax
from mlit_jax import checks, early, peers, runtime, signals
from mlit_jax.config import load_config, nested
from mlit_jax.data.figures import measure
from mlit_jax.data.findings import findings
from mlit_jax.job import Job
from mlit_jax.model.config import to_hf
from mlit_jax.opening import open_rows, open_tokenizer
from mlit_jax.preflight import preflight, unused_cores
from mlit_jax.training import card, console, workdir
from mlit_jax.training.clock import Clock
from mlit_jax.watchdog import Limits, Watchdog
from mlit_jax.weights import source


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
  early.check_config(c)
  with signals.StopSignal() as stop:
    stop.early = True  # until the first step is done
    runtime.start(peer_seconds=c.watchdog.peer_seconds)
    stop.join()
    limits = Limits(c.watchdog.step_seconds, c.watchdog.other_seconds, c.watchdog.peer_seconds)
    channel = peers.open_channel()
    with Watchdog(limits, Path(c.workdir), channel=channel) as watchdog, runtime.fail_fast():
      build_and_run(c, stop, watchdog)


def build_and_run(c, stop: signals.StopSignal, watchdog: Watchdog) -> None:
  """The run, once its processes have met."""
  terminal = console.Terminal(shown=runtime.is_main(), beat=watchdog.beat)
  clock = Clock(mlit_jax.STARTED, tell=watchdog.beat)
  found, warnings = preflight()
  faster = unused_cores(c.batch.rows // c.batch.microbatches, c.mesh)
  terminal.line(" ".join(filter(None, (found, faster))))
  for line in warnings:
    terminal.warning(line)
  root = Path(c.workdir)
  with contextlib.ExitStack() as stack:
    with runtime.together():
      stack.enter_context(runtime.locked(root, exclusive=runtime.is_main()))
      base, job = prepare(c, root, terminal, clock, stop, watchdog)
    runtime.check_same("config", json.dumps(nested(c), sort_keys=True))
    runtime.check_same("the plan of their data", job.plan.hash)
    # All is checked that can be: from here on, files are written.
    workdir.forget_unbegun(root)
    workdir.write_config(root, c)
    workdir.keep_ledger(root, job.ledger)
    terminal.table(card.plan_table(job.ledger))
    for line in card.plan_lines(job.ledger):
      terminal.line(line)
    for line in card.left_out(job.evaluator.sets):
      terminal.line(line)
    if runtime.is_main():  # the others have nobody to tell
      measured = measure(job.encoded, job.plan, job.tokenizer)
      for line in findings(job.encoded, measured, job.ledger, job.tokenizer):
        terminal.warning(line)
    workdir.keep_tokenizer(root, job.tokenizer)
    if base:
      if runtime.is_main():
        source.save_source_copy(base, root)
    else:
      hf = to_hf(
        job.cfg,
        max_length=c.batch.max_length,
        bos_id=job.tokenizer.bos_id,
        eos_id=job.tokenizer.eos_id,
        pad_id=job.tokenizer.pad_id,
      )
      workdir.keep_base(root, hf, job.tokenizer)
    job.run(base)


def prepare(
  c, root: Path, terminal, clock: Clock, stop, watchdog
) -> tuple[source.ModelSource | None, Job]:
  """The base model's files and the job, with everything checked that can be before a file is written."""
  workdir.check_free(root, c)
  base = source.read_source(c.model.path) if c.model.path else None
  tokenizer = open_tokenizer(c, base.folder if base else None)
  cfg = early.check_model(c, base.folder if base else None, tokenizer)
  mesh = early.check_devices(c, cfg)
  with clock.spent("data"):
    data = open_rows(c, tokenizer, root, terminal)
  encoded, plan, sets = data.encoded, data.plan, data.sets
  if base:
    for of_text in (encoded, *(s.encoded for s in sets)):
      checks.check_images(of_text, base.config)
    positions = checks.known_positions(base.config)
    for s in sets:
      if past := checks.check_questions(s, c.eval.max_new_tokens, positions, "eval.max_new_tokens"):
        terminal.warning(past)
    checks.check_positions(int(encoded.lengths[plan.examples].max()), base.config)
  workdir.check_plan(root, data.ledger)
  job = Job(c, root, cfg, mesh, tokenizer, data, terminal, clock, stop, watchdog)
  return base, job


if __name__ == "__main__":
  sys.exit(main())
