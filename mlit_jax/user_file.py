"""A Python file of the user's, run for what one of its functions returns."""

from __future__ import annotations

import importlib.util
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
    said = (explain and explain(e)) or f"{type(e).__name__}: {' '.join(str(e).split())}"
    raise UserError(f"{what}: {said}") from e
