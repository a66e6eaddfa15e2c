"""Planted chips: one that computes wrongly, one now and then, one slowly."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlit_jax.examining import devices
from mlit_jax.examining.devices import Product


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(devices, "SIZES", {"cpu": 64})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_devices_are_as_numpy(dtype, monkeypatch):
  monkeypatch.setattr(devices, "SLOW_SHARE", 0.0)  # the eight share two cores
  (found,) = devices.products(dtype)
  assert found.state == "ok" and found.item == f"products in {dtype}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_device_that_errs_is_named(dtype):
  bad = jax.local_devices()[5]

  def multiply(a, b):
    c = devices._multiply(a, b)
    return c.at[0, 7].multiply(1.001) if bad in c.devices() else c

  (found,) = devices.products(dtype, multiply)
  assert found.state == "wrong" and found.found.startswith(f"{bad}: off by")
  assert found.found.count("off by") == 1


def test_a_device_that_errs_now_and_then_is_named():
  bad, turn = jax.local_devices()[2], itertools.count()

  def multiply(a, b):
    c = devices._multiply(a, b)
    if bad in c.devices() and next(turn) == 3:
      c = c.at[9, 9].set(jnp.nextafter(c[9, 9], np.float32(1e9)))
    return c

  (found,) = devices.products("float32", multiply)
  assert found.state == "wrong" and found.found.startswith(f"{bad}: other bits each time")


def test_numbers_that_are_none_are_wrong():
  made = [Product("a", float("nan"), True, 1e12), Product("b", 0.0, True, 1e12)]
  (found,) = devices.check_products("p", made, 1e-5)
  assert found.state == "wrong" and "b:" not in found.found


def test_a_slow_device_is_a_warning():
  made = [Product(name, 0.0, True, flops) for name, flops in zip("abc", (1e12, 1e12, 4e11))]
  (found,) = devices.check_products("p", made, 1e-5)
  assert found.state == "warning" and "c 0.40" in found.found


def test_devices_are_counted():
  (found,) = devices.devices()
  assert found.state == "ok" and found.found.startswith("8 cpu (cpu)")
