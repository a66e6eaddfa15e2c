"""How many CPU cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # of cgroup v2: "QUOTA PERIOD", or "max PERIOD"


def usable_cores() -> int:
  """Those that the process may run on, or as many as its container's quota of time is worth."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  try:
    quota, period = CPU_MAX.read_text().split()
    return max(1, min(cores, int(quota) // int(period)))
  except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
    return cores
