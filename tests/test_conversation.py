"""The chat, with a model that repeats what it is told."""

import json

import pytest

from mlit_jax.conversation import HELP, chat
from mlit_jax.data.rows import read_sources
from mlit_jax.errors import UserError


def repeat(messages):
  text = messages[-1]["content"]
  if text == "too long":
    raise UserError("the prompt has 9 tokens; the longest that fits is 8.")
  for i, character in enumerate(text):
    if character == "!" and text != "!":
      raise KeyboardInterrupt
    if text == "!":
      return
    yield f"{len(messages)}" if i == 0 else character


def talk(*lines, system="", answer=repeat):
  """What is shown when these are written; an exception in place of a line is raised there."""
  waiting, shown = list(lines), []

  def read(_):
    line = waiting.pop(0) if waiting else EOFError()
    if isinstance(line, BaseException):
      raise line
    return line

  chat(answer, system=system, read=read, show=shown.append)
  assert not waiting
  return "".join(shown).splitlines()


def test_answers_come_in_turn_and_commands_change_the_conversation():
  shown = talk(
    "hello", "again", "", "/reset", "hello", "/system Short.", "hello", "/system", "hello"
  )
  assert shown[:3] == ["1ello", "3gain", "begun anew"]
  assert shown[3] == "1ello"
  assert shown[4:6] == ["system text: Short.; begun anew", "2ello"]
  assert shown[6:8] == ["system text: none; begun anew", "1ello"]
  assert talk("hello", system="Be brief.")[0] == "2ello"


def test_help_slashes_and_what_is_no_command():
  shown = talk("/help", "//home", "/rest")
  assert shown[: HELP.count("\n") + 1] == HELP.splitlines()
  assert shown[-3:] == ["1home", "/rest is no command; /help lists them, //TEXT says /TEXT", ""]


def test_ctrl_c_stops_the_answer_and_not_the_chat():
  """What was said is kept; a question without any answer is taken back."""
  shown = talk(KeyboardInterrupt(), "abc!def", "next", "!", "next", "too long", "next")
  assert shown[:2] == ["", "ctrl-d ends, /help lists commands"]
  assert shown[2:4] == ["1bc [stopped]", "3ext"]
  assert shown[4:6] == ["", "5ext"]
  assert shown[6].startswith("error: the prompt has 9 tokens") and shown[7] == "7ext"


def test_a_saved_conversation_is_a_row_that_training_reads(tmp_path):
  path = tmp_path / "chat.jsonl"
  shown = talk(
    "/save", f"/save {path}", "Habari\u2028gani?", f"/save {path}", "/reset", "你好", "نعم",
    f"/save {path}", f"/save {tmp_path / 'no' / 'such'}", system="Fupi.",
  )  # fmt: skip
  assert shown[0] == "/save needs a file: /save chat.jsonl"
  assert shown[1] == "nothing to save yet: there is no answer"
  assert "No such file or directory. Name another file." in "\n".join(shown)
  lines = path.read_bytes().decode().split("\n")
  assert [len(json.loads(line)["messages"]) for line in lines[:-1]] == [3, 5]
  first, second = read_sources({"sw": [str(path)]}, where="data.train").conversations
  assert [(m.role, m.content) for m in first.messages] == [
    ("system", "Fupi."), ("user", "Habari\u2028gani?"), ("assistant", "2abari\u2028gani?"),
  ]  # fmt: skip
  assert second.messages[3].content == "نعم"


@pytest.mark.parametrize("error", [ValueError("a fault"), SystemExit(1)])
def test_a_fault_of_ours_is_not_swallowed(error):
  def broken(_):
    raise error

  with pytest.raises(type(error)):
    talk("hello", answer=broken)
