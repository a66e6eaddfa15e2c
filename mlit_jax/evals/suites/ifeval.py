"""IFEval and M-IFEval from local copies: does the answer follow what can be checked without a judge?"""

from __future__ import annotations

import contextlib
import json

from mlit_jax.data.files import shorten
from mlit_jax.errors import UserError
from mlit_jax.evals.suites.copies import Row, read_copy
from mlit_jax.evals.suites.instructions import Instruction, prefix_of, read_instruction
from mlit_jax.evals.suites.suite import Item, Suite, ask


def ifeval(path: str) -> Suite:
  """IFEval (Zhou et al. 2023) and M-IFEval (Dussolle et al. 2025)."""
  items = []
  for row in read_copy(path, split="train"):  # the only one there is
    if "response" in row.values and "kwargs" not in row.values:
      continue  # saved answers and verdicts, which lie beside the prompts in published folders
    instructions = _instructions(row)
    items.append(
      Item(
        str(row["key"]), _language(row, instructions), ask(str(row["prompt"])), answer=instructions
      )
    )
  # No fidelity: many prompts ask for an answer in another language.
  return Suite("ifeval", items, follows, measure=("stopped",), max_new_tokens=1280)


def follows(item: Item, response: str) -> dict[str, bool | float]:
  """Whether all instructions are followed, and which share of them; strictly and loosely."""
  assert isinstance(item.answer, tuple)
  strict = [instruction.follows(response) for instruction in item.answer]
  loose = [s or i.follows_loosely(response) for s, i in zip(strict, item.answer, strict=True)]
  return {
    "prompt_strict": all(strict),
    "prompt_loose": all(loose),
    "instruction_strict": sum(strict) / len(strict),
    "instruction_loose": sum(loose) / len(loose),
  }


def _instructions(row: Row) -> tuple[Instruction, ...]:
  ids, given = (_list(row, column) for column in ("instruction_id_list", "kwargs"))
  if not ids or len(ids) != len(given):
    raise UserError(
      f"{row.place}: {len(ids)} instruction ids and {len(given)} kwargs; there must be as many, and at least one"
    )
  out = []
  for name, kwargs in zip(ids, given, strict=True):
    if not isinstance(name, str) or not isinstance(kwargs or {}, dict):
      raise UserError(
        f"{row.place}: the instruction {name!r} with {shorten(kwargs)}; expected are an id and an object"
      )
    out.append(read_instruction(name, kwargs or {}, row.place))
  return tuple(out)


def _list(row: Row, column: str) -> list:
  """The list of a column; of tables, as JSON in a field."""
  value = row[column]
  if isinstance(value, str):
    with contextlib.suppress(ValueError, RecursionError):
      value = json.loads(value)
  if not isinstance(value, list):
    raise UserError(f"{row.place}: {column} is {shorten(row[column])}; it must be a list")
  return value


def _language(row: Row, instructions: tuple[Instruction, ...]) -> str:
  """That of the row or the path, else of the ids of the instructions (es:...)."""
  prefix = next(filter(None, (prefix_of(i.id) for i in instructions)), None)
  if row.lang is None and prefix is None:
    raise UserError(
      f"{row.place}: neither a column (lang), nor the path, nor the instruction ids say the language; name the "
      "folder or the file after it, such as en/train.jsonl"
    )
  return row.lang or prefix
