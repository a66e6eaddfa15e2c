"""Planted variables."""

import sys

import pytest

from mlit_jax.examining import environment as env

WHOLE = {
  "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
  "JAX_NUM_PROCESSES": "4",
  "JAX_PROCESS_ID": "3",
}


@pytest.mark.parametrize(
  "variables, state, part",
  [
    ({}, "ok", "none described"),
    (WHOLE, "ok", "process 3 of 4"),
    (WHOLE | {"JAX_PROCESS_ID": ""}, "wrong", "no JAX_PROCESS_ID"),
    ({"JAX_NUM_PROCESSES": "4"}, "wrong", "no JAX_COORDINATOR_ADDRESS and no JAX_PROCESS_ID"),
    (WHOLE | {"JAX_PROCESS_ID": "4"}, "wrong", "JAX_PROCESS_ID=4 of JAX_NUM_PROCESSES=4"),
    (WHOLE | {"JAX_NUM_PROCESSES": "four"}, "wrong", "JAX_NUM_PROCESSES=four"),
    (WHOLE | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "wrong", "JAX_COORDINATOR_ADDRESS=10.0.0.1"),
    ({"MLIT_DISTRIBUTED": "yes"}, "wrong", "MLIT_DISTRIBUTED=yes"),
    ({"MLIT_DISTRIBUTED": "auto", "SLURM_NTASKS": "8"}, "ok", "auto"),
    ({"SLURM_NTASKS": "8"}, "warning", "SLURM says that there are 8 tasks"),
    ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, "ok", "none described"),
    ({"SLURM_NTASKS": "1"}, "ok", "none described"),
    (WHOLE | {"SLURM_NTASKS": "8"}, "ok", "process 3 of 4"),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "warning", "2 hosts"),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, "ok", "none described"),
  ],
)
def test_clusters(variables, state, part):
  (found,) = env.cluster(variables)
  assert found.state == state and part in found.found and bool(found.remedy) == (state != "ok")


@pytest.mark.parametrize(
  "variables, state",
  [
    ({}, "ok"),
    ({"http_proxy": "http://p:3128"}, "warning"),
    ({"http_proxy": "http://p:3128", "no_proxy": "localhost,127.0.0.1"}, "ok"),
    ({"http_proxy": "http://p:3128", "no_proxy": "localhost"}, "warning"),
    ({"grpc_proxy": "http://p:3128", "no_proxy": "10.0.0.1", **WHOLE}, "ok"),
    ({"grpc_proxy": "http://p:3128", "no_proxy": "127.0.0.1", **WHOLE}, "warning"),
    (
      {"https_proxy": "p", "no_proxy": ".in", **WHOLE, "JAX_COORDINATOR_ADDRESS": "n0.in:1"},
      "ok",
    ),
  ],
)
def test_proxies(variables, state):
  assert [f.state for f in env.proxies(variables)] == [state]


@pytest.mark.parametrize(
  "variables, items",
  [
    ({"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=true"}, []),
    ({"XLA_FLAGS": "--xla_gpu_deterministic_ops=false"}, []),
    ({"XLA_FLAGS": "--xla_gpu_deterministic_ops --xla_dump_to=/tmp/x"}, ["XLA_FLAGS"] * 2),
    ({"JAX_DISABLE_JIT": "1", "JAX_DEBUG_NANS": "false"}, ["JAX_DISABLE_JIT"]),
  ],
)
def test_switches(variables, items):
  assert [f.item for f in env.switches(variables) if f.state == "warning"] == items


FLAG = "--a=b --xla_force_host_platform_device_count"


@pytest.mark.parametrize(
  "variables, items",
  [
    ({"XLA_FLAGS": f"{FLAG}=4"}, []),
    ({"XLA_FLAGS": f"{FLAG}=8"}, ["XLA_FLAGS"]),
    ({"XLA_FLAGS": f"{FLAG}=8 {FLAG}=2"}, []),
    ({"JAX_NUM_CPU_DEVICES": "4"}, []),
    ({"JAX_NUM_CPU_DEVICES": "5"}, ["JAX_NUM_CPU_DEVICES"]),
    ({"JAX_NUM_CPU_DEVICES": "5", "XLA_FLAGS": f"{FLAG}=8"}, ["JAX_NUM_CPU_DEVICES"]),
    ({"JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": f"{FLAG}=8"}, []),
  ],
)
def test_a_cpu_as_more_devices_than_cores(monkeypatch, variables, items):
  monkeypatch.setattr(env, "usable_cores", lambda: 4)
  found = [f for f in env.switches(variables) if f.state == "warning"]
  assert [f.item for f in found] == items
  assert all(
    "devices and has 4 cores" in f.found and f.remedy.startswith("4 at most") for f in found
  )


def test_flags_that_end_jax_are_found_by_another_process(monkeypatch, tmp_path):
  """JAX stands in for itself here; the real one was tried once by hand, and says it in such a line."""
  fake = tmp_path / "python"
  fake.write_text(
    '#!/bin/sh\necho "F1 parse.cc] Unknown flag in XLA_FLAGS: $XLA_FLAGS" >&2\nexit 134\n'
  )
  fake.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(fake))
  (found,) = env.known_flags({"XLA_FLAGS": "--xla_nonsense"})
  assert found.state == "wrong" and "Unknown flag in XLA_FLAGS: --xla_nonsense" in found.found
  assert env.known_flags({}) == []
