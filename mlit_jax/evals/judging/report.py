"""What a judging shows: a table for the terminal and the same as a page of Markdown."""

from __future__ import annotations

from rich.table import Table

from mlit_jax.evals.judging.scores import ORDER
from mlit_jax.metrics import MEAN, WORST

# Metric -> (column, digits, scale).
COLUMNS = {
  "win_score": ("IF score", 1, 1),
  "win_score_gated": ("IF score, gate on", 1, 1),
  "win_score_length_controlled": ("at equal length", 1, 1),
  "decided_win_rate": ("W/(W+L) %", 0, 100),
  "tie_rate": ("ties %", 0, 100),
  "order_consistency": ("same in both orders %", 0, 100),
  "first_slot_rate": ("first slot %", 0, 100),
  "follows_position": ("follows position %", 0, 100),
  "win_score_without_position": ("IF score without it", 1, 1),
  "invalid_rate": ("invalid %", 1, 100),
  "length_difference": ("longer A", 2, 1),
  "fidelity_a": ("A in language %", 0, 100),
  "fidelity_b": ("B in language %", 0, 100),
  "agreement": ("agreement %", 1, 100),
}
WITH_INTERVAL = (
  "win_score",
  "win_score_gated",
  "win_score_length_controlled",
  "win_score_without_position",
  "agreement",
)


def table(summary: dict, title: str) -> Table:
  """Languages x metrics, the mean and the worst below a line."""
  metrics, rows = _cells(summary)
  out = Table(title=title, title_justify="left")
  out.add_column("language", no_wrap=True)
  out.add_column("n", justify="right")
  for metric in metrics:
    out.add_column(COLUMNS[metric][0], justify="right")
  last = len(rows) - 1 - sum(name in summary for name in (MEAN, WORST))
  for number, row in enumerate(rows):
    out.add_row(*row, end_section=number == last)
  return out


def markdown(summary: dict, title: str, notes: list[str]) -> str:
  """The page report.md."""
  metrics, rows = _cells(summary)
  head = ["language", "n", *(COLUMNS[metric][0] for metric in metrics)]
  lines = ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]]
  return f"# {title}\n\n" + "".join(f"{note}\n\n" for note in notes) + "\n".join(lines) + "\n"


def _cells(summary: dict) -> tuple[list[str], list[list[str]]]:
  metrics = [m for m in ORDER if any(m in by_metric for by_metric in summary.values())]
  languages = [lang for lang in summary if lang not in (MEAN, WORST)]
  rows = []
  for lang in [*languages, *(name for name in (MEAN, WORST) if name in summary)]:
    figures = summary[lang]
    n = "" if lang == WORST else str(figures.get("win_score", {}).get("n", 0))
    rows.append([lang, n, *(_cell(metric, figures.get(metric)) for metric in metrics)])
  return metrics, rows


def _cell(metric: str, figure: dict | None) -> str:
  if figure is None or figure["value"] is None:
    return ""
  _, digits, scale = COLUMNS[metric]
  text = f"{figure['value'] * scale:.{digits}f}"
  if metric in WITH_INTERVAL and figure["low"] is not None:
    text += f" ({figure['low'] * scale:.{digits}f}–{figure['high'] * scale:.{digits}f})"
  return f"{figure['lang']} {text}" if "lang" in figure else text
