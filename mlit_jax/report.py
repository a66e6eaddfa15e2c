"""One or many runs, or a sweep, as a folder: report.html, tables, plots as PNG and SVG.

  python -m mlit_jax.report runs/quickstart --out runs/quickstart/report
  python -m mlit_jax.report runs/english runs/pinch runs/half --out runs/compared
  python -m mlit_jax.report runs/sweep --out runs/sweep/report       (a folder with a sweep.json)

The page needs nothing but itself. Exit codes: 0 done, 2 something to mend.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from mlit_jax import runtime
from mlit_jax.errors import UserError
from mlit_jax.experiments.sweep_files import is_sweep
from mlit_jax.reporting import sweep_page, sweep_plots, sweep_tables, tables
from mlit_jax.reporting.plots import plots, rendered
from mlit_jax.reporting.report_page import report_html
from mlit_jax.reporting.runs import cells, last_cells, read_runs
from mlit_jax.reporting.sweep import read_results


def main() -> int:
  parser = argparse.ArgumentParser(
    "mlit_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("workdirs", nargs="+", help="workdirs of runs, finished or not; or one sweep")
  parser.add_argument("--out", required=True, help="folder for the report")
  parser.add_argument("--no-plots", action="store_true", help="page and tables only")
  parser.add_argument("--debug", action="store_true", help="tracebacks for user errors too")
  args = parser.parse_args()
  return runtime.run_main(lambda: run(args), debug=args.debug)


def run(args: argparse.Namespace) -> None:
  """Read the runs, write the folder."""
  out = Path(args.out)
  runtime.check_output(out, "--out", folder=True)
  sweeps = [folder for folder in args.workdirs if is_sweep(folder)]
  if sweeps and len(args.workdirs) > 1:
    raise UserError(f"{sweeps[0]} is a sweep; a report of a sweep is of that one alone")
  if sweeps:
    report_sweep(sweeps[0], out, args.no_plots)
    return
  runs = read_runs(args.workdirs)
  every, last = list(cells(runs)), last_cells(runs)
  runtime.write_atomic(out / "figures.csv", tables.figures_csv(runs))
  runtime.write_json(out / "figures.json", tables.figures_json(runs))
  runtime.write_atomic(out / "ledger.csv", tables.ledger_csv(runs))
  drawn = write_plots(out, () if args.no_plots else plots(every, last))
  runtime.write_atomic(out / "report.html", report_html(runs, every, last))
  print(
    f"{len(runs)} run{'s' * (len(runs) > 1)}, {len(every):,} figures, {drawn} plots: {out}/report.html"
  )


def report_sweep(folder: str, out: Path, no_plots: bool) -> None:
  """Read the sweep, write the folder."""
  results = read_results(folder)
  runtime.write_atomic(out / "cells.csv", sweep_tables.cells_csv(results))
  runtime.write_atomic(out / "curves.csv", sweep_tables.curves_csv(results))
  runtime.write_atomic(out / "matrix.csv", sweep_tables.matrix_csv(results))
  runtime.write_json(out / "figures.json", sweep_tables.figures_json(results))
  drawn = write_plots(out, () if no_plots else sweep_plots.plots(results))
  runtime.write_atomic(out / "report.html", sweep_page.sweep_html(results))
  for fault in results.faults:
    print(fault)
  print(
    f"{results.finished} of {len(results.outcomes)} runs finished, {len(results.cells):,} figures, {drawn} plots: {out}/report.html"
  )


def write_plots(out: Path, found: Iterable[tuple[str, object]]) -> int:
  """Each as SVG and PNG; how many there are."""
  drawn = 0
  for name, figure in found:
    for form in ("svg", "png"):
      runtime.write_atomic(out / "plots" / f"{name}.{form}", rendered(figure, form))
    drawn += 1
  return drawn


if __name__ == "__main__":
  sys.exit(main())
