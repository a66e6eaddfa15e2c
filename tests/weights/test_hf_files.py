import json
import pathlib
import struct

import ml_dtypes
import numpy as np
import pytest

from mlit_jax.errors import UserError
from mlit_jax.weights import hf_files

ARRAYS = {
  "a": np.arange(6, dtype=np.float32).reshape(2, 3),
  "b": np.array([[1.5], [-2.0]], ml_dtypes.bfloat16),
  "c": np.arange(3, dtype=np.float16),
  "empty": np.zeros((0, 4), np.float32),
  "scalar": np.array(7, np.int64),
}


def write_folder(folder, arrays, **kwargs):
  layout = hf_files.plan_layout([(n, a.dtype.name, a.shape) for n, a in arrays.items()], **kwargs)
  for file, header in layout.headers.items():
    with hf_files.open_shard(folder / file, header) as write:
      for tensor in hf_files.parse_header(header, file):
        write(tensor, arrays[tensor.name])
  if layout.index is not None:
    (folder / hf_files.INDEX_FILE).write_text(layout.index)
  return layout


@pytest.mark.parametrize("max_shard_bytes", [10**9, 16])
def test_written_tensors_are_read_back(tmp_path, max_shard_bytes):
  layout = write_folder(tmp_path, ARRAYS, max_shard_bytes=max_shard_bytes)
  assert (len(layout.headers) > 1) == (max_shard_bytes == 16) == (layout.index is not None)
  assert hf_files.read_layout(tmp_path) == layout
  arrays = hf_files.map_tensors(tmp_path, layout)
  assert arrays.keys() == ARRAYS.keys()
  for name, array in arrays.items():
    assert array.dtype == ARRAYS[name].dtype
    np.testing.assert_array_equal(array, ARRAYS[name])


def test_the_safetensors_library_reads_our_files_and_we_its(tmp_path):
  safetensors_numpy = pytest.importorskip("safetensors.numpy")
  write_folder(tmp_path, ARRAYS)
  theirs = safetensors_numpy.load_file(tmp_path / hf_files.SINGLE_FILE)
  assert theirs.keys() == ARRAYS.keys()
  for name, array in theirs.items():
    np.testing.assert_array_equal(np.asarray(array, ARRAYS[name].dtype), ARRAYS[name])
  other = tmp_path / "other.safetensors"
  safetensors_numpy.save_file(ARRAYS, other, metadata={"format": "pt"})
  assert other.read_bytes() == (tmp_path / hf_files.SINGLE_FILE).read_bytes()


def header_of(path):
  raw = path.read_bytes()
  (length,) = struct.unpack("<Q", raw[:8])
  return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_header(path, header, data):
  raw = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def edited(**changes):
  def damage(path):
    header, data = header_of(path)
    header["a"] |= changes
    with_header(path, header, data)

  return damage


