"""A config file and its overrides become one checked ConfigDict; nothing beyond the entry points sees it."""

from __future__ import annotations

import ast
import difflib
import importlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
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
  config = _run_config_file(Path(file), base)
  _check_kind(config, base, file)
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


def _run_config_file(path: Path, base: str) -> ConfigDict:
  if not path.is_file() or path.suffix != ".py":
    raise UserError(f"--config {path}: {_no_config(path)}")
  # `from configs import base` works from the root of a checkout and wherever the package is installed.
  root = str(path.resolve().parent.parent)
  if root not in sys.path:
    sys.path.append(root)

  def explain(error):
    return _misspelt(error, flatten(base_config(base)))

  config = user_file.call(path, "get_config", what=f"--config {path}", explain=explain)
  if not isinstance(config, ConfigDict):
    raise UserError(
      f"--config {path}: get_config() returns {type(config).__name__}, not a ConfigDict"
    )
  return config


def _no_config(path: Path) -> str:
  """Why it is none, and which there are: beside it, or else in configs/."""
  why = "no such file"
  if path.exists():
    why = f"a {'folder' if path.is_dir() else 'file'}, but not a Python file with get_config()"
  folders = (path if path.is_dir() else path.parent, Path("configs"))
  beside, ours = ([p for p in f.glob("*.py") if not p.name.startswith("_")] for f in folders)
  found = sorted(map(str, beside or ours))
  near = difflib.get_close_matches(str(path), found, n=1)
  hint = f" Did you mean {near[0]}?" if near else ""
  return f"{why}.{hint} Here are: {', '.join(found[:20]) or 'no configs/*.py'}."


def _check_kind(config: ConfigDict, base: str, file: str) -> None:
  """A sweep's config holds that of its runs in `run`; neither can stand for the other."""
  is_sweep = "run" in config and "optimizer" not in config
  if is_sweep and base == "base":
    raise UserError(
      f"--config {file} is a config for the other command, `sweep`: it describes many runs. Start it with "
      "mlit_jax.sweep, or name the config of one run, such as configs/quickstart.py"
    )
  if base == "sweep" and "optimizer" in config and "run" not in config:
    raise UserError(
      f"--config {file} is a config for the other command, `train`: it describes one run. Start it with "
      "mlit_jax.train, or name the config of a sweep, such as configs/paper/fig3_pinch.py"
    )


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
    example = "" if key == "epochs" else f", like {like!r}"  # 0 would be no good advice
    raise UserError(f"{place}: {key} = {value!r} must be {_kind(like, key)}{example}")
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
  if _may_be_list(key) and name != "a list":
    name += " or a list"
  return name if name in names.values() else f"{name} (a Python or JSON literal)"


def _unknown(key: str, known) -> str:
  near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
  ending = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
  hint = ending[:1] or near
  return f"unknown key {key!r}" + (
    f"; did you mean {hint[0]!r}?" if hint else "; see configs/base.py"
  )


def _misspelt(error: Exception, known: Mapping[str, object]) -> str:
  """What a ConfigDict says of a key that it does not have, or of a value of another type, in our words."""
  text = str(error)
  wrong = re.search(
    r"override field '(\w+)'.*?\. (.*) is of original type <class '(\w+)'>", text, re.S
  )
  if isinstance(error, TypeError) and wrong:
    name, value, kind = wrong.groups()
    keys = [key for key in known if key.split(".")[-1] == name]
    wanted = " or ".join(sorted({f"{_kind(known[key], key)}, like {known[key]!r}" for key in keys}))
    given = repr(value) if kind == "str" else f"{value} ({kind})"
    return f"{' or '.join(keys) or name} = {given} must be {wanted or 'of another type'}"
  # A key that is set, or one that is read.
  missing = re.search(r"Key \W*(\w+)\W* does not exist", text)
  if isinstance(error, AttributeError) and not missing:
    missing = re.match(r"\W*(\w+?)(\W*|\W+n)(Did you mean .*)?$", text, re.S)
  if not isinstance(error, (AttributeError, KeyError)) or not missing:
    return ""
  name = missing[1]
  parts = {
    part: ".".join(key.split(".")[: i + 1])
    for key in known
    for i, part in enumerate(key.split("."))
  }
  near = difflib.get_close_matches(name, parts, n=1)
  hint = f"did you mean {parts[near[0]]!r}" if near else "every key is in configs/base.py"
  return f"unknown key {name!r}; {hint}" + "?" * bool(near)
