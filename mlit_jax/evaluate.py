"""Evaluate a model on rows and suites, per language.

python -m mlit_jax.evaluate --model runs/quickstart --suite 'mlit_jax/assets/instructions12/eval/*.jsonl' --out runs/quickstart/final
python -m mlit_jax.evaluate --model runs/quickstart --suite belebele:data/belebele mgsm:data/mgsm mine.py --languages sw,fi --out runs/quickstart/suites

Answers that exist already are scored for their language, without a model:

python -m mlit_jax.evaluate --answers runs/quickstart/final/generations.jsonl --out runs/quickstart/languages
"""

from __future__ import annotations

import argparse
import glob
import sys
from pathlib import Path

import jax.numpy as jnp

from mlit_jax import mesh as meshes
from mlit_jax import runtime
from mlit_jax.checks import check_eval_set, check_questions, check_set_names
from mlit_jax.data.evalset import make_eval_set
from mlit_jax.data.languages import normalise_tag
from mlit_jax.data.rows import Conversation, read_sources
from mlit_jax.detectors import open_detector
from mlit_jax.errors import UserError
from mlit_jax.evals import answers, summary
from mlit_jax.evals.evaluator import Evaluator
from mlit_jax.evals.harness import make_lm, run_harness
from mlit_jax.evals.suites.opening import is_suite, open_suite
from mlit_jax.opening import open_model, whole_mesh
from mlit_jax.training import card
from mlit_jax.training.console import Terminal


def main() -> int:
  parser = argparse.ArgumentParser(
    "mlit_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", help="Hugging Face folder, hub id, or workdir[@step]")
  parser.add_argument(
    "--suite",
    nargs="+",
    default=[],
    help="rows files or quoted globs, a set each (rows carry `lang`); or suites: NAME:PATH, FILE.py, FILE.suite.json",
  )
  parser.add_argument(
    "--harness",
    default="",
    help="tasks of lm-evaluation-harness, such as belebele_swh_Latn,mgsm_direct_sw",
  )
  parser.add_argument("--harness_include", default="", help="folder of further tasks for --harness")
  parser.add_argument("--few_shot", type=int, default=None, help="examples before, in --harness")
  parser.add_argument(
    "--answers",
    nargs="+",
    default=[],
    help="answers to score instead, a set for each file, as generations.jsonl has them",
  )
  parser.add_argument(
    "--lid", default="", help="detector: lingua, or the .bin or .ftz file of a fastText model"
  )
  parser.add_argument(
    "--reference",
    action="store_true",
    help="of --answers also the published line and word pass rates",
  )
  parser.add_argument(
    "--words", default="", help="English words for --reference, one a line; else Webster's second"
  )
  parser.add_argument("--languages", default="", help="only these, e.g. sw,fi")
  parser.add_argument("--out", required=True, help="folder for summary.json and generations.jsonl")
  parser.add_argument(
    "--generate_rows", type=int, default=8, help="answers per language; 0: loss only"
  )
  parser.add_argument(
    "--suite_items", type=int, default=0, help="items of a suite per language; 0: all"
  )
  parser.add_argument(
    "--max_new_tokens", type=int, default=64, help="of an answer to a row; suites have their own"
  )
  parser.add_argument("--max_length", type=int, default=1024)
  parser.add_argument("--rows", type=int, default=8, help="rows at once")
  parser.add_argument("--temperature", type=float, default=0.0)
  parser.add_argument("--top_p", type=float, default=1.0)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--debug", action="store_true", help="tracebacks for user errors too")
  args = parser.parse_args()
  return runtime.run_main(lambda: run(args), debug=args.debug)


