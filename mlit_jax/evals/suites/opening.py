"""What --suite and eval.suites name: a shipped suite with its local copy, or a file of one's own."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from pathlib import Path

from mlit_jax import user_file
from mlit_jax.data.files import read_objects, shorten
from mlit_jax.data.languages import normalise_tag
from mlit_jax.data.rows import Message
from mlit_jax.errors import UserError
from mlit_jax.evals.suites import answering, choosing
from mlit_jax.evals.suites.ifeval import ifeval
from mlit_jax.evals.suites.suite import MEASURES, Item, Suite, check

SHIPPED: dict[str, Callable[[str], Suite]] = {
  "aya": answering.aya,
  "belebele": choosing.belebele,
  "global_mmlu": choosing.global_mmlu,
  "ifeval": ifeval,
  "language_confusion": answering.language_confusion,
  "m_arenahard": answering.m_arenahard,
  "mgsm": answering.mgsm,
  "multiq": answering.multiq,
  "sib200": choosing.sib200,
  "xcopa": choosing.xcopa,
  "xquad": answering.xquad,
  "xstorycloze": choosing.xstorycloze,
}
FILE_KEYS = {
  "name": str, "prompts": str, "languages": list, "measure": list, "max_new_tokens": int, "stop": list, "chat": bool,
}  # fmt: skip


def is_suite(spec: str) -> bool:
  """Whether this names a suite, or means to, and not a file of rows."""
  name, colon, _ = spec.partition(":")
  misspelt = colon and not Path(spec).exists() and _nearest(name)
  return name in SHIPPED or bool(misspelt) or spec.endswith((".py", ".suite.json"))


def open_suite(spec: str) -> Suite:
  """NAME:PATH of a shipped suite and its copy, FILE.py with get_suite(), or FILE.suite.json."""
  if spec.endswith(".py"):
    suite = _from_python(Path(spec))
    check(suite)
    return suite
  try:
    suite = _from_copy(spec)
    check(suite)
  except (TypeError, ValueError, LookupError, AttributeError) as e:
    raise UserError(
      f"the suite {shorten(spec, 200)}: its files hold a value that cannot be ({type(e).__name__}: {e}). Fetch them again, "
      "or correct them."
    ) from e
  return suite


def _from_copy(spec: str) -> Suite:
  name, colon, path = spec.partition(":")
  if name in SHIPPED:
    if not colon or not path:
      raise UserError(f"the suite {name} needs the path of a local copy: {name}:PATH")
    return SHIPPED[name](path)
  if spec.endswith(".suite.json"):
    return _from_json(Path(spec))
  raise UserError(
    f"{spec!r} names no suite{_nearest(name)}. Shipped are {', '.join(SHIPPED)}, each as NAME:PATH; or name a file: FILE.py with "
    "get_suite(), or FILE.suite.json"
  )


def _nearest(name: str) -> str:
  near = difflib.get_close_matches(name, SHIPPED, n=1)
  return f" (did you mean {near[0]}?)" if near else ""


def _from_python(path: Path) -> Suite:
  suite = user_file.call(path, "get_suite", what=f"the suite {path}")
  if not isinstance(suite, Suite):
    raise UserError(
      f"the suite {path}: get_suite() returns {type(suite).__name__}, not mlit_jax.evals.suites.suite.Suite"
    )
  return suite


def _from_json(path: Path) -> Suite:
  """{"prompts": FILE.jsonl, "languages": [...], "measure": [...]}: prompts have id, lang and prompt or messages."""
  try:
    given = json.loads(path.read_text(encoding="utf-8"))
  except OSError as e:
    raise UserError(f"the suite {path}: cannot be read ({e.strerror})") from None
  except (ValueError, RecursionError) as e:
    raise UserError(f"the suite {path}: broken JSON ({e})") from None
  if not isinstance(given, dict) or "prompts" not in given:
    raise UserError(f"the suite {path}: an object with `prompts`, a JSONL file, is expected")
  for key, value in given.items():
    if key not in FILE_KEYS:
      raise UserError(f"the suite {path}: unknown key {key!r}; keys are {', '.join(FILE_KEYS)}")
    if not isinstance(value, FILE_KEYS[key]):
      raise UserError(
        f"the suite {path}: {key} is {value!r}; it must be a {FILE_KEYS[key].__name__}"
      )
  items = list(read_prompts(_beside(path, given["prompts"])))
  suite = Suite(
    name=given.get("name", path.name.removesuffix(".suite.json")),
    items=items,
    measure=tuple(given.get("measure", MEASURES[:2])),
    max_new_tokens=given.get("max_new_tokens", 256),
    stop=tuple(given.get("stop", ())),
    chat=given.get("chat", True),
  )
  try:
    languages = {normalise_tag(tag) for tag in given.get("languages", ())}
  except UserError as e:
    raise UserError(f"the suite {path}: languages: {e}") from None
  return suite.only(languages) if languages else suite


def _beside(path: Path, name: str) -> Path:
  """The file of prompts that a suite names: in its own folder, or below it."""
  folder = path.parent.resolve()
  try:
    found = (folder / name).resolve()
  except (OSError, ValueError, RuntimeError) as e:
    raise UserError(f"the suite {path}: prompts {shorten(name)} is no file name ({e})") from None
  if not found.is_relative_to(folder):
    raise UserError(
      f"the suite {path}: prompts {shorten(name)} leads out of the suite's folder. Put the file beside the suite."
    )
  return path.parent / name


def read_prompts(path: Path):
  """Items of a JSONL file: id, lang, prompt or messages; optionally answer, choices, group_id."""
  for number, row in read_objects(path):
    try:
      turns = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
      yield Item(
        id=str(row.get("id", number)),
        lang=normalise_tag(row["lang"]),
        messages=tuple(Message(m["role"], m["content"]) for m in turns),
        choices=tuple(row.get("choices", ())),
        answer=row.get("answer"),
        group_id=row.get("group_id"),
      )
    except (ValueError, KeyError, TypeError, AttributeError) as e:
      raise UserError(
        f"{path}:{number}: expected an object with `lang` and `prompt` or `messages` ({type(e).__name__}: {e})"
      ) from None
