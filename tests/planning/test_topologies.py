import importlib.util
import types

import jax
import pytest

from mlit_jax.errors import UserError
from mlit_jax.planning import topologies
from mlit_jax.planning.hardware import DEVICES, GIB
from mlit_jax.planning.topologies import KNOWN, open_topology


@pytest.mark.parametrize(
  "name, parsed",
  [
    ("v5e:4x4", (1, "v5e", (4, 4))),
    ("2*v5e:16x16", (2, "v5e", (16, 16))),
    ("v5p:4x4x8", (1, "v5p", (4, 4, 8))),
    ("tpu7x:2x2x1", (1, "tpu7x", (2, 2, 1))),
    ("h100:256", (1, "h100", (256,))),
    ("cpu:8", (1, "cpu", (8,))),
  ],
)
def test_names(name, parsed):
  assert topologies._parse(name) == parsed


def test_every_name_that_is_listed_is_understood():
  for line in KNOWN.split("\n"):
    topologies._parse(line.split()[0])


@pytest.mark.parametrize(
  "name, near",
  [
    ("v5q:4x4", "v5"),
    ("v5e:4x4x4", "'v5e:4x4'"),
    ("v5p:8x8", "'v5p:8x8x8'"),
    ("b100:8", "'h100:8'"),
    ("h100", "'h100:8'"),
    ("2*h100:8", "'h100:8'"),
    ("v5e:0x4", "'v5e:4x4'"),
    ("cpu:x", "'cpu:8'"),
    ("", "list"),
  ],
)
def test_unknown_names_are_refused_with_the_nearest(name, near):
  with pytest.raises(UserError) as e:
    open_topology(name)
  assert repr(name) in str(e.value) and near in str(e.value) and "list" in str(e.value)


def test_gpus_fill_their_hosts():
  with pytest.raises(UserError, match="not a whole number of hosts of 8"):
    open_topology("h100:12")


@pytest.mark.parametrize(
  "name, what, extra", [("v5e:4x4", "libtpu", "plan-tpu"), ("h100:8", "CUDA plugin", "plan-gpu")]
)
def test_a_compiler_that_is_not_installed_is_named_with_its_remedy(monkeypatch, name, what, extra):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError) as e:
    open_topology(name)
  assert what in str(e.value) and f"pip install 'mlit_jax[{extra}]'" in str(e.value)


def test_cpu_devices():
  assert jax.device_count() == 8
  found = open_topology("cpu:4")
  assert (len(found.devices), found.platform, found.groups) == (4, "cpu", (0,) * 4)
  with pytest.raises(UserError, match="has 8 CPU devices already"):
    open_topology("cpu:16")


def test_memory_that_the_user_states_is_the_one_that_counts():
  assert open_topology("cpu:2").device.usable == 0
  stated = open_topology("cpu:2", 1.5).device
  assert stated.usable == 1.5 * GIB and stated.sources["usable"] == "--memory_gib"


def test_devices_that_share_a_chip_share_its_figures():
  """A TPU7x chip: 2,307 TFLOP/s and 192 GiB, listed as two devices."""
  half = DEVICES["tpu7x"]
  assert half.peak_flops == 2307e12 / 2 and half.memory_rate == 7.37e12 / 2
  assert half.usable < 192 * GIB / 2
  assert DEVICES["v5e"].inside_rate == 4 * 45e9


def test_gpus_differ():
  """Both ways together, NVLink has 600 GB/s in an A100 and 900 in an H100; adapters 200 and 400 Gbit/s."""
  a, h = DEVICES["a100"], DEVICES["h100"]
  assert (a.peak_flops, a.inside_rate, a.outside_rate) == (312e12, 300e9, 25e9)
  assert (h.peak_flops, h.inside_rate, h.outside_rate) == (989e12, 450e9, 50e9)
  assert "600 GB/s" in a.sources["inside_rate"] and "200 Gbit/s" in a.sources["outside_rate"]
  assert "900 GB/s" in h.sources["inside_rate"] and "400 Gbit/s" in h.sources["outside_rate"]
  assert topologies.TARGETS.keys() == set(topologies.GPUS)


def test_every_figure_of_a_device_has_its_source():
  for name, device in DEVICES.items():
    if name != "cpu":
      for key in ("usable", "peak_flops", "memory_rate", "inside_rate", "outside_rate", "product_share"):  # fmt: skip
        assert device.sources[key], (name, key)
        assert getattr(device, key) > 0, (name, key)


def test_the_plugin_is_found_by_the_beginning_of_its_name(monkeypatch):
  monkeypatch.setitem(
    __import__("sys").modules, "jax_plugins", types.SimpleNamespace(__path__=["x"])
  )
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
  for modules, found in ((["xla_cuda14"], True), (["other"], False)):
    listed = [types.SimpleNamespace(name=m) for m in modules]
    monkeypatch.setattr(topologies.pkgutil, "iter_modules", lambda path, listed=listed: listed)
    assert topologies._has_cuda_plugin() is found