DAMAGE = {
  "empty": (lambda p: p.write_bytes(b""), "truncated: 0 bytes"),
  "cut in header": (lambda p: p.write_bytes(p.read_bytes()[:40]), "truncated inside the header"),
  "cut in data": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "truncated: the header describes"),
  "extra bytes": (lambda p: p.write_bytes(p.read_bytes() + b"x"), "1 bytes follow"),
  "git-lfs": (
    lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "git lfs pull",
  ),
  "html": (lambda p: p.write_text("<!DOCTYPE html><html>not found</html>"), "not a safetensors"),
  "not json": (lambda p: with_header(p, b"{]", b""), "not a safetensors"),
  "list": (lambda p: with_header(p, [1], b""), "not an object"),
  "not text": (lambda p: with_header(p, b"\xff\xfe", b""), "not text"),
  "twice": (lambda p: with_header(p, b'{"a":{}, "a":{}}', b""), "'a' stands in it twice"),
  "dtype": (edited(dtype="F4"), "tensor a: unknown dtype 'F4'"),
  "shape": (edited(shape=[2, 4]), "tensor a: F32 of shape [2, 4] takes 32 bytes"),
  "negative": (edited(shape=[-2, -3]), "tensor a: unreadable"),
  "offsets": (edited(data_offsets=[4, 28]), "starts at byte"),
  "no offsets": (edited(data_offsets=None), "tensor a: unreadable"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(tmp_path, damage):
  write_folder(tmp_path, {"a": ARRAYS["a"], "c": ARRAYS["c"]})
  path = tmp_path / hf_files.SINGLE_FILE
  harm, message = DAMAGE[damage]
  harm(path)
  with pytest.raises(UserError) as e:
    hf_files.read_layout(tmp_path)
  assert str(path) in str(e.value) and message in str(e.value)


def test_missing_shards_are_named(tmp_path):
  layout = write_folder(tmp_path, ARRAYS, max_shard_bytes=16)
  gone = list(layout.headers)[1]
  (tmp_path / gone).unlink()
  with pytest.raises(UserError, match=f"1 of {len(layout.headers)} shards are missing: {gone}"):
    hf_files.read_layout(tmp_path)


@pytest.mark.parametrize("change", ["drop", "add"])
def test_index_and_shards_must_agree(tmp_path, change):
  write_folder(tmp_path, ARRAYS, max_shard_bytes=16)
  path = tmp_path / hf_files.INDEX_FILE
  index = json.loads(path.read_text())
  if change == "drop":
    del index["weight_map"]["c"]
  else:
    index["weight_map"]["ghost"] = index["weight_map"]["a"]
  path.write_text(json.dumps(index))
  with pytest.raises(
    UserError, match="disagree on 1 entries: " + ("c" if change == "drop" else "ghost")
  ):
    hf_files.read_layout(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {"a": "../x.safetensors"}}'])
def test_a_damaged_index_is_named(tmp_path, text):
  (tmp_path / hf_files.INDEX_FILE).write_text(text)
  with pytest.raises(UserError, match="index"):
    hf_files.read_layout(tmp_path)


def test_two_exports_in_one_folder_are_refused(tmp_path):
  write_folder(tmp_path, ARRAYS, max_shard_bytes=16)
  write_folder(tmp_path, ARRAYS)
  with pytest.raises(UserError, match="holds both"):
    hf_files.read_layout(tmp_path)


def test_pickles_are_refused_and_an_empty_folder_named(tmp_path):
  with pytest.raises(UserError, match="no weights here"):
    hf_files.read_layout(tmp_path)
  (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
  with pytest.raises(UserError, match=r"pytorch_model\.bin.*save_pretrained"):
    hf_files.read_layout(tmp_path)


def test_a_released_tensor_takes_no_memory_and_is_still_there(tmp_path):
  def mapped():  # bytes of files in this process's memory
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssFile")))

  num_bytes = 1 << 26
  layout = hf_files.plan_layout([("a", "float32", (num_bytes // 4,))])
  with hf_files.open_shard(
    tmp_path / hf_files.SINGLE_FILE, layout.headers[hf_files.SINGLE_FILE]
  ) as write:
    write(layout.tensors()["a"], np.arange(num_bytes // 4, dtype=np.float32))
  array = hf_files.map_tensors(tmp_path, layout)["a"]
  before = mapped()
  assert array.sum() > 0 and mapped() - before > num_bytes // 2
  hf_files.release(array[10:].reshape(2, -1))  # a view of it will do
  assert mapped() - before < num_bytes // 4
  assert array[1234] == 1234


def test_runs_of_a_tensor_are_read_beside_the_map(tmp_path):
  values = np.arange(3 * 50, dtype=np.float32).reshape(50, 3)
  layout = hf_files.plan_layout([("a", "float32", (7,)), ("b", "float32", values.shape)])
  ((file, header),) = layout.headers.items()
  with hf_files.open_shard(tmp_path / file, header) as write:
    for tensor, array in zip(
      hf_files.parse_header(header, file), (np.ones(7, np.float32), values), strict=True
    ):
      write(tensor, array)
  mapped = hf_files.map_tensors(tmp_path, layout)["b"]
  for start, stop in ((0, 50), (10, 13), (49, 50)):
    np.testing.assert_array_equal(hf_files.read(mapped[start:stop]), values[start:stop])
  with (tmp_path / file).open("r+b") as f:
    f.truncate((tmp_path / file).stat().st_size - 20)
  np.testing.assert_array_equal(hf_files.read(mapped[:40]), values[:40])
  with pytest.raises(UserError, match=r"model\.safetensors: became shorter"):
    hf_files.read(mapped)
