"""SHA256SUMS: what `sha256sum -c` accepts, and what is found."""

import json
import os
import pathlib
import random
import shutil
import subprocess

import pytest

from mlit_jax import checksums
from mlit_jax.errors import UserError
from tests.damage import KINDS, damage, each_bit


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "sub").mkdir()
  for name, content in {"a.bin": b"abc", "sub/ü b.json": b"{}", "README.md": b"card"}.items():
    (tmp_path / name).write_bytes(content)
  checksums.write(tmp_path)
  return tmp_path


def test_as_sha256sum_reads_it(folder):
  if not shutil.which("sha256sum"):
    pytest.skip("no sha256sum here")
  command = ["sha256sum", "--strict", "-c", checksums.NAME]
  assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 0
  (folder / "a.bin").write_bytes(b"abd")
  assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 1


def test_whole(folder, tmp_path_factory):
  assert checksums.check(folder)
  (folder / "README.md").write_bytes(b"another card")
  (folder / "more.txt").write_bytes(b"added later")
  assert checksums.check(folder)
  with pytest.raises(UserError, match="README.md"):
    checksums.check(folder, may_change=())
  assert not checksums.check(tmp_path_factory.mktemp("without"))


@pytest.mark.parametrize("name", ["a.bin", "sub/ü b.json", checksums.NAME])
@pytest.mark.parametrize("kind", KINDS)
def test_damage(folder, name, kind):
  path, rng = folder / name, random.Random(kind + name)
  assert damage(path, kind, rng, keep=path.stat().st_size - 1)
  if name == checksums.NAME and kind == "missing":
    assert not checksums.check(folder)  # as a folder that somebody else wrote
    return
  with pytest.raises(UserError, match="Restore it from a copy"):
    checksums.check(folder, may_change=())


@pytest.mark.slow
def test_every_bit_of_the_digests_themselves(folder):
  for _ in each_bit(folder / checksums.NAME):
    with pytest.raises(UserError):
      checksums.check(folder, may_change=())


def test_every_way_to_cut_the_list(folder):
  path = folder / checksums.NAME
  whole = path.read_bytes()
  for length in range(len(whole)):
    path.write_bytes(whole[:length])
    with pytest.raises(UserError):
      checksums.check(folder)


@pytest.mark.parametrize("name", ["../a.bin", "/etc/passwd", "sub/../../a"])
def test_names_that_leave_the_folder(folder, name):
  (folder / checksums.NAME).write_text(f"{'0' * 64}  {name}\n# 1 files\n")
  with pytest.raises(UserError, match=r"SHA256SUMS:1: is no line of digests"):
    checksums.check(folder)


def test_only_some(folder):
  (folder / "a.bin").write_bytes(b"")
  assert checksums.check(folder, but="*.bin")
  assert checksums.check(folder, only="*.json")
  with pytest.raises(UserError, match="a.bin"):
    checksums.check(folder, only="*.bin")


def test_what_a_kill_left_is_replaced(folder):
  (folder / checksums.BEING_WRITTEN).write_text("half")
  checksums.write(folder)
  assert checksums.check(folder, may_change=())
  assert checksums.BEING_WRITTEN not in os.listdir(pathlib.Path(folder))


@pytest.mark.parametrize("content", [{}, {"a": {10: 1, 9: 2}, "b": (1, 2.5), "ü": None}])
def test_a_seal_holds_what_was_written_and_nothing_else(tmp_path, content):
  path = tmp_path / "a.json"
  path.write_text(json.dumps(checksums.sealed(content), ensure_ascii=False))
  assert checksums.read_sealed(path) == json.loads(json.dumps(content))
  for _ in each_bit(path):
    with pytest.raises(ValueError):
      checksums.read_sealed(path)


def test_what_was_never_sealed_is_read(tmp_path):
  (tmp_path / "a.json").write_text('{"a": 1}')
  assert checksums.read_sealed(tmp_path / "a.json") == {"a": 1}
