"""Answers to bundled prompts, judges that go by length, and the command as tests call it."""

import functools
import json

from mlit_jax import judge
from tests import commands

ASSETS = commands.ROOT / "mlit_jax" / "assets"
LANGUAGES = ("he", "sw", "zh")
ROWS = 5
SHORT = "{question}\n@@\n{answer_a}\n@@\n{answer_b}\n=====\nMark?\n"


@functools.cache
def bundled(lang):
  lines = (ASSETS / "instructions12" / "eval" / f"{lang}.jsonl").read_text(encoding="utf-8")
  return [json.loads(line) for line in lines.splitlines()]


def answers(response, languages=LANGUAGES, rows=ROWS, model="m"):
  """Answers to bundled prompts; response(row, i) -> text."""
  return [
    {"id": row["group_id"], "lang": lang, "prompt": row["prompt"], "response": response(row, i)}
    | {"model": model}
    for lang in languages
    for i, row in enumerate(bundled(lang)[:rows])
  ]


def good(row, i):
  return row["completion"]


def fair(row, i):
  """Half of a good answer, in its language."""
  return row["completion"][: len(row["completion"]) // 2]


def english(row, i):
  return " ".join(r["completion"] for r in bundled("en")[i : i + 3])


def shown(messages):
  """(question, first answer, second answer) as they stand in the short template, codes removed."""
  parts = messages[-1]["content"].partition("\n\nMark?")[0].split("\n@@\n")
  return ["\n".join(part.split("\n")[1:-1]) for part in parts]


def prefers_long(messages):
  _, first, second = shown(messages)
  return f"[[{'C' if len(first) == len(second) else 'A' if len(first) > len(second) else 'B'}]]"


def ok(*args):
  code, out, err = commands.here(judge, *args)
  assert code == 0, out + err
  return out


def refused(*args):
  code, out, err = commands.here(judge, *args)
  assert code == 2, out + err
  assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in out + err, err
  return err


def summary(folder):
  return json.loads((folder / "summary.json").read_text())["judging"]


def lines_of(path):
  return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
