"""The folders of checkpoints as files: room for one more, damaged ones set aside."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from pathlib import Path

from mlit_jax import runtime
from mlit_jax.errors import UserError

DIGEST = "digest"  # key of `meta`: of the arrays
BEING_WRITTEN = "*.orbax-checkpoint-tmp*"
BEING_DELETED = ".deleted-"
QUARANTINE = "quarantine"  # beside the folder of checkpoints
MARGIN = 1.05  # of the size of a step: what must be free for the next


class Damaged(UserError):
  """A checkpoint that is not as it was saved."""


def steps_in(folder: Path) -> list[int]:
  """The steps saved in a folder; nothing if it is not there."""
  with contextlib.suppress(FileNotFoundError, NotADirectoryError):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir())
  return []


def size_of(folder: Path) -> int:
  """Bytes of all files below; a file under two names counts once."""
  found = {}
  for path in folder.rglob("*"):
    with contextlib.suppress(FileNotFoundError):
      info = path.lstat()
      found[info.st_dev, info.st_ino] = info.st_size if path.is_file() else 0
  return sum(found.values())


def in_words(num_bytes: float) -> str:
  """12.3 MB."""
  for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
    if num_bytes >= unit:
      return f"{num_bytes / unit:,.1f} {name}"
  return f"{num_bytes / 1e3:,.1f} kB"


def check_can_save(folder: Path, size: int) -> None:
  """OSError where a step of `size` bytes cannot be written, before anything of it is."""
  if not folder.is_dir():
    # Not made anew: where a disk has gone, the next would be written onto the one below it.
    raise FileNotFoundError(f"the folder {folder} is gone")
  with tempfile.TemporaryFile(dir=folder) as file:
    file.write(b"0" * 4096)
    file.flush()
    os.fsync(file.fileno())
  free = shutil.disk_usage(folder).free
  if free < size * MARGIN:
    raise OSError(
      f"{folder} has {in_words(free)} free, a step takes {in_words(size)}; make room, or lower "
      "checkpoint.keep_latest and checkpoint.keep_best"
    )


def make_durable(step_folder: Path) -> None:
  """Wait until the disk has every file and name of a step, so that a power cut takes none of them."""
  for path in (step_folder.parent, step_folder, *step_folder.rglob("*")):
    fd = os.open(path, os.O_RDONLY)
    try:
      os.fsync(fd)
    finally:
      os.close(fd)


def set_aside(step_folder: Path, reason: str) -> Path:
  """Move a damaged step to quarantine/<step>-<n> beside its folder, with the reason in reason.json."""
  quarantine = step_folder.parent.parent / QUARANTINE
  quarantine.mkdir(exist_ok=True)
  n = 1
  while (quarantine / f"{step_folder.name}-{n}").exists():
    n += 1
  there = quarantine / f"{step_folder.name}-{n}"
  os.rename(step_folder, there)
  runtime.write_json(there / "reason.json", {"step": int(step_folder.name), "reason": reason})
  return there


def remove(step_folder: Path) -> None:
  """Delete a step; renamed first, so that a kill in between leaves no half step that looks whole."""
  doomed = step_folder.parent / f"{BEING_DELETED}{step_folder.name}"
  shutil.rmtree(doomed, ignore_errors=True)
  os.rename(step_folder, doomed)
  shutil.rmtree(doomed, ignore_errors=True)


def clean(folder: Path) -> None:
  """Delete what a kill or a failed save left half written or half deleted."""
  for pattern in (BEING_WRITTEN, f"{BEING_DELETED}*"):
    for path in folder.glob(pattern):
      _delete(path)


def _delete(path: Path) -> None:
  """Also where a thread of the save that has failed still writes a file into it meanwhile."""
  for _ in range(50):
    try:
      shutil.rmtree(path)
      return
    except OSError as e:
      if e.errno not in (errno.ENOTEMPTY, errno.ENOENT):
        return  # a disk that refuses: the next start tries again
      if not path.exists():
        return
      time.sleep(0.02)


def in_one_line(error: Exception) -> str:
  """What went wrong, without the pages that a library adds."""
  text = " ".join(str(error).split()) or type(error).__name__
  return text if len(text) <= 300 else f"{text[:300]} ..."
