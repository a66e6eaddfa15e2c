"""A config file and its overrides become one checked ConfigDict; nothing beyond the entry points sees it."""

from __future__ import annotations

import ast
import difflib
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mlit_jax import user_file
from mlit_jax.errors import UserError

# Keys that hold something else by default, or a list instead.
MAY_BE_LIST = ("data.train", "data.mixture", "data.detect_language", "eval.suites", "log.trackers")
OF_SWEEP = "run."  # before the same keys in a sweep's config


def load_config(file: str, overrides: Sequence[str] = (), *, base: str = "base") -> ConfigDict:
  """The config of `file` with `--config.KEY=VALUE` overrides, checked against configs/base.py (or another).

  Raises UserError for a missing file, a key that base.py does not have (the nearest one is named), a value
  of another type.
  """
  config = _run_config_file(Path(file))
  _check_keys(config, base_config(base), file)
  for text in overrides:
    _override(config, text)
  return config


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, object]:
  """{"optimizer.learning_rate": 1e-5, ...}"""
  out = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      out |= flatten(value, f"{prefix}{key}.")
    else:
      out[prefix + key] = value
  return out


def nested(config: ConfigDict) -> dict:
  """Plain nested dicts, as config.json holds them."""
  return {k: nested(v) if isinstance(v, ConfigDict) else v for k, v in config.items()}


def _run_config_file(path: Path) -> ConfigDict:
  if not path.is_file():
    folder = sorted(str(p) for p in Path("configs").glob("*.py") if not p.name.startswith("_"))
    raise UserError(
      f"--config {path}: no such file. Here are: {', '.join(folder) or 'no configs/*.py'}."
    )
  # `from configs import base` works from the root of a checkout and wherever the package is installed.
  root = str(path.resolve().parent.parent)
  if root not in sys.path:
    sys.path.append(root)
  config = user_file.call(path, "get_config", what=f"--config {path}", explain=_misspelt)
  if not isinstance(config, ConfigDict):
    raise UserError(
      f"--config {path}: get_config() returns {type(config).__name__}, not a ConfigDict"
    )
  return config


def base_config(name: str = "base") -> ConfigDict:
  """All keys with their defaults: of a run, or of a sweep ("sweep")."""
  # Late: found once the config file's own root is on the path.
  return importlib.import_module(f"configs.{name}").get_config()


def _check_keys(config: ConfigDict, base: ConfigDict, file: str) -> None:
  known, given = flatten(base), flatten(config)
  for key, value in given.items():
    if key not in known:
      raise UserError(f"{file}: {_unknown(key, known)}")
    given_value = _typed(key, value, known[key], file)
    if given_value is not value:
      assign(config, key, given_value)
  for key in known:
    if key not in given:
      raise UserError(f"{file}: key {key!r} is missing; start from configs.base.get_config()")


def _override(config: ConfigDict, text: str) -> None:
  if not text.startswith("--config.") or "=" not in text:
    raise UserError(
      f"unknown argument {text!r}; overrides look like --config.optimizer.learning_rate=1e-5"
    )
  key, value = text.removeprefix("--config.").split("=", 1)
  known = flatten(config)
  if key not in known:
    raise UserError(f"--config.{key}: {_unknown(key, known)}")
  assign(config, key, _typed(key, _parse(value, known[key], key), known[key], "command line"))


def _parse(text: str, like, key: str):
  if isinstance(like, str):
    return text
  if isinstance(like, bool) and text.lower() in ("true", "false", "1", "0", "yes", "no"):
    return text.lower() in ("true", "1", "yes")
  for reader in (ast.literal_eval, json.loads):
    try:
      return reader(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
      continue
  raise UserError(f"--config.{key}={text}: cannot be read as {_kind(like, key)}")


def _typed(key: str, value, like, place: str):
  """`value`, with an integer made a float where one is wanted; UserError if it is of another kind."""
  if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  sequence = isinstance(like, (list, tuple)) and isinstance(value, (list, tuple))
  alike = (
    type(value) is type(like)
    or sequence
    or (_may_be_list(key) and isinstance(value, (list, tuple)))
  )
  if not alike:
    raise UserError(f"{place}: {key} = {value!r} must be {_kind(like, key)}, like {like!r}")
  return value


def assign(config: ConfigDict, key: str, value) -> None:
  """Set "optimizer.learning_rate" of a nested config, whatever kind of value it held."""
  *groups, last = key.split(".")
  for group in groups:
    config = config[group]
  with config.ignore_type():
    config[last] = value


def _may_be_list(key: str) -> bool:
  return key.removeprefix(OF_SWEEP) in MAY_BE_LIST


def _kind(like, key: str) -> str:
  names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
  name = names.get(type(like), "a list" if isinstance(like, (list, tuple)) else "a mapping")
  if _may_be_list(key):
    name += " or a list"
  return name if name in names.values() else f"{name} (a Python or JSON literal)"


def _unknown(key: str, known) -> str:
  near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
  ending = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
  hint = ending[:1] or near
  return f"unknown key {key!r}" + (
    f"; did you mean {hint[0]!r}?" if hint else "; see configs/base.py"
  )


def _misspelt(error: Exception) -> str:
  """A locked ConfigDict refuses a new key; its text names the nearest."""
  if not isinstance(error, (AttributeError, KeyError)):
    return ""
  text = str(error).strip("\"'").replace("\\n", " ").replace("\n", " ")
  return f"{text} (every key is in configs/base.py)"
