"""What an examination gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from mlit_jax.errors import UserError

OK, WARNING, WRONG = "ok", "warning", "wrong"


class Finding(NamedTuple):
  """One item: its state, what was found, and what to do where that is not well."""

  state: str
  item: str
  found: str
  remedy: str = ""

  def line(self) -> str:
    text = f"{self.state:<8} {self.item}: {self.found}"
    return f"{text}. {self.remedy}" if self.remedy else text


def ok(item: str, found: str) -> Finding:
  return Finding(OK, item, found)


def warning(item: str, found: str, remedy: str) -> Finding:
  return Finding(WARNING, item, found, remedy)


def wrong(item: str, found: str, remedy: str) -> Finding:
  return Finding(WRONG, item, found, remedy)


def examine(item: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
  """What `look` finds; a crash of it is a finding too, so that the other items are still looked at."""
  found = []
  try:
    found.extend(look())
  except UserError as e:  # it says what to do
    found.append(wrong(item, str(e), ""))
  except Exception as e:
    text = " ".join(str(e).split())[:300]
    found.append(
      wrong(
        item, f"{type(e).__name__}: {text}", "Mend what it names; --debug shows where it arose."
      )
    )
  return found
