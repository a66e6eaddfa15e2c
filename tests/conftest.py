"""The settings of all tests: the CPU as eight devices, and JAX as strict as it gets."""

import ctypes
import gc
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Commands read this one, in this process and in those that tests start; kept from one run to the next.
CACHE = pathlib.Path(tempfile.gettempdir()) / f"mlit_jax_tests_{os.getuid()}" / "xla"
os.environ["MLIT_COMPILATION_CACHE"] = str(CACHE)

import hypothesis.internal.reflection  # noqa: E402, F401  (here: beside threads of JAX CPython 3.11 may not parse it)
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from tests import commands  # noqa: E402

SETTINGS = {
  "jax_num_cpu_devices": 8,  # of this process alone: a command that a test starts has one
  "jax_numpy_rank_promotion": "raise",
  "jax_debug_key_reuse": True,
  "jax_threefry_partitionable": True,
  "jax_compilation_cache_dir": str(CACHE),
  "jax_persistent_cache_min_compile_time_secs": 0.5,
}
for name, value in SETTINGS.items():
  jax.config.update(name, value)

# XLA reads the flags once, with the first program.
if os.environ["JAX_PLATFORMS"] == "cpu" and "XLA_FLAGS" not in os.environ:
  os.environ["XLA_FLAGS"] = commands.xla_flags()
  jax.jit(lambda x: x + 1)(0)
  del os.environ["XLA_FLAGS"]


MOST_MEMORY = 4 * 2**30  # of a process of tests, in bytes: one had 7 GiB and 26,000 maps by the end


@pytest.fixture(scope="module", autouse=True)
def _forget():
  """The programs of one file of tests are of no use to the next, nor is what they hold."""
  yield
  if sys.platform == "linux" and _resident() > MOST_MEMORY:
    jax.clear_caches()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _resident() -> int:
  """Bytes of memory that this process has."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="session")
def as_for_users():
  """compiler_options, where a test is about the bits of two programs or the last digit of sums."""
  return commands.USUAL


@pytest.fixture
def assert_close():
  """assert_close(actual, expected, tolerance=1e-5): trees of arrays, leaf by leaf, named in the message.

  The tolerance is relative to the largest value of the leaf: what a sum in another order may change.
  """
  return _assert_close


def _leaf(path, actual, expected, tolerance):
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  scale = max(1e-8, float(np.abs(expected).max(initial=0.0)))
  np.testing.assert_allclose(
    actual, expected, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path)
  )


def _assert_close(actual, expected, tolerance: float = 1e-5) -> None:
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map_with_path(lambda p, a, b: _leaf(p, a, b, tolerance), actual, expected)
