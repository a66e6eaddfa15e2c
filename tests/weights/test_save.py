import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlit_jax import mesh
from mlit_jax.errors import UserError
from mlit_jax.model.config import DecoderConfig
from mlit_jax.model.decoder import init_params, param_specs
from mlit_jax.weights import hf_files, load, names, save, table, transfer, writer
from tests import commands

CFG = DecoderConfig(
  family="llama",
  vocab_size=37,
  d_model=8,
  num_layers=12,
  num_heads=2,
  num_kv_heads=1,
  head_dim=4,
  d_ff=12,
  tied=True,
)
FILES = {"config.json": b'{"model_type": "llama"}', "additional_chat_templates/tool.jinja": b"x"}


@pytest.fixture(scope="module")
def params():
  return init_params(CFG, jax.random.key(0))


def export(params, out, cfg=CFG, **kwargs):
  return save.save_folder(params, cfg, out, **({"files": FILES, "dtypes": "float32"} | kwargs))


def assert_same(a, b):
  a, b = table.flatten(a), table.flatten(b)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("max_shard_bytes", [10**9, 4000])
def test_a_model_from_scratch_comes_back(tmp_path, params, max_shard_bytes):
  out = export(params, tmp_path / "deep" / "out", max_shard_bytes=max_shard_bytes)
  layout = hf_files.read_layout(out)
  assert (layout.index is None) == (max_shard_bytes == 10**9)
  for file in layout.headers:
    assert (out / file).stat().st_size <= max_shard_bytes + 8 + len(layout.headers[file])
  assert_same(load.load_params(out, CFG), params)
  assert names.HEAD not in layout.tensors()
  assert os.listdir(out.parent) == ["out"]
  umask = os.umask(0)
  os.umask(umask)
  assert out.stat().st_mode & 0o777 == 0o777 & ~umask


def test_values_may_lie_on_the_host_in_any_dtype(tmp_path, params):
  half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
  export(jax.tree.map(np.asarray, half), tmp_path / "out")
  assert_same(
    load.load_params(tmp_path / "out", CFG), jax.tree.map(lambda a: a.astype(jnp.float32), half)
  )


def test_a_tied_head_that_the_source_spells_out_is_spelt_out_again(tmp_path, params):
  plain = hf_files.read_layout(export(params, tmp_path / "plain"))
  tensors = [(t.name, t.dtype, t.shape) for t in plain.tensors().values()]
  layout = hf_files.plan_layout([*tensors, (names.HEAD, "bfloat16", (37, 8))])
  dtypes = {name: tensor.dtype for name, tensor in layout.tensors().items()}
  out = export(params, tmp_path / "out", layout=layout, dtypes=dtypes)
  assert hf_files.read_layout(out) == layout
  arrays = hf_files.map_tensors(out, layout)
  np.testing.assert_array_equal(
    arrays[names.HEAD], arrays[names.EMBEDDING].astype(arrays[names.HEAD].dtype)
  )


def test_another_dtype_gets_shards_of_its_own(tmp_path, params):
  source = hf_files.read_layout(export(params, tmp_path / "in", max_shard_bytes=4000))
  layout = hf_files.read_layout(export(params, tmp_path / "out", layout=source, dtypes="bfloat16"))
  assert list(layout.headers) == [hf_files.SINGLE_FILE]
  assert {t.dtype for t in layout.tensors().values()} == {"bfloat16"}


def test_an_empty_folder_is_filled_and_a_full_one_refused(tmp_path, params):
  out = tmp_path / "out"
  out.mkdir()
  export(params, out)
  before = sorted(p.name for p in out.iterdir())
  with pytest.raises(UserError, match="is not empty"):
    export(params, out)
  assert sorted(p.name for p in out.iterdir()) == before and os.listdir(tmp_path) == ["out"]
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="is a file"):
    export(params, tmp_path / "file")


