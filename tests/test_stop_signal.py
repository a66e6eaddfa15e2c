"""Signals to a run: who is told twice at once saves all the same, who is told again ends."""

import subprocess
import sys
import textwrap

import pytest

from tests import commands
from tests.few import few

RUN = """
import os, signal, sys, time
from mlit_jax.signals import StopSignal

with StopSignal() as stop:
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep({pause})
  os.kill(os.getpid(), signal.{second})
  time.sleep(2)  # whichever thread hears it
  print("saved on", stop.name)
"""


@pytest.mark.parametrize("second, number", few(1, [("SIGTERM", 15), ("SIGUSR1", 10)]))
def test_two_signals_at_once_are_one(second, number):
  """As under SLURM, which signals all processes of a job, while a sweep tells its runs."""
  for pause, code, out in ((0.1, 0, "saved on SIGTERM\n"), (1.2, 128 + number, "")):
    text = textwrap.dedent(RUN).format(pause=pause, second=second)
    done = subprocess.run(
      [sys.executable, "-c", text], cwd=commands.ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (code, out), done.stderr
