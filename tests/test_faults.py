"""A small, seeded part of every row of docs/reliability.md, by the program that made its table."""

import json
import subprocess
import sys

import pytest

from tests import commands


def measured(tmp_path, row: str) -> dict:
  """What benchmarks/faults.py found; in a process of its own, which forks and so must not have started JAX."""
  done = subprocess.run(
    [sys.executable, "benchmarks/faults.py", "--out", tmp_path, "--small", "--only", row],
    cwd=commands.ROOT, capture_output=True, text=True, timeout=900,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
  return json.loads((tmp_path / "faults.json").read_text())[row]["found"]


@pytest.mark.slow
def test_kills(tmp_path):
  found = measured(tmp_path, "kills")
  assert found["total"] >= 7 and min(found["kills"].values()) >= 1 and not found["wrong"]


@pytest.mark.slow
def test_damage(tmp_path):
  found = measured(tmp_path, "damage")
  assert found["outcomes"].get("found", 0) >= 20 and "SILENTLY WRONG" not in found["outcomes"]


@pytest.mark.slow
def test_disks_and_clocks(tmp_path):
  found = measured(tmp_path, "disk")
  for case in ("slow disk", "clock jump"):
    if found[case]["runs"]:  # where a disk may be mounted
      assert found[case]["durable"] >= 8, found
  refused = [found[case]["refused"] for case in ("disk full", "read-only", "folder gone")]
  assert all(refused) or not found["disk full"]["runs"], found


@pytest.mark.slow
def test_other_numbers_of_processes(tmp_path):
  found = measured(tmp_path, "elastic")
  assert found["runs"] == 1 and found["kills"] == 3 and found["rows that differ"] == 0
  assert 0 < found["largest difference of a loss"] < 1e-5


@pytest.mark.slow
def test_many_steps(tmp_path):
  found = measured(tmp_path, "soak")
  assert found["samples"] > 10 and found["threads"]["last"] <= found["threads"]["first"] + 4, found
  assert found["files"]["last"] <= found["files"]["first"] + 10, found
