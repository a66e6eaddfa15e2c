"""Limits, shared memory, main memory and encodings of this host."""

from __future__ import annotations

import locale
import resource
import shutil
import sys
from pathlib import Path

from mlit_jax.examining.finding import Finding, ok, warning, wrong

LEAST_FILES, FEWEST_FILES = 4096, 256  # below: a warning; below the other: runs fail
LEAST_SHM = 1 << 30  # containers get 64 MiB unless they are told otherwise
SHM = Path("/dev/shm")
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup/memory.max")
GIB = 1 << 30


def open_files() -> list[Finding]:
  return check_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))


def check_open_files(soft: int, hard: int) -> list[Finding]:
  """Of a process. Shards, checkpoints, workers' pipes and sockets are all files."""
  soft, hard = (sys.maxsize if n == resource.RLIM_INFINITY else n for n in (soft, hard))
  if soft >= LEAST_FILES:
    return [ok("open files", "no limit" if soft == sys.maxsize else f"{soft:,} at most")]
  state = wrong if soft < FEWEST_FILES else warning
  if hard < LEAST_FILES:
    remedy = f"The hard limit is {hard:,}: raise it where the host or container is set up (nofile)."
  else:
    remedy = f"ulimit -n {min(hard, 65536)}"
  return [state("open files", f"{soft:,} at most", remedy)]


def shared_memory() -> list[Finding]:
  """Through which data workers hand over their batches."""
  if not SHM.is_dir():
    return [ok("shared memory", f"no {SHM} here")]
  return check_shared_memory(shutil.disk_usage(SHM).free)


def check_shared_memory(free: int) -> list[Finding]:
  text = f"{free / GIB:,.1f} GiB free in {SHM}"
  if free < LEAST_SHM:
    remedy = (
      "In a container: --shm-size=8g, or a memory-backed volume there; else remove what fills it."
    )
    return [warning("shared memory", text, remedy)]
  return [ok("shared memory", text)]


def available_memory() -> int | None:
  """Bytes that a program may still take; None where the system does not say."""
  if not MEMINFO.exists():
    return None
  fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
  kib = fields.get("MemAvailable", fields["MemTotal"]).split()[0]
  limit = CGROUP.read_text().strip() if CGROUP.exists() else ""
  return min(int(kib) << 10, int(limit)) if limit.isdigit() else int(kib) << 10


def memory() -> list[Finding]:
  free = available_memory()
  return [ok("memory", "not known here" if free is None else f"{free / GIB:,.1f} GiB available")]


def encoding() -> list[Finding]:
  return check_encoding(
    {
      "locale": locale.getpreferredencoding(False),
      "file names": sys.getfilesystemencoding(),
      "output": sys.stdout.encoding or "",
    }
  )


def check_encoding(encodings: dict[str, str]) -> list[Finding]:
  """UTF-8 throughout: rows are of many languages, and tables of theirs are printed."""
  other = [f"{what} {name}" for what, name in encodings.items() if not _is_utf8(name)]
  if other:
    remedy = "export LC_ALL=C.UTF-8, or PYTHONUTF8=1"
    return [wrong("encoding", f"{', '.join(other)}, not UTF-8", remedy)]
  return [ok("encoding", "UTF-8")]


def _is_utf8(name: str) -> bool:
  return name.lower().replace("-", "").replace("_", "") == "utf8"
