"""What all processes compare before they begin."""

import jax
import numpy as np
import pytest

from configs import base
from mlit_jax import preflight, runtime
from mlit_jax.errors import UserError


def test_one_process_says_what_it_has():
  line, warnings = preflight.preflight()
  assert line.startswith(f"{jax.device_count()} devices (cpu), all-reduce of 16 MiB in ")
  assert not warnings and 0 < preflight.time_all_reduce() < 60


@pytest.mark.parametrize(
  "cores, rows, said",
  [
    (8, 8, "=8 may"),
    (6, 8, "=4 may"),
    (16, 12, "=12 may"),
    (4, 1, ""),
    (1, 8, ""),
    (2, 8, ""),
    (8, 2, "=2 may"),
  ],
)
def test_cores_that_one_device_does_not_use(monkeypatch, cores, rows, said):
  filled = base.get_config().mesh
  monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
  monkeypatch.setattr(preflight, "usable_cores", lambda: cores)
  assert preflight.unused_cores(rows, filled) == "", "there are eight devices here"
  monkeypatch.setattr(preflight.jax, "device_count", lambda: 1)
  words = preflight.unused_cores(rows, filled)
  assert (said in words and words.startswith(f"of {cores} cores; ")) if said else not words
  assert preflight.unused_cores(rows, {"data": -1, "fsdp": 1}) == words
  assert preflight.unused_cores(rows, {"data": 1, "fsdp": 1}) == "", "more would be refused"
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
  assert preflight.unused_cores(rows, filled) == ""


def test_clocks_and_devices_are_compared():
  assert preflight.check_alike(np.array([4, 4]), np.array([10.0, 10.25])) == 0.25
  with pytest.raises(UserError, match=r"processes have \[8, 7\] devices; each must have as many"):
    preflight.check_alike(np.array([8, 7]), np.array([0.0, 0.0]))


def test_a_clock_that_is_wrong_is_a_warning(monkeypatch):
  answers = iter([np.array([8, 8]), np.array([100.0, 3700.0])])
  monkeypatch.setattr(preflight.jax, "process_count", lambda: 2)
  monkeypatch.setattr(preflight.multihost_utils, "process_allgather", lambda x: next(answers))
  monkeypatch.setattr(preflight.multihost_utils, "sync_global_devices", lambda name: None)
  monkeypatch.setattr(runtime, "check_same", lambda what, text: None)
  line, (warning,) = preflight.preflight()
  assert line.startswith("2 processes x 8 devices (cpu), clocks within 3600.0 s")
  assert "the clocks of the hosts differ by 3,600 s" in warning
