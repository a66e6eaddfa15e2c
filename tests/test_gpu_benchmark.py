"""The script for a GPU, in toy sizes on CPU: a case has figures or says why it has none.

Cases that start whole runs (torch, numerics, start) are left out here: minutes, for what other tests prove.
"""

import json
import subprocess
import sys

import pytest

from tests import commands

pytestmark = pytest.mark.slow
# Needs a GPU, a package or a version that may not be here; all else must be measured.
MAY_LACK = {
  ("step", "8B"), ("attention", "cudnn"), ("attention", "mosaic_gpu"),
}  # fmt: skip


CASES = ("step", "attention", "unpacked", "loader")


def test_every_case_has_figures_or_a_reason(tmp_path):
  command = [
    sys.executable,
    "benchmarks/gpu.py",
    "--tiny",
    "--out",
    str(tmp_path),
    "--only",
    *CASES,
    "--budget",
    "150",
  ]
  done = subprocess.run(command, cwd=commands.ROOT, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "gpu.json").read_text())
  cases = found["cases"]
  assert set(cases) == set(CASES)
  lacking = {("all", case): of["reason"] for case, of in cases.items() if "reason" in of}
  for case, of in cases.items():
    for name, one in of.items():
      if isinstance(one, dict) and "reason" in one:
        lacking[case, name] = one["reason"]
  assert not lacking.keys() - MAY_LACK, lacking
  assert "it is for GPU" in lacking["attention", "cudnn"]
  assert all(lacking.values())
  assert done.stdout.count("not measured") >= len(lacking)
  assert cases["step"]["0.5B"]["trained_tokens_per_second"] > 0
  for backend in ("xla", "xla_chunked"):
    numerics = cases["attention"][backend]["numerics"]
    assert max(numerics["error"].values()) < 2**-6 and numerics["largest_leak"] == 0
    assert numerics["segment_changed_itself"]
