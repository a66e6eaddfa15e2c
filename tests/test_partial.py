"""What is half written when a process dies is removed by the next, and nothing else is."""

import os
import socket
import subprocess
import sys
import time

import pytest

from mlit_jax import partial, runtime

DEAD = """
import os, signal, sys
from pathlib import Path
from mlit_jax import partial, runtime
root = Path(sys.argv[1])
partial.beside(root / "export").mkdir()
os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
runtime.write_atomic(root / "evals" / "report.html", "half")
"""


def names(folder):
  return sorted(p.name.split(".partial-")[0] for p in folder.rglob("*"))


@pytest.fixture
def left(tmp_path):
  """A workdir in which a process died while it wrote a file and a folder."""
  done = subprocess.run([sys.executable, "-c", DEAD, str(tmp_path)])
  assert done.returncode == -9 and names(tmp_path) == [".export", ".report.html", "evals"]
  return tmp_path


def test_a_run_removes_what_the_one_before_left(left):
  with runtime.locked(left):
    assert names(left) == [".lock", "evals"]


def test_of_one_name_alone(left):
  partial.remove_dead(left, "other")
  assert ".export" in names(left)
  partial.remove_dead(left, "export")
  assert names(left) == [".report.html", "evals"]


def test_what_is_at_work_or_elsewhere_stays(tmp_path):
  host = socket.gethostname()
  kept = [
    partial.beside(tmp_path / "mine").name,
    f".of init.partial-{host}-1-00ff",
    ".of another.partial-some-host-4194303-00ff",
    f".no number.partial-{host}-x-00ff",
    ".partial-",
    "theirs.partial-4194303",
  ]
  for name in kept:
    (tmp_path / name).touch()
  gone = tmp_path / f".gone.partial-{host}-4194303-00ff"
  assert not os.path.exists("/proc/4194303")
  gone.touch()
  partial.remove_dead(tmp_path)
  assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)
  old = time.time() - partial.FORGOTTEN_SECONDS - 60
  for name in (kept[0], kept[2], kept[4]):
    os.utime(tmp_path / name, (old, old))
  (tmp_path / ".of another.partial-some-host-1-00ff").touch()
  partial.remove_dead(tmp_path)  # of another host, and not touched for a day
  assert not (tmp_path / kept[2]).exists() and (tmp_path / kept[0]).exists()
  assert (tmp_path / ".of another.partial-some-host-1-00ff").exists()
  partial.remove_dead(tmp_path, "of another", all_hosts=True)
  assert not list(tmp_path.glob(".of another*")) and (tmp_path / kept[0]).exists()
