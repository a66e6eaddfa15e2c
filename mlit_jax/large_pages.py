"""Large pages of memory for a run on CPU.

XLA takes what a step works with from the C library and gives it back, a gigabyte and more each time, and the kernel
makes it anew in pages of 4 KiB: 266,000 page faults a step of 13 M parameters (docs/performance.md). glibc asks for
pages of 2 MiB where GLIBC_TUNABLES says so, which it reads as a process begins. So the command begins again.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_TUNABLES = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb"
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use(*commands: str) -> None:
  """This process again, from its first line, with large pages; returns where they do not help or are decided on.

  commands: names of which one stands among the arguments of the process; without one this is another program,
  such as a notebook, that runs the command within it, and it is left alone. To be called before anything else is
  imported: what was done until then is done twice. The process keeps its number, its arguments and its open
  files. GLIBC_TUNABLES=glibc.malloc.hugetlb=0 turns it off.
  """
  is_ours = any(Path(argument).name in commands for argument in sys.orig_argv)
  if not (is_ours and would_help(os.environ)):
    return
  os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], asking(os.environ))


def asking(environ: Mapping[str, str]) -> dict[str, str]:
  """The same environment, for a process that is to have large pages."""
  tunables = filter(None, [environ.get(_TUNABLES), f"{_TUNABLE}=1"])
  return {**environ, _TUNABLES: ":".join(tunables)}


def would_help(environ: Mapping[str, str]) -> bool:
  """Whether JAX will run on CPU, glibc can ask for large pages, and the kernel gives them to who asks only."""
  if sys.platform != "linux" or _TUNABLE in environ.get(_TUNABLES, ""):
    return False
  return _is_on_cpu(environ) and _glibc() >= (2, 35) and _kernel() == "madvise"


def _is_on_cpu(environ: Mapping[str, str]) -> bool:
  """By name, or because nothing else is installed: JAX itself is not asked, as that takes seconds."""
  named = environ.get("JAX_PLATFORMS")
  if named:
    return named == "cpu"
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  return not plugins and not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def _glibc() -> tuple[int, ...]:
  try:
    return tuple(int(n) for n in os.confstr("CS_GNU_LIBC_VERSION").split()[1].split("."))
  except (AttributeError, IndexError, OSError, ValueError):  # another C library
    return (0,)


def _kernel() -> str:
  """always, madvise or never, or nothing where it does not say."""
  try:
    return _KERNEL.read_text().partition("[")[2].partition("]")[0]
  except OSError:
    return ""