def moved(params, value):
  changed = jax.tree.map(lambda a: a, params)
  changed["blocks"]["mlp"]["down_FD"] = params["blocks"]["mlp"]["down_FD"].at[11, 0, 0].set(value)
  return changed


@pytest.mark.parametrize(
  "value, dtype, message",
  [
    (1e5, "float16", "beyond the range of float16.*--dtype bfloat16"),
    (np.nan, "float32", "diverged"),
    (np.inf, "bfloat16", "diverged"),
    (1.0, "int8", "one of float32"),
  ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, params, value, dtype, message):
  with pytest.raises(UserError, match=message) as e:
    export(moved(params, value), tmp_path / "out", dtypes=dtype)
  assert os.listdir(tmp_path) == []
  if dtype != "int8":
    assert "model.layers.11.mlp.down_proj.weight" in str(e.value)


def test_a_full_disk_is_seen_before_and_during_the_export(tmp_path, params, monkeypatch):
  usage = writer.shutil.disk_usage(tmp_path)
  monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage._replace(free=10))
  with pytest.raises(UserError, match="10 are free"):
    export(params, tmp_path / "out")
  monkeypatch.undo()

  def fail(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(hf_files.os, "fsync", fail)
  with pytest.raises(UserError, match="No space left"):
    export(params, tmp_path / "out")
  assert os.listdir(tmp_path) == []


def test_a_damaged_write_is_found(tmp_path, params, monkeypatch):
  parse = hf_files.plan_layout

  def swapped(*args):  # the index names a shard that does not hold the tensor
    layout = parse(*args)
    index = json.loads(layout.index)
    index["weight_map"]["model.norm.weight"] = index["weight_map"][names.EMBEDDING]
    return hf_files.Layout(layout.headers, json.dumps(index))

  monkeypatch.setattr(hf_files, "plan_layout", swapped)
  with pytest.raises(UserError, match="disagree"):
    export(params, tmp_path / "out", max_shard_bytes=4000)
  assert os.listdir(tmp_path) == []


def test_parameters_of_another_config_are_refused(tmp_path, params):
  other = DecoderConfig(**(CFG.__dict__ | {"d_ff": 13}))
  with pytest.raises(ValueError, match="blocks/mlp/down_FD"):
    export(params, tmp_path / "out", cfg=other)
  assert os.listdir(tmp_path) == []


def test_stop_ids_are_added_where_they_are_missing():
  files = {
    "config.json": b'{"b": 1, "eos_token_id": 2, "a": "\xc3\xa9"}',
    "generation_config.json": b'{"eos_token_id": [2, 7]}\n',
    "tokenizer.json": b"{}",
  }
  assert save.with_stop_ids(files, [2]) == files
  out = save.with_stop_ids(files, (7, 2))
  assert out["config.json"].decode() == (
    '{\n  "b": 1,\n  "eos_token_id": [\n    2,\n    7\n  ],\n  "a": "é"\n}'
  )
  assert {k: v for k, v in out.items() if k != "config.json"} == {
    k: v for k, v in files.items() if k != "config.json"
  }
  out = save.with_stop_ids(
    {"config.json": b"{}\n", "generation_config.json": b'{"eos_token_id": null}'}, [5]
  )
  assert (
    json.loads(out["config.json"])
    == json.loads(out["generation_config.json"])
    == {"eos_token_id": 5}
  )


def test_a_forced_dtype_stands_in_the_config():
  for key in ("dtype", "torch_dtype"):
    files = {"config.json": json.dumps({key: "float32"}).encode()}
    assert save.with_dtype(files, "float32") == files
    assert json.loads(save.with_dtype(files, "bfloat16")["config.json"]) == {key: "bfloat16"}
  assert json.loads(save.with_dtype({"config.json": b"{}"}, "bfloat16")["config.json"]) == {
    "torch_dtype": "bfloat16"
  }


# Two processes with two devices each: every parameter that is cut lies in both.
PROCESS = """
import sys
import jax
port, rank, folder, out, full = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank), initialization_timeout=60)
from tests.weights.test_save import CFG, FILES
from mlit_jax import mesh
from mlit_jax.errors import UserError
from mlit_jax.model.decoder import param_specs
from mlit_jax.weights import hf_files, load, save
assert jax.device_count() == 4 and jax.local_device_count() == 2
shardings = mesh.param_shardings(param_specs(CFG), mesh.make_mesh(fsdp=2, tensor=2))
params = load.load_params(folder, CFG, shardings)
assert not params["blocks"]["attn"]["q_DNH"].is_fully_addressable
save.save_folder(params, CFG, out, files=FILES, dtypes="float32")
try:
  save.save_folder(params, CFG, full, files=FILES, dtypes="float32")
except UserError as e:
  print("refused:", e)
# What fails in the first process while it writes must not leave the other in a collective.
params["final_norm"]["scale_D"] = params["final_norm"]["scale_D"] * float("nan")
try:
  save.save_folder(params, CFG, out + "-nan", files=FILES, dtypes="float32", max_shard_bytes=2000)
except UserError as e:
  print("diverged:", e)
params["final_norm"]["scale_D"] = jax.numpy.ones_like(params["final_norm"]["scale_D"])
if rank == "0":
  def fail(_):
    raise OSError(28, "No space left on device")
  hf_files.os.fsync = fail
try:
  save.save_folder(params, CFG, out + "-full", files=FILES, dtypes="float32", max_shard_bytes=2000)
except UserError as e:
  print("full:", e)
"""


def test_processes_import_their_slices_and_export_together(tmp_path, params):
  folder = export(params, tmp_path / "in")
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  root = pathlib.Path(__file__).parents[2]
  env = os.environ | {
    "XLA_FLAGS": commands.xla_flags(2),
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(root),
  }
  runs = [
    subprocess.Popen(
      [
        sys.executable,
        "-c",
        PROCESS,
        str(port),
        str(rank),
        str(folder),
        str(tmp_path / "out"),
        str(folder),
      ],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank in range(2)
  ]
  try:
    ends = [run.communicate(timeout=60) for run in runs]
  finally:
    for run in runs:
      run.kill()
  assert [run.returncode for run in runs] == [0, 0], ends[0][1][-3000:] + ends[1][1][-3000:]
  for said in ("is not empty", "the run diverged", "No space left"):
    assert said in ends[0][0], ends[0][0]
  assert ends[1][0].count("first process cannot write") == 3, ends[1][0]
  assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
    folder / "model.safetensors"
  ).read_bytes()
  assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_import_and_export_count_bytes(tmp_path, params):
  told = []
  out = export(
    params,
    tmp_path / "out",
    dtypes="bfloat16",
    progress=lambda *numbers: told.append(numbers),
  )
  size = sum(t.end - t.start for t in hf_files.read_layout(out).tensors().values())
  assert told[-1] == (size, size) and told == sorted(told) and len(told) > 12 * 9
  told.clear()
  load.load_params(out, CFG, progress=lambda *numbers: told.append(numbers))
  assert told[-1] == (size, size) and told == sorted(told) and len(told) > 12 * 9
  # Cut over devices: replicas (norms; the kv head over tensor=2) are read and counted once.
  told.clear()
  cut = mesh.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
  shardings = mesh.param_shardings(param_specs(CFG), cut)
  load.load_params(out, CFG, shardings, progress=lambda *numbers: told.append(numbers))
  assert told[-1] == (size, size)
  # Of one process among several only its own slices: here those of one device, as it would be asked.
  index = slice(0, 4), slice(0, 2)
  (row,) = [row for row in table.rows(CFG) if row.ours == "embed/table_VD"]

  class Held:
    def addressable_devices_indices_map(self, shape):
      return {"device": index}

  arrays = hf_files.map_tensors(out, hf_files.read_layout(out))
  assert transfer.bytes_to_read(arrays, row, Held()) == 4 * 2 * 2
