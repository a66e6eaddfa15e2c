"""Planted limits, a full disk, and file systems that do not keep their word."""

import fcntl
import os
import pathlib
import resource
import shutil

import pytest

from mlit_jax.examining import host, storage
from mlit_jax.examining.finding import examine

GIB = 1 << 30


@pytest.mark.parametrize(
  "soft, hard, state, remedy",
  [
    (1 << 20, 1 << 20, "ok", ""),
    (resource.RLIM_INFINITY, resource.RLIM_INFINITY, "ok", ""),
    (1024, 1 << 20, "warning", "ulimit -n 65536"),
    (1024, 5000, "warning", "ulimit -n 5000"),
    (64, 64, "wrong", "The hard limit is 64"),
  ],
)
def test_open_files(soft, hard, state, remedy):
  (found,) = host.check_open_files(soft, hard)
  assert found.state == state and found.remedy.startswith(remedy)


def test_the_limit_is_that_of_this_process(monkeypatch):
  monkeypatch.setattr(resource, "getrlimit", lambda which: (128, 128))
  assert host.open_files()[0].state == "wrong"


def test_shared_memory_of_a_container():
  assert host.check_shared_memory(64 << 20)[0].state == "warning"
  assert host.check_shared_memory(8 * GIB)[0].state == "ok"


def test_memory_is_that_of_the_container_where_it_has_less(monkeypatch, tmp_path):
  monkeypatch.setattr(host, "MEMINFO", tmp_path / "meminfo")
  monkeypatch.setattr(host, "CGROUP", tmp_path / "max")
  assert host.available_memory() is None
  host.MEMINFO.write_text("MemTotal: 2048 kB\nMemAvailable:   1024 kB\n")
  assert host.available_memory() == 1 << 20
  host.CGROUP.write_text("4096\n")
  assert host.available_memory() == 4096
  host.CGROUP.write_text("max\n")
  assert host.available_memory() == 1 << 20


def test_encodings():
  assert host.check_encoding({"locale": "UTF-8", "output": "utf8"})[0].state == "ok"
  (found,) = host.check_encoding({"locale": "ANSI_X3.4-1968", "output": "utf-8"})
  assert found.state == "wrong" and "locale ANSI_X3.4-1968" in found.found


@pytest.fixture(autouse=True)
def little(monkeypatch):
  monkeypatch.setattr(storage, "WRITTEN", 8 << 20)


def look(folder) -> dict:
  return {f.item: f for f in storage.disk(folder)}


def test_a_disk_that_is_well_is_left_as_it_was(tmp_path):
  found = look(tmp_path / "not" / "there")
  assert list(found) == ["disk", "disk speed", "rename", "locks", "clock"]
  assert not [f for f in found.values() if f.state == "wrong"]
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("free, state", [(0, "wrong"), (5 * GIB, "warning"), (500 * GIB, "ok")])
def test_free_space(monkeypatch, tmp_path, free, state):
  usage = shutil.disk_usage(tmp_path)._replace(free=free)
  monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
  assert look(tmp_path)["disk"].state == state


def test_a_disk_that_fills_up_is_wrong_and_the_rest_goes_on(monkeypatch, tmp_path):
  def full(number):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  found = look(tmp_path)
  assert found["disk speed"].state == "wrong" and "No space left" in found["disk speed"].found
  assert found["locks"].state == "ok"
  assert list(tmp_path.iterdir()) == []


def test_a_slow_disk_is_a_warning(monkeypatch, tmp_path):
  monkeypatch.setattr(storage, "SLOW", 1e18)
  assert look(tmp_path)["disk speed"].state == "warning"


def test_a_rename_that_is_no_single_step_is_seen(monkeypatch, tmp_path):
  def copy(old, new):
    pathlib.Path(new).unlink()
    pathlib.Path(new).write_bytes(pathlib.Path(old).read_bytes())

  monkeypatch.setattr(os, "replace", copy)
  found = look(tmp_path)["rename"]
  assert found.state == "wrong" and "a reader saw" in found.found


def test_locks_that_lock_nothing_are_seen(monkeypatch, tmp_path):
  monkeypatch.setattr(fcntl, "flock", lambda file, how: None)
  assert look(tmp_path)["locks"].state == "wrong"


def test_locks_that_are_not_there_are_seen(monkeypatch, tmp_path):
  def none(file, how):
    raise OSError(37, "No locks available")

  monkeypatch.setattr(fcntl, "flock", none)
  assert look(tmp_path)["locks"].state == "wrong"


@pytest.mark.parametrize("hours, state", [(0, "ok"), (1, "warning"), (-24 * 365 * 20, "wrong")])
def test_clocks(monkeypatch, tmp_path, hours, state):
  now = storage.time.time()
  monkeypatch.setattr(storage.time, "time", lambda: now + 3600 * hours)
  assert look(tmp_path)["clock"].state == state


def test_caches(tmp_path):
  assert storage.cache(str(tmp_path / "new"))[0].state == "ok"
  assert list(tmp_path.iterdir()) == []
  assert storage.cache("")[0].state == "warning"
  assert storage.cache("/proc/here")[0].state == "warning"  # where not even root writes


def test_a_crash_is_a_finding():
  (found,) = examine("item", lambda: 1 // 0)
  assert found.state == "wrong" and found.item == "item"
  assert found.found.startswith("ZeroDivisionError")
