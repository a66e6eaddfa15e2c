"""What `log.batches` writes: every row once, the same on any mesh, and nothing after the step a run goes on from."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mlit_jax import mesh as meshes
from mlit_jax.batch import Batch, empty_batch
from mlit_jax.training import batch_log
from mlit_jax.training.batch_log import BatchLog, row_digests


def made_batch(rows=8, length=5):
  batch = empty_batch(rows, length)
  for k, field in enumerate(dataclasses.fields(Batch)):
    getattr(batch, field.name)[:] = np.arange(rows * length).reshape(rows, length) + 1000 * k
  return batch


def digests(batch, *sizes):
  mesh = meshes.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
  return row_digests(meshes.put_batch(batch, mesh, len(batch.tokens)))


def test_digests_are_of_rows_whatever_the_mesh():
  batch = made_batch()
  one = digests(batch, 1, 1, 1)
  assert sorted(one) == list(range(8)) and len(set(one.values())) == 8
  for sizes in ((8, 1, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8)):
    assert digests(batch, *sizes) == one, sizes


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Batch)])
def test_every_field_counts(name):
  batch, other = made_batch(), made_batch()
  getattr(other, name)[3, 2] += 1
  before, after = (digests(b, 2, 2, 2) for b in (batch, other))
  assert {row for row in before if before[row] != after[row]} == {3}


def test_what_comes_after_the_step_gone_on_from_is_dropped_in_files_of_more_processes_too(
  monkeypatch, tmp_path
):
  folder = tmp_path / batch_log.FOLDER
  folder.mkdir()
  for process in range(4):
    lines = [json.dumps({"step": s, "row": process, "examples": ["a\u2028b:1"]}, ensure_ascii=False) for s in (1, 2, 3)]  # fmt: skip
    (folder / f"{process}.jsonl").write_text("\n".join([*lines, '{"step": 1, "ro']))
  monkeypatch.setattr(batch_log.jax, "process_count", lambda: 2)
  mesh, batch = meshes.make_mesh(devices=jax.devices()[:1]), made_batch(rows=2)
  for process in (1, 0):
    monkeypatch.setattr(batch_log.jax, "process_index", lambda process=process: process)
    log = BatchLog(tmp_path, 2, lambda step: [[f"x:{step}"], []], print)
  log.note(2, meshes.put_batch(batch, mesh, 2))
  steps = {
    path.stem: [json.loads(line)["step"] for line in path.read_text().split("\n")[:-1]]
    for path in folder.iterdir()
  }
  assert steps == {"0": [1, 2, 3, 3], "1": [1, 2], "2": [1, 2], "3": [1, 2]}
  first, *_, last, empty = map(json.loads, (folder / "0.jsonl").read_text().split("\n")[:-1])
  assert first["examples"] == ["a\u2028b:1"]
  assert (last["row"], last["examples"]) == (0, ["x:2"]) and empty["examples"] == []
  assert last["digest"] == digests(batch, 1, 1, 1)[0]
