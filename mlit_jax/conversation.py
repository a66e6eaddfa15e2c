"""A chat on the terminal: lines in, answers out as they come, and commands that begin with a slash."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from mlit_jax.errors import UserError

HELP = """/reset        begins anew
/system TEXT  sets the system text and begins anew; without a text there is none
/save FILE    appends the conversation to FILE, a JSONL row with `messages` that training reads
/help         lists this
//TEXT        says /TEXT
ctrl-c        stops an answer; what was said of it is kept
ctrl-d        ends"""

Message = dict[str, str]


def chat(
  answer: Callable[[list[Message]], Iterable[str]],
  *,
  system: str = "",
  read: Callable[[str], str] = input,
  show: Callable[[str], None] = lambda text: print(text, end="", flush=True),
) -> None:
  """Read lines until the input ends; `answer` gives the pieces of an answer to the messages so far."""
  conversation = Conversation(system)
  while True:
    try:
      line = read("> ").strip()
    except EOFError:
      show("\n")
      return
    except KeyboardInterrupt:
      show("\nctrl-d ends, /help lists commands\n")
      continue
    if line.startswith("/") and not line.startswith("//"):
      show(conversation.command(line) + "\n")
    elif line:
      conversation.exchange(line.removeprefix("/") if line[0] == "/" else line, answer, show)


class Conversation:
  """The messages so far; all but while an answer is given, they end with one."""

  def __init__(self, system: str = ""):
    self.system = system
    self.reset()

  def reset(self) -> None:
    self.messages = [{"role": "system", "content": self.system}] if self.system else []

  def exchange(self, text: str, answer, show) -> None:
    """One question and its answer, shown as it comes. Without an answer the question is taken back."""
    self.messages.append({"role": "user", "content": text})
    said = ""
    try:
      for piece in answer(self.messages):
        said += piece
        show(piece)
    except KeyboardInterrupt:
      show(" [stopped]")
    except UserError as e:
      show(f"error: {e} /reset begins anew.")
    show("\n")
    if said:
      self.messages.append({"role": "assistant", "content": said})
    else:
      self.messages.pop()

  def command(self, line: str) -> str:
    """Do what the line says; what to tell the user."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/help":
      return HELP
    if name == "/reset":
      self.reset()
      return "begun anew"
    if name == "/system":
      self.system = rest
      self.reset()
      return f"system text: {rest or 'none'}; begun anew"
    if name == "/save":
      return self._save(rest)
    return f"{name} is no command; /help lists them, //TEXT says /TEXT"

  def _save(self, path: str) -> str:
    if not path:
      return "/save needs a file: /save chat.jsonl"
    if not any(m["role"] == "assistant" for m in self.messages):
      return "nothing to save yet: there is no answer"
    line = json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n"
    try:
      with open(Path(path).expanduser(), "a", encoding="utf-8") as file:
        file.write(line)
    except OSError as e:
      return f"cannot write {path}: {e.strerror}. Name another file."
    return f"{len(self.messages)} messages appended to {path}"
