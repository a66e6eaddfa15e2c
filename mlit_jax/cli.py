"""`mlit VERB ...` is `python -m mlit_jax.VERB ...`."""

from __future__ import annotations

import runpy
import sys

VERBS = (
  "train",
  "preview",
  "evaluate",
  "generate",
  "judge",
  "export",
  "report",
  "plan",
  "sweep",
  "checkpoints",
  "doctor",
)


def main() -> int:
  """Entry point of the console script."""
  verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
  if verb in ("-h", "--help"):
    print(f"usage: mlit VERB ...\n\nverbs: {', '.join(VERBS)}; mlit VERB --help tells more")
    return 0
  if verb not in VERBS:
    print(f"error: unknown verb {verb!r}; verbs are {', '.join(VERBS)}", file=sys.stderr)
    return 2
  sys.argv = [f"mlit {verb}", *sys.argv[2:]]
  runpy.run_module(f"mlit_jax.{verb}", run_name="__main__")
  return 0
