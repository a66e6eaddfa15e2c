"""Rows as the model sees them, per language, trained tokens marked; then the plan, and what to mind.

  python -m mlit_jax.preview --config configs/quickstart.py
  python -m mlit_jax.preview --config configs/quickstart.py --languages ar,he --rows 5 | less

Nothing is trained and no weights are read. The same goes into preview.html in the workdir; the token cache that is
built here is the one that training uses. Exit codes: 0 done (also with warnings), 2 something to mend.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.table import Table
from rich.text import Text

from mlit_jax import early, preview_page, runtime
from mlit_jax.charts import visible
from mlit_jax.config import load_config
from mlit_jax.data import figures
from mlit_jax.data.findings import findings
from mlit_jax.data.languages import normalise_tag
from mlit_jax.data.shown import Row, runs, shown_rows
from mlit_jax.errors import UserError
from mlit_jax.opening import open_rows, open_tokenizer
from mlit_jax.page import language_name
from mlit_jax.training import card, console
from mlit_jax.weights.source import model_folder

MARKS = ("⟦", "⟧")  # around what is trained, where there is no colour
BARS = " ▁▂▃▄▅▆▇█"


def main() -> int:
  parser = argparse.ArgumentParser(
    "mlit_jax.preview", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", required=True, help="Python file with get_config()")
  parser.add_argument("--workdir", default="", help="where cache and page go (config key workdir)")
  parser.add_argument("--rows", type=int, default=2, help="rows shown per language")
  parser.add_argument("--languages", default="", help="only rows of these, such as sw,fi")
  parser.add_argument(
    "--max_characters", type=int, default=2000, help="of a row, on the terminal; 0: all of them"
  )
  parser.add_argument("--debug", action="store_true", help="tracebacks for user errors too")
  args, overrides = parser.parse_known_args()
  return runtime.run_main(lambda: run(args, overrides), debug=args.debug)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
  """Build what a run would train on, print it, and write the page."""
  if args.rows < 0:
    raise UserError(f"--rows is {args.rows}; give 0 or more")
  wanted = [normalise_tag(tag) for tag in args.languages.split(",") if tag.strip()]
  c = load_config(args.config, overrides)
  if args.workdir:
    c.workdir = args.workdir
  early.check_config(c)
  terminal = console.Terminal()
  root = Path(c.workdir)
  runtime.check_output(root, "workdir", folder=True)
  # Its tokenizer is all that is wanted of the model, so no weights are fetched.
  folder = model_folder(c.model.path, weights=False) if c.model.path else None
  tokenizer = open_tokenizer(c, folder)
  misfit = early.misfit(c, early.check_model(c, folder, tokenizer))
  if misfit:
    terminal.warning(misfit)
  data = open_rows(c, tokenizer, root, terminal)
  measured = figures.measure(data.encoded, data.plan, tokenizer)
  unknown = sorted(set(wanted) - measured.languages.keys())
  if unknown:
    raise UserError(
      f"--languages {', '.join(unknown)}: the plan has no rows of it; it has {', '.join(measured.languages)}"
    )
  warnings = findings(data.encoded, measured, data.ledger, tokenizer)
  shown = {
    lang: shown_rows(data.encoded, data.plan, of.rows[: args.rows], tokenizer)
    for lang, of in measured.languages.items()
    if not wanted or lang in wanted
  }
  for lang, rows in shown.items():
    print_language(terminal, lang, rows, data.ledger, args.max_characters)
  terminal.table(card.plan_table(data.ledger))
  terminal.table(text_table(measured, data.ledger))
  for line in (*card.plan_lines(data.ledger), *card.left_out(data.sets)):
    terminal.line(line)
  for line in warnings:
    terminal.warning(line)
  page = root / "preview.html"
  runtime.write_atomic(page, preview_page.html(c, data.ledger, measured, warnings, shown))
  terminal.line(f"\nthe same as a page: {page}")


def print_language(terminal, lang: str, rows: list[Row], ledger: dict, most: int) -> None:
  """The rows of a language, with what they are above each."""
  examples = ledger["languages"][lang]["examples"]
  colours = terminal.console.is_terminal
  title = f"{lang} {language_name(lang)}".strip()
  terminal.console.print(
    Text(f"── {title}: {len(rows)} of {examples:,} examples", style="bold" if colours else "")
  )
  for row in rows:
    terminal.console.print(Text(row.caption, style="dim" if colours else ""))
    terminal.console.print(_text(row, most, colours))
    terminal.line("")


def _text(row: Row, most: int, colours: bool) -> Text:
  """Trained text green, tokens of the template dim; without colour, trained text between marks."""
  text, left = Text(), most or sys.maxsize
  inside = False
  for piece in runs(row.pieces):
    if not colours and piece.trained != inside:
      text.append(MARKS[inside])
      inside = not inside
    style = "bold green" if piece.trained else "dim" if piece.special else ""
    text.append(visible(piece.text[:left]), style=style if colours else "")
    left -= len(piece.text)
    if left <= 0:
      break
  if inside:
    text.append(MARKS[1])
  rest = sum(len(p.text) for p in row.pieces) - (most or sys.maxsize)
  if rest > 0:
    text.append(f" … {rest:,} more characters", style="dim" if colours else "")
  return text


def text_table(measured: figures.Figures, ledger: dict) -> Table:
  """Per language: how its text becomes tokens."""
  table = Table(title="text as tokens", title_justify="left")
  edges = measured.edges
  for name in (
    "language", "bytes/token", f"x {measured.reference}", "unknown", "parts of characters", "truncated",
    "median", "95 %", "longest", f"lengths {edges[0]}–{edges[-1]}",
  ):  # fmt: skip
    table.add_column(name, justify="left" if name == "language" else "right")
  for lang, of in measured.languages.items():
    e = ledger["languages"][lang]
    table.add_row(
      lang,
      f"{e['bytes_per_token']:.2f}",
      "" if of.premium is None else f"{of.premium:.2f}",
      *(f"{share:.1%}" if share else "" for share in (of.unknown, of.partial)),
      f"{e['truncated']:,}",
      *(f"{n:,}" for n in (of.lengths.median, of.lengths.p95, of.lengths.longest)),
      _bars(of.lengths.histogram),
    )
  return table


def _bars(histogram: tuple[int, ...]) -> str:
  """▁▃█▂: one bar for each bin; a bin with any row has a bar."""
  most = max(histogram)
  return "".join(BARS[-(-n * (len(BARS) - 1) // most)] for n in histogram)


if __name__ == "__main__":
  sys.exit(main())
