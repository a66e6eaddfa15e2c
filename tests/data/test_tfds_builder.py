"""The bundled rows as a TFDS data set: what goes in comes out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mlit_jax
from mlit_jax.data.rows import read_sources

pytest.importorskip("tensorflow_datasets")
ROOT = Path(mlit_jax.__file__).parent
ROWS = ROOT / "assets" / "instructions12"
# In a process of its own: nothing of it may import TensorFlow or JAX.
RUN = """
import sys
from mlit_jax.data import tfds_builder
assert tfds_builder.main(["--data_dir", sys.argv[1]]) == 0
assert not {"tensorflow", "jax"} & set(sys.modules), "imported"
assert tfds_builder.main(["--data_dir", "/dev/null/x"]) == 2
"""


def test_the_round_trip_keeps_every_example(tmp_path):
  environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
  done = subprocess.run(
    [sys.executable, "-c", RUN, str(tmp_path)], env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  langs = sorted(path.stem for path in (ROWS / "train").glob("*.jsonl"))
  folders = done.stdout.split("\n")[:-1]
  assert folders == [str(tmp_path / "instructions12" / lang / "1.0.0") for lang in langs]
  assert "--data_dir /dev/null/x: cannot be written" in done.stderr
  for split in ("train", "eval"):
    prepared = read_sources(
      [{"path": f"tfds:instructions12/{lang}:{split}", "data_dir": str(tmp_path)} for lang in langs]
    )
    plain = read_sources([str(ROWS / split / "*.jsonl")])
    assert prepared.dropped == plain.dropped == {}
    assert [c.example_id for c in prepared.conversations] == [
      c.example_id for c in plain.conversations
    ]
    assert [c.group_id for c in prepared.conversations] == [c.group_id for c in plain.conversations]
    assert [c.lang for c in prepared.conversations] == [c.lang for c in plain.conversations]
  assert "tensorflow" not in sys.modules
