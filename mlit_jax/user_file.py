"""A Python file of the user's, run for what one of its functions returns."""

from __future__ import annotations

import importlib.util
import traceback
from pathlib import Path

from mlit_jax.errors import UserError


def call(path: Path, function: str, *args, what: str, explain=None, optional=None):
  """What `function(*args)` of the file returns. `what` names it in messages: "--config runs/my.py".

  Whatever the file does, the fault is in it: UserError, with what `explain` says of an exception, if it says
  something. `optional`: what is returned where the file has no such function.
  """
  spec = importlib.util.spec_from_file_location("mlit_user_file", path)
  if not path.is_file() or spec is None or spec.loader is None:
    raise UserError(f"{what}: no such file")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    if not hasattr(module, function):
      if optional is not None:
        return optional
      raise UserError(f"{what}: the file has no function {function}()")
    return getattr(module, function)(*args)
  except UserError:
    raise
  except Exception as e:
    text = e.msg if isinstance(e, SyntaxError) else str(e)
    said = (explain and explain(e)) or f"{type(e).__name__}: {' '.join(text.split())}"
    raise UserError(f"{what}{_line_in(path, e)}: {said}") from e


def _line_in(path: Path, error: Exception) -> str:
  """As ":12", the line of the file at which it went wrong; "" if that is not known."""
  if isinstance(error, SyntaxError) and error.filename == str(path):
    return f":{error.lineno}"
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == str(path)]
  return f":{lines[-1]}" if lines else ""
