"""Configs against planted memory."""

import pytest

from mlit_jax.examining import host, model_memory
from tests import commands

GIB = 1 << 30


@pytest.mark.parametrize("free, state", [(7, "wrong"), (15, "warning"), (17, "ok"), (None, "ok")])
def test_parameters_against_memory(free, state):
  (found,) = model_memory.check(GIB, None if free is None else free * GIB, "of this host")
  assert found.state == state


def test_parameters_of_a_folder_are_those_of_its_weights(tmp_path, monkeypatch):
  monkeypatch.setattr(host, "available_memory", lambda: 40_000_000)
  folder = commands.ROOT / "mlit_jax" / "assets" / "tiny12"
  config = commands.write_config(tmp_path, f"c.model.path = {str(folder)!r}")
  (found,) = model_memory.of_config(str(config))
  # 8,022,792 bytes of bfloat16 and a header
  assert found.state == "warning" and found.found.startswith("4.0 million parameters")


def test_sizes_of_a_model_from_scratch(tmp_path):
  (found,) = model_memory.of_config(str(commands.write_config(tmp_path)))
  assert found.state == "ok" and "million parameters" in found.found


def test_a_model_that_is_not_here_is_not_fetched(tmp_path):
  config = commands.write_config(tmp_path, "c.model.path = 'nobody/nothing'")
  (found,) = model_memory.of_config(str(config))
  assert found.state == "ok" and "nothing is fetched" in found.found
