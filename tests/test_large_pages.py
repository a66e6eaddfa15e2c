"""Whether a command starts again with large pages, and that it then has them."""

import subprocess
import sys

import pytest

from mlit_jax import large_pages
from tests import commands

CPU = {"JAX_PLATFORMS": "cpu"}


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
  """One where they help: with a glibc of today, whose kernel gives them to who asks."""
  monkeypatch.setattr(large_pages, "_glibc", lambda: (2, 36))
  monkeypatch.setattr(large_pages, "_kernel", lambda: "madvise")


def test_a_run_on_cpu_wants_them():
  assert large_pages.would_help(CPU)
  assert large_pages.would_help(CPU | {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"})


@pytest.mark.parametrize("environ", [
  {"JAX_PLATFORMS": "cuda"}, {"JAX_PLATFORMS": "cuda,cpu"}, CPU | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
  CPU | {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"},
])  # fmt: skip
def test_other_devices_and_who_has_decided_do_not(environ):
  assert not large_pages.would_help(environ)


@pytest.mark.parametrize("name, value", [
  ("_glibc", (2, 34)), ("_glibc", (0,)), ("_kernel", "never"), ("_kernel", "always"), ("_kernel", ""),
])  # fmt: skip
def test_where_they_cannot_help_nothing_starts_again(monkeypatch, name, value):
  monkeypatch.setattr(large_pages, name, lambda: value)
  assert not large_pages.would_help(CPU)


def test_without_a_word_about_the_platform_what_is_installed_decides(monkeypatch):
  monkeypatch.setattr(large_pages.importlib.metadata, "entry_points", lambda group: [])
  monkeypatch.setattr(large_pages.importlib.util, "find_spec", lambda name: None)
  assert large_pages.would_help({})
  monkeypatch.setattr(
    large_pages.importlib.util, "find_spec", lambda name: name == "libtpu" or None
  )
  assert not large_pages.would_help({})


@pytest.mark.parametrize("name", ["begun", "another"])
def test_the_process_keeps_its_number_and_arguments_and_begins_once(tmp_path, name):
  """A module as `python -m` starts it, on a machine where they help or not; another program is left alone."""
  (tmp_path / "begun.py").write_text(
    "import os, sys\nfrom mlit_jax import large_pages\n"
    "large_pages._glibc, large_pages._kernel = (lambda: (2, 36)), (lambda: 'madvise')\n"
    "print(os.getpid(), sys.argv[1:], os.environ.get('GLIBC_TUNABLES'), flush=True)\n"
    "large_pages.use('mlit', os.environ['NAME'])\nprint('goes on')\n"
  )
  env = {
    "PYTHONPATH": f"{tmp_path}:{commands.ROOT}",
    "GLIBC_TUNABLES": "glibc.malloc.arena_max=8",
    "NAME": name,
    **CPU,
  }
  done = subprocess.run(
    [sys.executable, "-m", "begun", "a b", "--c=d"], env=env, capture_output=True, text=True, check=True
  )  # fmt: skip
  first, *more = done.stdout.splitlines()
  assert first.split(" ", 1)[1] == "['a b', '--c=d'] glibc.malloc.arena_max=8", done.stdout
  assert more == ([f"{first}:glibc.malloc.hugetlb=1"] if name == "begun" else []) + ["goes on"]
