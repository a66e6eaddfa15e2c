"""A process that ends with the one that started it, however that one dies."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
  """Have this process killed when the process `parent`, which must have started it, is gone.

  Linux only; elsewhere nothing happens. It hangs on the thread that started this process: that one must live as
  long as its process.
  """
  if sys.platform != "linux":
    return
  ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent:  # it died before
    os.kill(os.getpid(), signal.SIGKILL)
