"""Processes that meet, that fail, and that never come."""

import pytest

from mlit_jax.errors import UserError
from mlit_jax.examining import network

FATAL = """E1126 rpc.cc] retrying
F1126 client.h:80] Terminating process. absl::Status: DEADLINE_EXCEEDED: Deadline Exceeded

RPC: /xla.coordination.CoordinationService/RegisterTask
*** Check failure stack trace: ***
    @     0x7f7d8df040ee  xla::CoordinationServiceAgent::SetError()
"""


def test_what_the_first_process_measured_is_said():
  (found,) = network.check_members(
    "n", [0, 0], [], ['[Gloo] ...\n{"line": "2 x 1 device"}\n', ""], 9
  )
  assert found == ("ok", "n", "2 x 1 device", "")


def test_a_process_that_fails_is_named_with_the_line_that_says_why():
  (found,) = network.check_members("n", [-9, 0, -6], [], ["", "", FATAL], 9)
  assert found.state == "wrong" and found.found == "process 0 ended with -9: it said nothing"
  (found,) = network.check_members("n", [0, 0, -6], [], ["", "", FATAL], 9)
  assert found.found.startswith("process 2 ended with -6: F1126") and "DEADLINE" in found.found


def test_processes_that_never_come_are_ended():
  """`this` prints and sleeps in place of a member."""
  (found,) = network.on_this_host(2, "tests.examining.sleeper", seconds=1.5)
  assert found.state == "wrong" and found.found.startswith("not done after 2 s: processes [0, 1]")


def test_members_know_one_another_and_nothing_of_the_cluster_around():
  around = {"SLURM_NTASKS": "8", "MLIT_DISTRIBUTED": "auto", "XLA_FLAGS": "-x", "PATH": "p"}
  env = network.member_environment(around, 3, 2, 1234)
  assert "MLIT_DISTRIBUTED" not in env and "XLA_FLAGS" not in env and env["PATH"] == "p"
  assert env["JAX_COORDINATOR_ADDRESS"] == "127.0.0.1:1234"
  assert (env["JAX_NUM_PROCESSES"], env["JAX_PROCESS_ID"]) == ("3", "2")


def test_links_between_the_devices_of_one_process_are_tried():
  (found,) = network.cluster()
  assert found.state == "ok" and found.item == "links" and "all-reduce of 16 MiB" in found.found


def test_processes_that_differ_and_clocks_are_said(monkeypatch):
  def differ():
    raise UserError("processes have [4, 8] devices")

  monkeypatch.setattr(network.preflight, "preflight", differ)
  assert network.cluster()[0][:3] == ("wrong", "links", "processes have [4, 8] devices")
  text = "the clocks of the hosts differ by 60 s: times cannot be compared. Set them by NTP."
  monkeypatch.setattr(network.preflight, "preflight", lambda: ("2 processes", [text]))
  late, line = network.cluster()
  assert late.state == "warning" and late.remedy == "Set them by NTP" and line.state == "ok"


def test_a_host_that_does_not_know_its_name(monkeypatch):
  def unknown(name):
    raise OSError("Name or service not known")

  monkeypatch.setattr(network.socket, "gethostbyname", unknown)
  assert network.own_name()[0].state == "warning"


@pytest.mark.slow
def test_two_processes_meet():
  (found,) = network.on_this_host(2)
  assert found.state == "ok" and found.found.startswith("2 processes x 1 device (cpu)"), found


@pytest.mark.slow
def test_one_of_two_waits_no_longer_than_it_was_told(monkeypatch):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", f"127.0.0.1:{network._port()}")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
  monkeypatch.setenv("JAX_PROCESS_ID", "0")
  (found,) = network.rehearse(2)
  assert found.state == "wrong" and "DEADLINE_EXCEEDED" in found.found
