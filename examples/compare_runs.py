"""Draw one metric of two finished runs per language, as a standalone SVG.

python examples/compare_runs.py runs/english runs/quickstart --metric fidelity --out docs/pinch.svg
"""

import argparse
from pathlib import Path

from mlit_jax import charts, runtime
from mlit_jax.metrics import MEAN, WORST
from mlit_jax.training.run_files import read_run


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("old", type=Path, help="workdir drawn as rings")
  parser.add_argument("new", type=Path, help="workdir drawn as dots")
  parser.add_argument("--metric", default="fidelity")
  parser.add_argument("--names", nargs=2, default=["", ""], help="what to call the two")
  parser.add_argument("--out", type=Path, required=True)
  args = parser.parse_args()
  old, new = last_figures(args.old), last_figures(args.new)
  names = [name or str(path) for name, path in zip(args.names, (args.old, args.new), strict=True)]
  chart = charts.dumbbells(
    args.metric,
    "",
    [row(lang, old[lang][args.metric], new[lang][args.metric]) for lang in ordered(new)],
    lambda v: f"{v:.0%}" if args.metric == "fidelity" else f"{v:g}",
    ends=(0, 1) if args.metric == "fidelity" else None,
  )
  key = [("old", names[0]), ("new", names[1]), ("", "bars: 95 % intervals")]
  title = "Language of the answers in the held-out rows, after tuning"
  runtime.write_atomic(args.out, charts.standalone([chart], title, key))


def last_figures(root: Path) -> dict:
  """{language: {metric: figure}} of the run's first set at its last evaluation."""
  run = read_run(root)
  name = run.sets[0]
  return run.figures[run.first_and_last(name)[1]][name]


def ordered(figures: dict) -> list[str]:
  return [*sorted(lang for lang in figures if lang not in (MEAN, WORST)), MEAN]


def row(lang: str, old: dict, new: dict) -> charts.Row:
  return charts.Row(
    name=lang,
    note="",
    values=f"{old['value']:.0%} → {new['value']:.0%}",
    old=old,
    new=new,
    strong=lang == MEAN,
    rule_above=lang == MEAN,
  )


if __name__ == "__main__":
  main()
