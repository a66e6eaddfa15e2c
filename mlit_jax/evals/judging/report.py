"""What a judging shows: a table for the terminal and the same as a page of Markdown."""

from __future__ import annotations

from rich.table import Table

from mlit_jax.metrics import MEAN, WORST

# Title of a table -> metric -> (column, digits, scale).
TABLES = {
  "": {
    "win_score": ("IF score", 1, 1),
    "win_score_gated": ("IF score, gate on", 1, 1),
    "win_score_length_controlled": ("at equal length", 1, 1),
    "win_score_without_position": ("without position", 1, 1),
    "decided_win_rate": ("W/(W+L) %", 0, 100),
    "fidelity_a": ("A in language %", 0, 100),
    "fidelity_b": ("B in language %", 0, 100),
    "length_difference": ("longer A", 2, 1),
  },
  "The judge": {
    "tie_rate": ("ties %", 0, 100),
    "order_consistency": ("same in both orders %", 0, 100),
    "first_slot_rate": ("first slot %", 0, 100),
    "follows_position": ("follows position %", 0, 100),
    "invalid_rate": ("invalid %", 1, 100),
    "agreement": ("agreement %", 1, 100),
    "kappa": ("κ", 2, 1),
  },
}
COLUMNS = {metric: column for columns in TABLES.values() for metric, column in columns.items()}
WITH_INTERVAL = (
  "win_score",
  "win_score_gated",
  "win_score_length_controlled",
  "win_score_without_position",
  "agreement",
  "kappa",
)


def tables(summary: dict, title: str) -> list[Table]:
  """Languages x metrics, the mean and the worst below a line: the scores, and what to know of the judge."""
  out = []
  for name, metrics in _shown(summary).items():
    rows = _rows(summary, metrics)
    table = Table(title=f"{name}: {title}" if name else title, title_justify="left")
    table.add_column("language", no_wrap=True)
    table.add_column("n", justify="right")
    for metric in metrics:
      table.add_column(COLUMNS[metric][0], justify="right")
    last = len(rows) - 1 - sum(name in summary for name in (MEAN, WORST))
    for number, row in enumerate(rows):
      table.add_row(*row, end_section=number == last)
    out.append(table)
  return out


def markdown(summary: dict, title: str, notes: list[str]) -> str:
  """The page report.md."""
  parts = [f"# {title}", *notes]
  for name, metrics in _shown(summary).items():
    head = ["language", "n", *(COLUMNS[metric][0] for metric in metrics)]
    rows = [head, ["---"] * len(head), *_rows(summary, metrics)]
    parts += [f"## {name}"] if name else []
    parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in rows))
  return "\n\n".join(parts) + "\n"


def _shown(summary: dict) -> dict[str, list[str]]:
  """The metrics of each table that some language has."""
  found = {
    name: [m for m in columns if any(m in by_metric for by_metric in summary.values())]
    for name, columns in TABLES.items()
  }
  return {name: metrics for name, metrics in found.items() if metrics}


def _rows(summary: dict, metrics: list[str]) -> list[list[str]]:
  languages = [lang for lang in summary if lang not in (MEAN, WORST)]
  rows = []
  for lang in [*languages, *(name for name in (MEAN, WORST) if name in summary)]:
    figures = summary[lang]
    n = "" if lang == WORST else str(figures.get("win_score", {}).get("n", 0))
    rows.append([lang, n, *(_cell(metric, figures.get(metric)) for metric in metrics)])
  return rows


def _cell(metric: str, figure: dict | None) -> str:
  if figure is None or figure["value"] is None:
    return ""
  _, digits, scale = COLUMNS[metric]
  text = f"{figure['value'] * scale:.{digits}f}"
  if metric in WITH_INTERVAL and figure["low"] is not None:
    text += f" ({figure['low'] * scale:.{digits}f}–{figure['high'] * scale:.{digits}f})"
  return f"{figure['lang']} {text}" if "lang" in figure else text
