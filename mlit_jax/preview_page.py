"""preview.html: the rows of a plan as the model sees them, its table, and what to mind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from mlit_jax import page
from mlit_jax.charts import escape
from mlit_jax.config import nested
from mlit_jax.data.figures import Figures, Lengths
from mlit_jax.data.shown import Piece, Row

MAX_PIECES = 4000  # of a row
STYLE = """
nav { line-height: 2; } nav a { margin-right: 12px; color: var(--c0); }
.row { border-top: 1px solid var(--rule); padding: 8px 0 12px; }
.row > p { margin: 0 0 4px; font-size: 12.5px; overflow-wrap: anywhere; max-width: none; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; max-height: 30em; overflow-y: auto; line-height: 1.75; }
.text b { font-weight: inherit; background: color-mix(in srgb, var(--c2) 16%, transparent); }
.text b.o { background: color-mix(in srgb, var(--c2) 30%, transparent); }
.text span.o { background: color-mix(in srgb, var(--muted) 14%, transparent); }
.text .m { color: var(--muted); font: 12px ui-monospace, monospace; }
.text b .m { color: var(--c2); font-weight: 700; }
.text i::before { content: "↵"; color: var(--muted); font-style: normal; font-size: 11px; }
.bars { height: 22px; width: auto; display: block; margin-left: auto; } .bars rect { fill: var(--c0); }
.key b, .key span { padding: 1px 4px; }
@media print { .text { max-height: none; font-size: 9pt; } .row { break-inside: avoid; } nav { display: none; } }
"""


def html(
  c, ledger: dict, figures: Figures, warnings: Sequence[str], shown: Mapping[str, Sequence[Row]]
) -> str:
  """The page; `shown` has the rows of each language."""
  sections = [
    _head(c, ledger),
    *(f'<p class="notice">{escape(w)}</p>' for w in warnings),
    _plan_table(ledger),
    _text_table(ledger, figures),
    _key(shown),
    *(_language(lang, rows, ledger) for lang, rows in shown.items()),
  ]
  return page.html("What will be trained on", sections, STYLE)


def _head(c, ledger: dict) -> str:
  mixture = json.dumps(nested(c)["data"]["mixture"], ensure_ascii=False)
  return (
    "<h1>What will be trained on</h1>\n"
    f"<p>mixture <code>{escape(mixture)}</code> · {ledger['steps']:,} steps of {ledger['rows_per_step']} × "
    f"{ledger['max_length']:,} tokens ({ledger['epochs']} epoch{'s' * (ledger['epochs'] != 1)}), {ledger['padding']:.1%} padding · "
    f"seed {ledger['seed']} · plan <code>{escape(ledger['hash'])}</code></p>"
  )


def _plan_table(ledger: dict) -> str:
  """Counts of the plan."""
  titles = (
    "rows read", "dropped", "kept, but", "per epoch", "examples", "repeats", "tokens", "trained tokens", "share",
  )  # fmt: skip
  rows = {
    lang: [
      f"{e['rows_read']:,}", _reasons(e["dropped"]), _reasons(e["flagged"]),
      "" if e["per_epoch"] is None else f"{e['per_epoch']:,}",
      *(f"{e[name]:,}" for name in ("examples", "repeats", "tokens", "trained_tokens")),
      f"{e['share_of_trained_tokens']:.2%}",
    ]
    for lang, e in ledger["languages"].items()
  }  # fmt: skip
  return f"<h2>Plan</h2>\n{_table(titles, rows)}"


def _text_table(ledger: dict, figures: Figures) -> str:
  """How the text of each language becomes tokens."""
  reference = figures.reference
  titles = (
    "bytes/token", f"× {escape(reference)}", "unknown", "parts of characters", "truncated", "median", "95 %",
    "longest", "lengths",
  )  # fmt: skip
  rows = {}
  for lang, of in figures.languages.items():
    e, lengths = ledger["languages"][lang], of.lengths
    rows[lang] = [
      f"{e['bytes_per_token']:.2f}",
      "" if of.premium is None else f"{of.premium:.2f}",
      f"{of.unknown:.2%}" if of.unknown else "",
      f"{of.partial:.1%}" if of.partial else "",
      f"{e['truncated']:,}",
      *(f"{n:,}" for n in (lengths.median, lengths.p95, lengths.longest)),
      _histogram(lengths, figures.edges),
    ]
  return (
    f'<h2>Text as tokens</h2>\n<p class="quiet">Lengths in tokens, of the different rows that the plan has; bins {" ".join(map(str, figures.edges))}. '
    f"× {escape(reference)}: tokens of parallel rows, beside those in {page.language(reference)}. Unknown: share of tokens for what the vocabulary "
    f"cannot spell. Parts of characters: share of tokens that are single bytes of one.</p>\n{_table(titles, rows)}"
  )


def _table(titles: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
  """One row for each language, of cells that are HTML already."""
  body = "".join(
    f'<tr><td class="lang">{page.language(lang)}</td>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
    for lang, cells in rows.items()
  )
  head = "".join(f"<th>{title}</th>" for title in titles)
  return f'<div class="wide"><table><thead><tr><th class="lang">language</th>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _reasons(counts: Mapping[str, int]) -> str:
  return "<br>".join(f"{escape(reason)} {count:,}" for reason, count in counts.items())


def _histogram(lengths: Lengths, edges: Sequence[int]) -> str:
  """One bar for each bin; a bin with any row shows."""
  most = max(lengths.histogram)
  bars, says = [], []
  for i, n in enumerate(lengths.histogram):
    height = max(1.5, 20 * n / most) if n else 0
    bars.append(f'<rect x="{9 * i}" y="{21 - height:.1f}" width="7" height="{height:.1f}"/>')
    says.append(f"{edges[i] + 1}–{edges[i + 1]}: {n:,}")
  text = escape(", ".join(says))
  return f'<svg class="bars" viewBox="0 0 {9 * len(bars)} 22" role="img" aria-label="{text}"><title>{text}</title>{"".join(bars)}</svg>'


def _key(shown: Mapping[str, Sequence[Row]]) -> str:
  links = "".join(f'<a href="#{escape(lang)}">{page.language(lang)}</a>' for lang in shown)
  return (
    "<h2>Rows as the model sees them</h2>\n"
    '<p class="quiet text key"><b>trained</b> <span class="o">not trained</span> <span class="m">&lt;token of the template&gt;</span>; the shades '
    "change from token to token, a pointer over one shows its id. ↵ is a line break.</p>\n"
    f"<nav>{links}</nav>"
  )


def _language(lang: str, rows: Sequence[Row], ledger: dict) -> str:
  examples = ledger["languages"][lang]["examples"]
  body = "".join(_row(lang, row) for row in rows)
  return f'<h3 id="{escape(lang)}">{page.language(lang)}: {len(rows)} of {examples:,} examples</h3>\n{body}'


def _row(lang: str, row: Row) -> str:
  parts = [_piece(piece, i % 2 == 1) for i, piece in enumerate(row.pieces[:MAX_PIECES])]
  left = len(row.pieces) - MAX_PIECES
  more = f'<p class="quiet">{left:,} more pieces</p>' if left > 0 else ""
  return (
    f'<div class="row"><p class="quiet">{escape(row.caption)}</p>'
    f'<div class="text" lang="{escape(lang)}">{"".join(parts)}</div>{more}</div>\n'
  )


def _piece(piece: Piece, odd: bool) -> str:
  """Markers of turns are isolated, so that they do not decide which way a line runs."""
  text = escape(piece.text).replace("\n", "<i></i>\n")
  if piece.special:
    text = f'<bdi class="m">{text}</bdi>'
  tag = "b" if piece.trained else "span"
  ids = " ".join(map(str, piece.ids[:16])) + (" …" if len(piece.ids) > 16 else "")
  return f'<{tag}{" class=o" if odd else ""} title="{ids}">{text}</{tag}>'
