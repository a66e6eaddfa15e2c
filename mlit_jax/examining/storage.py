"""Folders that a run writes to: space, speed, and whether renaming and locking mean what they say there."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

from mlit_jax.examining.finding import Finding, ok, warning, wrong

GIB, MIB = 1 << 30, 1 << 20
LEAST_FREE, FEW_FREE = GIB, 20 * GIB  # wrong; warning
WRITTEN = 64 * MIB
SLOW = 50e6  # bytes/s: a checkpoint of a billion parameters, 12 GB, would take four minutes
RENAMES = 200
MOST_SKEW = 5.0  # seconds between the clock here and that of the file system
EARLIEST = 1_750_000_000  # mid 2025: this code is younger


def existing(folder: Path) -> Path:
  """It, or the nearest folder above that is there: a workdir need not exist yet."""
  folder = folder.expanduser().absolute()
  return next(p for p in (folder, *folder.parents) if p.is_dir())


def cache(folder: str) -> list[Finding]:
  """Where compiled programs are kept."""
  item = "compilation cache"
  remedy = "Set MLIT_COMPILATION_CACHE to a folder of yours; without one every start compiles anew."
  if not folder:
    return [warning(item, "none (MLIT_COMPILATION_CACHE is empty)", remedy)]
  place = existing(Path(folder))
  try:
    with tempfile.NamedTemporaryFile(dir=place, prefix=".doctor-") as file:
      file.write(b"x")
  except OSError as e:
    return [warning(item, f"{folder} cannot be written to ({e})", remedy)]
  return [ok(item, folder)]


def disk(workdir: Path) -> list[Finding]:
  """Free space, a measured speed, renaming, locking and the clock, in a folder of its own that goes again."""
  place = existing(workdir)
  found = check_free(place, shutil.disk_usage(place).free)
  try:
    folder = tempfile.TemporaryDirectory(dir=place, prefix=".doctor-")
  except OSError as e:
    return [
      *found,
      wrong("disk", f"{place} cannot be written to ({e})", "Choose another --workdir."),
    ]
  with folder as name:
    for item, look in (
      ("disk speed", check_speed),
      ("rename", check_rename),
      ("locks", check_locks),
      ("clock", check_clock),
    ):
      try:
        found.append(look(Path(name)))
      except OSError as e:
        found.append(wrong(item, f"{place}: {e}", "Choose a --workdir on another file system."))
  return found


def check_free(place: Path, free: int) -> list[Finding]:
  text = f"{free / GIB:,.1f} GiB free at {place}"
  remedy = "Make room, or choose another --workdir; a checkpoint takes about 12 bytes a parameter."
  if free < LEAST_FREE:
    return [wrong("disk", text, remedy)]
  return [warning("disk", text, remedy) if free < FEW_FREE else ok("disk", text)]


def check_speed(folder: Path) -> Finding:
  """Of a file that is on the disk when the clock stops; what is written cannot be compressed."""
  block = os.urandom(8 * MIB)
  began = time.perf_counter()
  with open(folder / "speed", "wb") as file:
    for _ in range(WRITTEN // len(block)):
      file.write(block)
    file.flush()
    os.fsync(file.fileno())
  speed = WRITTEN / (time.perf_counter() - began)
  text = f"{speed / 1e6:,.0f} MB/s ({WRITTEN // MIB} MiB, fsync)"
  if speed < SLOW:
    return warning("disk speed", text, "Checkpoints will be slow: a faster --workdir, or fewer.")
  return ok("disk speed", text)


def check_rename(folder: Path) -> Finding:
  """Whether a reader sees the old file or the new one, never none or a part, while it is replaced."""
  path, seen, done = folder / "renamed", [], threading.Event()
  contents = {letter * 4096 for letter in (b"a", b"b")}
  path.write_bytes(b"a" * 4096)

  def read() -> None:
    while not done.is_set():
      try:
        if path.read_bytes() not in contents:
          seen.append("a part of a file")
      except FileNotFoundError:
        seen.append("no file")

  reader = threading.Thread(target=read)
  reader.start()
  try:
    for i in range(RENAMES):
      new = folder / "new"
      new.write_bytes((b"b", b"a")[i % 2] * 4096)
      os.replace(new, path)
  finally:
    done.set()
    reader.join()
  if seen:
    found = f"a reader saw {seen[0]} while it was replaced ({len(seen)} times in {RENAMES})"
    return wrong(
      "rename", found, "A kill may leave broken files: another file system for --workdir."
    )
  return ok("rename", f"atomic ({RENAMES} times)")


def check_locks(folder: Path) -> Finding:
  """Whether the second who locks a file is refused: what keeps two runs out of one workdir."""
  with open(folder / "lock", "a+") as first, open(folder / "lock", "a+") as second:
    fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
      fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      fcntl.flock(first, fcntl.LOCK_UN)
      fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return ok("locks", "flock works")
  found = "two could lock one file, so two runs could write into one workdir"
  return wrong("locks", found, "Mount it with locks (NFS: without nolock), or another --workdir.")


def check_clock(folder: Path) -> Finding:
  """Of this host, beside that of whoever keeps the files."""
  path = folder / "clock"
  before = time.monotonic()
  path.write_bytes(b"x")
  skew = path.stat().st_mtime - time.time()
  if time.monotonic() < before:
    return wrong("clock", "the monotonic clock went back", "The host is faulty: use another.")
  if time.time() < EARLIEST:
    found = time.strftime("it is %Y-%m-%d, it says", time.gmtime())
    return wrong("clock", found, "Set it, by NTP: downloads and trackers refuse such a date.")
  if abs(skew) > MOST_SKEW:
    found = f"the file system's clock differs by {skew:,.0f} s"
    return warning("clock", found, "Set both by NTP: times of files and logs cannot be compared.")
  return ok("clock", f"within {abs(skew):.1f} s of the file system's")
