"""By hand: 8 devices of 100 FLOP/s (half of it reached), 10 B/s of memory, 5 B/s near, 1 B/s far."""

import dataclasses

import pytest

from mlit_jax.planning import report
from mlit_jax.planning.collectives import Collective, Traffic
from mlit_jax.planning.compiling import Memory
from mlit_jax.planning.estimate import assumptions, estimate, memory_bytes
from mlit_jax.planning.hardware import DEVICES, Device
from mlit_jax.planning.kernels import Moved

DEVICE = Device("made up", 1.0, 100.0, 10.0, 5.0, 1.0, 0.5)
MEMORY = Memory(params=10, optimizer=20, batch=1, arguments=31, temporaries=7, peak=38)
TRAFFIC = Traffic(
  (
    Collective("all-gather", 3, 8, 5, 0, 8, True, "a"),
    Collective("all-reduce", 1, 8, 4, 2, 8, False, "b"),
  ),
  0,
)


def test_each_resource_alone_then_all_at_once_and_in_turn():
  found = estimate(DEVICE, 8, 4000.0, MEMORY, TRAFFIC, passes=3)
  assert found.products == 4000 / 8 / 50
  assert (TRAFFIC.near, TRAFFIC.far) == (19, 2)
  # State twice, parameters three times, temporaries twice, and 21 bytes that came, twice.
  assert memory_bytes(MEMORY, TRAFFIC, 3) == 2 * 30 + 3 * 10 + 2 * 7 + 2 * 21
  assert found.memory == 14.6
  assert (found.inside, found.outside) == (19 / 5, 2)
  assert found.overlapped == 14.6
  assert found.serial == pytest.approx(10 + 14.6 + 19 / 5 + 2)


def test_kernels_of_products_move_what_they_need_while_they_compute():
  found = estimate(DEVICE, 8, 4000.0, MEMORY, TRAFFIC, 3, Moved(products=120.0, others=30.0))
  assert found.memory == 15 and found.overlapped == 15
  assert found.serial == pytest.approx(10 + 3 + 19 / 5 + 2)
  slow = estimate(DEVICE, 8, 4.0, MEMORY, TRAFFIC, 3, Moved(products=900.0))
  assert slow.serial == slow.overlapped == 90  # products that wait for memory
  told = assumptions(DEVICES["h100"], "host", kernels=Moved(others=3e10))
  assert any("30 GB a device besides products" in line for line in told)
  assert not any("lower bound" in line for line in told)


def test_what_rests_in_the_hosts_memory_comes_and_goes():
  device = dataclasses.replace(DEVICE, host_rate=4.0)
  found = estimate(device, 8, 4000.0, dataclasses.replace(MEMORY, host=40), TRAFFIC, passes=3)
  assert found.host == 2 * 40 / 4  # one way after the other
  assert found.memory == pytest.approx(14.6 + 4 * 40 / 10)  # in: written, read; out: written, read
  assert found.overlapped == found.memory
  assert found.serial == pytest.approx(10 + found.memory + 19 / 5 + 2 + 20)
  assert not any("host's memory" in line for line in assumptions(DEVICES["v5e"], "slice"))
  assert "16 GB/s" in assumptions(DEVICES["v5e"], "slice", offload=True)[-1]


def test_a_device_without_figures_has_no_estimate():
  assert estimate(DEVICES["cpu"], 8, 1.0, MEMORY, TRAFFIC, 3) is None
  assert assumptions(DEVICES["cpu"], "host") == []


def test_what_is_assumed_has_the_figures_that_were_used():
  lines = "\n".join(assumptions(DEVICES["h100"], "host"))
  for part in ("81%", "989", "798 of 989", "3.35 TB/s", "450 GB/s", "50.0 GB/s", "serial"):
    assert part in lines, part


def test_rates_and_mfu():
  found = dataclasses.replace(
    estimate(DEVICE, 8, 4000.0, MEMORY, TRAFFIC, 3), overlapped=2.0, serial=4.0
  )
  f = report.estimate_figures(found, tokens=600, useful=400.0, peak=800.0)
  assert f["overlapped"] == {"step_seconds": 2.0, "tokens_per_second": 300.0, "mfu": 0.25}
  assert f["serial"]["tokens_per_second"] == 150.0 and f["memory_seconds"] == 14.6


def test_collectives_are_told_by_kind_and_by_where_they_go():
  more = Collective("all-gather", 2, 10, 4, 6, 8, False, "c")
  near, far, reduce = (
    next(
      of for of in report.collective_figures(Traffic((*TRAFFIC.collectives, more), 0)) if test(of)
    )
    for test in (
      lambda of: of["kind"] == "all-gather" and not of["far_bytes"],
      lambda of: of["kind"] == "all-gather" and of["far_bytes"],
      lambda of: of["kind"] == "all-reduce",
    )
  )
  assert (near["times"], near["in_loops"], near["near_bytes"], near["payload_bytes"]) == (
    3,
    3,
    15,
    24,
  )
  assert (far["times"], far["in_loops"], far["near_bytes"], far["far_bytes"]) == (2, 0, 8, 12)
  assert (reduce["near_bytes"], reduce["far_bytes"]) == (4, 2)
