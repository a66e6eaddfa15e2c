"""Files and folders that are not whole yet: their names, and the removal of those that a dead process left."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import time
from pathlib import Path

_MARK = ".partial-"
FORGOTTEN_SECONDS = 24 * 3600
# Of a workdir: full of files, and cleaned by who writes them.
_APART = ("checkpoints", "cache", "quarantine", "profile")


def beside(path: Path) -> Path:
  """A new name in the folder of `path`, to be renamed to it when whole; it says which process writes there."""
  own = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
  return path.with_name(f".{path.name}{_MARK}{own}")


def remove_dead(folder: Path, name: str = "", *, all_hosts: bool = False) -> None:
  """Remove from a folder what processes left when they were killed; of `name` alone if given.

  Whether a process of another host lives is not known: what it has not touched for a day goes. all_hosts: all goes;
  for who knows that no other process is at work there.
  """
  for left in folder.glob(f".*{_MARK}*") if folder.is_dir() else ():
    if not name or _parts(left)[0] == name:
      _remove_if_dead(left, all_hosts)


def remove_dead_below(workdir: Path) -> None:
  """The same in all folders of a workdir that files are written into one by one."""
  for folder, below, files in os.walk(workdir):
    for name in (*below, *files):
      if name.startswith(".") and _MARK in name:
        _remove_if_dead(Path(folder, name))
    below[:] = [name for name in below if name not in _APART and not name.startswith(".")]


def _parts(left: Path) -> tuple[str, str]:
  """(what it was to become, who wrote it)."""
  name, _, writer = left.name[1:].rpartition(_MARK)
  return name, writer


def _remove_if_dead(left: Path, all_hosts: bool = False) -> None:
  if not all_hosts and not _is_dead(left, _parts(left)[1]):
    return
  if left.is_dir():
    shutil.rmtree(left, ignore_errors=True)
  else:
    left.unlink(missing_ok=True)


def _is_dead(left: Path, writer: str) -> bool:
  """Whether "host-pid-token" is of a process that is gone."""
  host, _, pid = writer.rpartition("-")[0].rpartition("-")
  if not host or not pid.isdigit():
    return False  # not ours
  try:
    if host != socket.gethostname():
      return time.time() - left.stat().st_mtime > FORGOTTEN_SECONDS
    os.kill(int(pid), 0)
  except (ProcessLookupError, FileNotFoundError):
    return True
  except (OSError, OverflowError):
    pass
  return False