def run(args) -> None:
  """Read the rows, open the model, score and answer, write."""
  out = Path(args.out)
  runtime.check_output(out, "--out", folder=True)
  if args.answers:
    return score_answers(args, out)
  if not args.model:
    raise UserError("--model is missing; name it, or existing answers as --answers")
  if not (args.suite or args.harness):
    raise UserError("--suite is missing; name rows or suites, or tasks for --harness")
  for name, least in (("rows", 1), ("max_length", 1), ("generate_rows", 0), ("suite_items", 0)):
    if getattr(args, name) < least:
      raise UserError(f"--{name} is {getattr(args, name)}; it must be at least {least}")
  wanted = {normalise_tag(tag) for tag in args.languages.split(",") if tag}
  suites = [
    open_suite(spec).only(wanted, args.suite_items) for spec in args.suite if is_suite(spec)
  ]
  files = by_name([spec for spec in args.suite if not is_suite(spec)])
  rows = {name: read_rows(paths, wanted) for name, paths in files.items()}
  check_set_names([*rows, *(s.name for s in suites)])
  runtime.start()
  terminal = Terminal(shown=runtime.is_main())
  mesh = whole_mesh()
  model = open_model(args.model, mesh, terminal)
  positions = model.positions
  max_length = min(args.max_length, positions or args.max_length)
  sets = [
    make_eval_set(
      name,
      of_set,
      model.tokenizer,
      max_length=max_length,
      generate_rows=args.generate_rows,
    )
    for name, of_set in rows.items()
  ]
  for of_set in sets:
    check_eval_set(of_set, wanted)
    if past := check_questions(of_set, args.max_new_tokens, positions, "--max_new_tokens"):
      terminal.warning(past)
  for line in card.left_out(sets):
    terminal.line(f"{line}; raise --max_length (the model has {positions} positions)")
  if args.harness:
    drive_harness(args, model, mesh, max_length, out)
  if not args.suite:
    return
  evaluator = Evaluator(
    model.cfg,
    mesh,
    model.tokenizer,
    sets,
    rows=-(-args.rows // meshes.batch_shards(mesh)) * meshes.batch_shards(mesh),
    max_new_tokens=args.max_new_tokens,
    temperature=args.temperature,
    top_p=args.top_p,
    seed=args.seed,
    dtype=jnp.dtype(args.dtype),
    suites=suites,
    max_length=max_length,
    lid=args.lid,
  )
  figures, records = evaluator.run(model.params)
  if runtime.is_main():
    summary.write_evaluation(out, figures, records, model=model.name)
    runtime.write_json(out / "summary.json", figures)
  for name in figures:
    terminal.table(summary.table(figures, name))
    if evaluator.detector:
      mine = (r for r in records if r.set == name)
      for line in answers.fidelity_lines(mine, evaluator.detector.name):
        terminal.line(line)


def score_answers(args, out: Path) -> None:
  """Language fidelity of answers that exist already."""
  for key in ("model", "suite", "harness"):
    if getattr(args, key):
      raise UserError(f"--answers scores what is there already; leave --{key} out")
  wanted = {normalise_tag(tag) for tag in args.languages.split(",") if tag}
  sets = answers.read_sets(args.answers, wanted)
  asked = sorted({record.lang for records in sets.values() for record in records})
  detector = open_detector(args.lid, asked)
  terminal = Terminal(shown=True)
  records = [r for rows in sets.values() for r in summary.score_responses(rows, detector)]
  figures = summary.summarise(records, seed=args.seed)
  rates = answers.reference_rates(sets, detector, args.words) if args.reference else {}
  summary.write_evaluation(out, figures)
  runtime.write_json(out / "summary.json", figures)
  answers.write_verdicts(out / "verdicts.jsonl", records)
  for name in figures:
    terminal.table(summary.table(figures, name))
    for line in answers.fidelity_lines((r for r in records if r.set == name), detector.name):
      terminal.line(line)
  if rates:
    runtime.write_json(out / "line_and_word_pass_rates.json", rates)
    for name, by_lang in rates.items():
      terminal.table(answers.rates_table(name, by_lang))


def drive_harness(args, model, mesh, max_length: int, out: Path) -> None:
  """Tasks of lm-evaluation-harness; its results as they are in harness.json, and its table."""
  lm = make_lm(
    model.name,
    model.cfg,
    model.params,
    model.tokenizer,
    mesh,
    max_length=max_length,
    rows=args.rows,
    dtype=jnp.dtype(args.dtype),
  )
  found = run_harness(
    lm,
    [task.strip() for task in args.harness.split(",") if task.strip()],
    limit=args.suite_items,
    few_shot=args.few_shot,
    include=args.harness_include,
    chat=True,
    seed=args.seed,
  )
  if runtime.is_main():
    from lm_eval.utils import make_table

    kept = {
      key: found[key] for key in ("results", "groups", "n-samples", "versions") if key in found
    }
    runtime.write_json(out / "harness.json", kept)
    print(make_table(found))


def by_name(suites: list[str]) -> dict[str, list[str]]:
  """One set per --suite: a file goes by its name, a glob by the folder it looks into."""
  names: dict[str, list[str]] = {}
  for text in suites:
    path = Path(text)
    name = path.parent.name or "rows" if glob.has_magic(path.name) else path.name.split(".")[0]
    names.setdefault(name, []).append(text)
  return names


def read_rows(files: list[str], wanted: set[str]) -> list[Conversation]:
  """The rows of one set, only in the wanted languages if any are named."""
  rows = read_sources(files, where="--suite").conversations
  missing = wanted - {c.lang for c in rows}
  if missing:
    raise UserError(f"--languages {','.join(sorted(missing))}: no such rows in {', '.join(files)}")
  return [c for c in rows if not wanted or c.lang in wanted]


if __name__ == "__main__":
  sys.exit(main())
