"""A command of ours that ends with the process that started it: `python -m mlit_jax.experiments.child PID VERB ...`.

A sweep that is killed must leave no run behind: it would go on unseen and hold its workdir. Linux only; elsewhere
such a run goes on until it is done.
"""

from __future__ import annotations

import runpy
import sys

from mlit_jax import lifeline


def main() -> None:
  parent, verb = int(sys.argv[1]), sys.argv[2]
  lifeline.end_with(parent)
  sys.argv = [f"mlit_jax.{verb}", *sys.argv[3:]]
  runpy.run_module(f"mlit_jax.{verb}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
