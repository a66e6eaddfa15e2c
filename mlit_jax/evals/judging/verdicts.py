"""Verdicts: how they are read from a judge's reply, and the file that keeps every one of them.

A verdict is the slot a judge chose: "first", "second", "tie", or None where the reply said none.
"""

from __future__ import annotations

import json
import os
import time
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import regex

from mlit_jax.errors import UserError

CHOICES = {"A": "first", "B": "second", "C": "tie", "TIE": "tie"}
MARK = regex.compile(r"\[\[[\s*_`'\"]*(A|B|C|TIE)[\s*_`'\"]*\]\]", regex.IGNORECASE)
# A judge that writes Russian or Czech may take the letter from its own keyboard.
LOOKALIKES = str.maketrans("АВСавс", "ABCabc")
OPENING = regex.compile(r"([\[［﹇])(?=[\[［﹇])")  # whatever NFKC turns into [
DECORATION = " \t\r\n*_`'\".,:;!()[]"
THOUGHT_BEGINS, THOUGHT_ENDS = regex.compile("<think(?:ing)?>"), regex.compile("</think(?:ing)?>")

VERSION = 1
SYNC_SECONDS = 1.0


def parse(reply: str) -> str | None:
  """The slot that a reply chose, None where it cannot be read.

  "B is clearer.\\n[[B]]" -> second    "[[C]]" -> tie    "A" -> first    "**[[A]]**" -> first
  Marks that differ count only if the last line ends with one: a judge may name them before it
  decides, and one that merely repeats the rubric decides nothing.
  """
  text = _spelt(_without_thoughts(reply))
  if "<think" in text:  # cut off before it came to a verdict
    return None
  if text.strip(DECORATION) in CHOICES:
    return CHOICES[text.strip(DECORATION)]
  marks = {mark.upper() for mark in MARK.findall(text)}
  if len({CHOICES[mark] for mark in marks}) == 1:
    return CHOICES[marks.pop()]
  if not marks:
    return None
  last_line = text.strip().splitlines()[-1].rstrip(DECORATION.replace("]", ""))
  found = list(MARK.finditer(last_line))
  alone = len(found) == 1 and found[0].end() == len(last_line)
  return CHOICES[found[0][1].upper()] if alone else None


def disarm(text: str) -> str:
  """The text without anything that parse takes for a mark: [[A]] becomes [ [A]]; else as it was."""
  return OPENING.sub(r"\1 ", text) if MARK.search(_spelt(text)) else text


def winner(order: str, choice: str | None) -> str | None:
  """ "a", "b", "tie" or None: whose answer stood in the slot that was chosen."""
  if choice in (None, "tie"):
    return choice
  return order[0] if choice == "first" else order[1]


def json_line(value) -> str:
  """One line of JSON with readable text. Half an emoji has no UTF-8; its escape means the same."""
  text = json.dumps(value, ensure_ascii=False, allow_nan=False)
  return text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n"


class Store:
  """verdicts.jsonl: a line that names the prompt set, then a line for each verdict, appended whole.

  What a kill cut off is dropped at the next opening. Only one process may hold it (see
  runtime.locked).
  """

  def __init__(self, path: Path, *, prompts: str, num_prompts: int):
    """prompts: the fingerprint of the prompt set; the file of another set is refused."""
    self.path = path
    self.by_key: dict[str, dict] = {}
    header = {"version": VERSION, "prompts": prompts, "num_prompts": num_prompts}
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      content = path.read_bytes() if path.exists() else b""
      whole = content[: content.rfind(b"\n") + 1]
      if whole:  # judged before the file is touched: a refusal leaves it as it was
        self._read(whole, header)
      self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
      os.ftruncate(self.fd, len(whole))
    except OSError as e:
      raise UserError(f"{path}: {e.strerror or e}. Choose another --out.") from e
    self.synced = time.monotonic()
    # Written with the first verdict: a run that came to nothing claims no folder for its prompts.
    self.unwritten = None if whole else header

  def __enter__(self):
    return self

  def __exit__(self, *_):
    os.fsync(self.fd)
    os.close(self.fd)

  def add(self, record: Mapping) -> None:
    """Keep a record under its `key`; on the disk a second later at most, or when the file is closed."""
    if self.unwritten:
      self._append(self.unwritten)
      self.unwritten = None
    self._append(record)
    self.by_key[record["key"]] = dict(record)
    if time.monotonic() - self.synced > SYNC_SECONDS:
      os.fsync(self.fd)
      self.synced = time.monotonic()

  def _append(self, value) -> None:
    data = json_line(value).encode("utf-8")
    try:
      written = os.write(self.fd, data)
    except OSError as e:
      raise UserError(
        f"{self.path}: {e.strerror or e}. Make room and run the command again."
      ) from e
    if written != len(data):
      raise UserError(f"{self.path}: the disk is full. Make room and run the command again.")

  def _read(self, content: bytes, header: dict) -> None:
    lines = content.split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, 1):
      try:
        rows.append(json.loads(line))
        if not isinstance(rows[-1], dict) or (number > 1 and not _is_verdict(rows[-1])):
          raise ValueError("not a verdict")
      except (ValueError, RecursionError) as e:
        raise UserError(
          f"{self.path}:{number} is damaged ({e}). Delete that line, or choose another --out."
        ) from e
    found = rows[0]
    if found.get("version") != VERSION or not isinstance(found.get("prompts"), str):
      raise UserError(f"{self.path} is not a file of verdicts. Choose another --out.")
    if found["prompts"] != header["prompts"]:
      raise UserError(
        f"{self.path} holds verdicts on another prompt set ({found.get('num_prompts')} prompts, "
        f"{found['prompts'][:8]}; these files have {header['num_prompts']}, "
        f"{header['prompts'][:8]}). Choose another --out, or give the files it was made for."
      )
    for row in rows[1:]:
      self.by_key.setdefault(row["key"], row)


def _is_verdict(row: dict) -> bool:
  choices = (*CHOICES.values(), None)
  return isinstance(row.get("key"), str) and row.get("choice", 0) in choices


def _without_thoughts(text: str) -> str:
  """In one pass: of many beginnings without an end, a pattern would look for it from each."""
  kept, at = [], 0
  while begins := THOUGHT_BEGINS.search(text, at):
    ends = THOUGHT_ENDS.search(text, begins.end())
    if ends is None:
      break
    kept.append(text[at : begins.start()])
    at = ends.end()
  return " ".join([*kept, text[at:]])


def _spelt(text: str) -> str:
  return unicodedata.normalize("NFKC", text).translate(LOOKALIKES)
