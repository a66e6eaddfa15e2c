"""Planted versions: each that does not fit is named, with what to install."""

import pytest

from mlit_jax.examining import packages

ASKED = [
  "jax<0.13,>=0.10.2",
  "numpy>=2.0",
  "pytest>=8; extra == 'test'",
  "never; python_version < '3'",
]
OF_JAX = [
  "jaxlib<=0.10.2,>=0.10.2",
  "jax-cuda13-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == 'cuda13'",
  "jax-cuda12-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == 'cuda12'",
  "libtpu==0.0.42.*; extra == 'tpu'",
]


def states(findings):
  return [(f.state, f.item) for f in findings]


def test_all_as_asked_for_is_one_line():
  (found,) = packages.check_requirements(ASKED, {"jax": "0.12.0.1", "numpy": "2.4.6"}.get)
  assert found == ("ok", "requirements", "2 as asked for: jax 0.12.0.1, numpy 2.4.6", "")


@pytest.mark.parametrize(
  "versions, item, found, remedy",
  [
    (
      {"jax": "0.9.0", "numpy": "2.4.6"},
      "package jax",
      "0.9.0, and <0.13,>=0.10.2 is needed",
      "pip install 'jax<0.13,>=0.10.2'",
    ),
    ({"jax": "0.10.2"}, "package numpy", "not installed", "pip install 'numpy>=2.0'"),
  ],
)
def test_a_wrong_or_missing_version_is_named(versions, item, found, remedy):
  (finding,) = packages.check_requirements(ASKED, versions.get)
  assert finding == ("wrong", item, found, remedy)


def test_this_environment_has_what_is_asked_for():
  assert {f.state for look in (packages.python, packages.requirements) for f in look()} <= {
    "ok",
    "warning",
  }


def test_another_python_is_wrong():
  assert packages.check_python("3.12.4", ">=3.11,<3.14") == [("ok", "Python", "3.12.4", "")]
  (found,) = packages.check_python("3.14.0", ">=3.11,<3.14")
  assert found.state == "wrong" and "<3.14" in found.found


def test_jaxlib_is_of_the_release_of_jax():
  assert packages.check_jaxlib("0.12.0.1", "0.12.0")[0].state == "ok"
  (old,) = packages.check_jaxlib("0.11.2", "0.11.1")
  assert old.state == "wrong" and old.remedy == "pip install jax==0.11.2 jaxlib==0.11.2"
  assert packages.check_jaxlib("0.11.2", None)[0].state == "wrong"


def test_a_plugin_fits_jax():
  assert states(packages.check_plugins(OF_JAX, {"libtpu": "0.0.42.1"}.get)) == [("ok", "plugin")]
  (old,) = packages.check_plugins(OF_JAX, {"jax-cuda13-plugin": "0.10.1"}.get)
  assert old.state == "wrong" and old.found.startswith("jax-cuda13-plugin 0.10.1")
  two = {"jax-cuda13-plugin": "0.10.2", "jax-cuda12-plugin": "0.10.2"}
  assert states(packages.check_plugins(OF_JAX, two.get)) == [("warning", "plugin")]


def test_hardware_without_its_plugin_is_a_warning(tmp_path):
  (tmp_path / "nvidia0").touch()
  places = {"NVIDIA GPU": f"{tmp_path}/nvidia[0-9]*", "TPU": f"{tmp_path}/accel[0-9]*"}
  (found,) = packages.check_accelerators({}.get, places)
  assert found.state == "warning" and found.remedy == "pip install 'mlit_jax[gpu]'"
  assert packages.check_accelerators({"jax-cuda13-plugin": "1"}.get, places) == []


def test_a_missing_optional_package_is_no_fault():
  (found,) = packages.optional({"torch": "2.13"}.get)
  assert found.state == "ok" and found.found.startswith("torch 2.13; not here: tokamax (")
