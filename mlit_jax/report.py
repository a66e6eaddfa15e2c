"""One or many runs as a folder: report.html, figures.csv, figures.json, ledger.csv, plots as PNG and SVG.

  python -m mlit_jax.report runs/quickstart --out runs/quickstart/report
  python -m mlit_jax.report runs/english runs/pinch runs/half --out runs/compared

The page needs nothing but itself. Exit codes: 0 done, 2 something to mend.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlit_jax import runtime
from mlit_jax.errors import UserError
from mlit_jax.reporting import tables
from mlit_jax.reporting.plots import plots, rendered
from mlit_jax.reporting.report_page import report_html
from mlit_jax.reporting.runs import cells, last_cells, read_runs


def main() -> int:
  parser = argparse.ArgumentParser(
    "mlit_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("workdirs", nargs="+", help="workdirs of runs, finished or not")
  parser.add_argument("--out", required=True, help="folder for the report")
  parser.add_argument("--no-plots", action="store_true", help="page and tables only")
  parser.add_argument("--debug", action="store_true", help="tracebacks for user errors too")
  args = parser.parse_args()
  return runtime.run_main(lambda: run(args), debug=args.debug)


def run(args: argparse.Namespace) -> None:
  """Read the runs, write the folder."""
  out = Path(args.out)
  if out.exists() and not out.is_dir():
    raise UserError(f"--out {out} is a file; name a folder")
  runs = read_runs(args.workdirs)
  every, last = list(cells(runs)), last_cells(runs)
  runtime.write_atomic(out / "figures.csv", tables.figures_csv(runs))
  runtime.write_json(out / "figures.json", tables.figures_json(runs))
  runtime.write_atomic(out / "ledger.csv", tables.ledger_csv(runs))
  drawn = 0
  for name, figure in () if args.no_plots else plots(every, last):
    for form in ("svg", "png"):
      runtime.write_atomic(out / "plots" / f"{name}.{form}", rendered(figure, form))
    drawn += 1
  runtime.write_atomic(out / "report.html", report_html(runs, every, last))
  print(
    f"{len(runs)} run{'s' * (len(runs) > 1)}, {len(every):,} figures, {drawn} plots: {out}/report.html"
  )


if __name__ == "__main__":
  sys.exit(main())
