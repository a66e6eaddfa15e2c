"""A sheet for people: pairs without names, to be filled in with any spreadsheet program and read back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import langcodes

from mlit_jax.data.hashing import stable_hash
from mlit_jax.errors import UserError
from mlit_jax.evals.judging.judges import ORDERS, KnownJudge, file_digest
from mlit_jax.evals.judging.pairs import NUM_SHOWN, Pair, digest
from mlit_jax.runtime import write_atomic

COLUMNS = ("number", "language", "question", "answer_1", "answer_2", "verdict", "note", "key")
VERDICTS = {"1": "first", "2": "second", "0": "tie", "=": "tie", "tie": "tie"}
LTR_MARK, RTL_MARK = "\u200e", "\u200f"
MOST_CHARACTERS = 32_000  # a cell of the common programs holds 32,767
CUT = " […]"


def write_sheet(path: Path, pairs: Iterable[Pair], *, orders: str, seed: int) -> tuple[int, int]:
  """Write the sheet; (rows, cells that were cut).

  orders: "both" shows each pair twice, "one" once in an order that the seed draws. Rows are
  shuffled by the seed. Neither names nor file order nor the key tells whose answer is whose.
  """
  asked = []
  for pair in pairs:
    if not pair.identical:
      drawn = ORDERS[stable_hash(seed, "slot", pair.fingerprint) % 2]
      asked += [(pair, order) for order in (ORDERS if orders == "both" else (drawn,))]
  asked.sort(key=lambda ask: stable_hash(seed, "row", _key(*ask)))
  cut = 0
  out = io.StringIO(newline="")
  writer = csv.writer(out)
  writer.writerow(COLUMNS)
  for number, (pair, order) in enumerate(asked, 1):
    texts = (pair.prompt, *pair.shown(order))
    cells = [_cell(text, pair.lang) for text in texts]
    cut += sum(len(text) > MOST_CHARACTERS for text in texts)
    name = langcodes.Language.get(pair.lang).display_name("en")
    writer.writerow([number, name, *cells, "", "", _key(pair, order)])
  # Spreadsheet programs take a file for UTF-8 by its BOM.
  text = "\ufeff" + out.getvalue()
  write_atomic(path, text.encode("utf-8", "replace"))
  return len(asked), cut


def people_judge(
  path: Path, pairs: Iterable[Pair], *, partial: bool = False
) -> tuple[KnownJudge, dict[Pair, list[str]], int]:
  """(judge, the orders in which people saw each pair, pairs without a verdict).

  Rows without a verdict are refused, unless `partial` leaves their pairs out.
  """
  pairs = [pair for pair in pairs if not pair.identical]
  places = {_key(pair, order): (pair, order) for pair in pairs for order in ORDERS}
  choices: dict[tuple[str, str, str], str | None] = {}
  orders: dict[Pair, list[str]] = {}
  empty: list[int] = []
  unfilled: set[Pair] = set()
  for number, row in _rows(path):
    place = places.get((row.get("key") or "").strip())
    if place is None:
      raise UserError(
        f"{path}: row {number} is on no pair of these files (key {(row.get('key') or '')[:40]!r}). "
        "Give the two files that the sheet was written for, and leave the column `key` as it is."
      )
    pair, order = place
    if (pair.lang, pair.id, order) in choices or order in orders.get(pair, ()):
      raise UserError(f"{path}: row {number} repeats an earlier one; delete one of the two.")
    verdict = (row.get("verdict") or "").strip().lower()
    if not verdict:
      empty.append(number)
      unfilled.add(pair)
    elif verdict not in VERDICTS:
      raise UserError(
        f"{path}: row {number} has the verdict {verdict!r}; write 1, 2, or 0 for a tie."
      )
    else:
      choices[pair.lang, pair.id, order] = VERDICTS[verdict]
      orders.setdefault(pair, []).append(order)
  if empty and not partial:
    raise UserError(
      f"{path}: {len(empty)} rows have no verdict yet, such as row {empty[0]}. Fill in 1, 2, or 0 for "
      "a tie in the column `verdict`, or leave such pairs out with --partial."
    )
  # A sheet shows each pair as often as any other: a pair seen once of twice has half of its verdict.
  times = max(map(len, orders.values()), default=0)
  judged = {p: seen for p, seen in orders.items() if p not in unfilled and len(seen) == times}
  absent = [pair for pair in pairs if pair not in judged and pair not in unfilled]
  if absent and not partial:
    shown = ", ".join(f"{pair.lang} {pair.id}" for pair in absent[:NUM_SHOWN])
    raise UserError(
      f"{path} lacks rows of {len(absent)} of {len(pairs)} pairs, such as {shown}. Restore them, or leave "
      "such pairs out with --partial."
    )
  return KnownJudge(choices, ("people", file_digest(path))), judged, len(pairs) - len(judged)


def _key(pair: Pair, order: str) -> str:
  return digest("people", pair.fingerprint, pair.id, order)[:16]


def _cell(text: str, lang: str) -> str:
  """The text behind an invisible mark of its direction.

  By it a program aligns an Arabic answer that begins with a Latin word, and takes "- one" or
  "=1+1" for the text it is, not for a formula.
  """
  if len(text) > MOST_CHARACTERS:
    text = text[: MOST_CHARACTERS - len(CUT)] + CUT
  return (RTL_MARK if _is_rtl(lang) else LTR_MARK) + text


def _is_rtl(lang: str) -> bool:
  script = langcodes.Language.get(lang).maximize().script
  return script in ("Adlm", "Arab", "Hebr", "Nkoo", "Rohg", "Syrc", "Thaa")


def _rows(path: Path):
  """(row number as a spreadsheet counts, {column: cell}); whatever delimiter and encoding it was saved with."""
  try:
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = content.decode(encoding)
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f"{path} cannot be read: {e}. Save the sheet as CSV in UTF-8.") from e
  header = text.partition("\n")[0]
  delimiter = max(",;\t", key=header.count)
  csv.field_size_limit(max(csv.field_size_limit(), 4 * MOST_CHARACTERS))
  reader = _records(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), path)
  names = [name.strip().lower() for name in next(reader, [])]
  lacking = [name for name in ("key", "verdict") if name not in names]
  if lacking:
    raise UserError(
      f"{path} has no column {' and '.join(lacking)}; leave the sheet's columns there."
    )
  for number, cells in enumerate(reader, 2):
    if any(cell.strip() for cell in cells):
      yield number, dict(zip(names, cells, strict=False))


def _records(reader, path: Path):
  try:
    yield from reader
  except csv.Error as e:
    raise UserError(
      f"{path}: line {reader.line_num} cannot be read ({e}). Save the sheet as CSV in UTF-8."
    ) from e
