"""Environment variables that make a run wrong, slow, or wait for nobody."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping

from mlit_jax.cores import usable_cores
from mlit_jax.examining.finding import Finding, ok, warning, wrong

ADDRESS, NUMBER, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
AUTO = "MLIT_DISTRIBUTED"
DEVICES, DEVICES_FLAG = "JAX_NUM_CPU_DEVICES", "--xla_force_host_platform_device_count"
# Variables that tell a task of how many there are, by launcher.
_TASKS = {"SLURM": ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "Open MPI": ("OMPI_COMM_WORLD_SIZE",)}
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # in the order in which gRPC looks
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
# Patterns of XLA_FLAGS: what they do to a run.
_FLAGS = {
  r"--xla_dump_to=\S+": "writes every program to disk",
  r"--xla_backend_optimization_level=[01]\b": "compiles without optimizing",
  r"--xla_disable_all_hlo_passes(=true)?(?!\S)": "compiles without optimizing",
  r"--xla_gpu_autotune_level=0": "takes kernels unmeasured",
  r"--xla_gpu_(deterministic_ops|exclude_nondeterministic_ops)(=true)?(?!\S)": "takes slower kernels",
  r"--xla_cpu_enable_fast_math(=true)?(?!\S)": "loses infinities and NaN, by which a run sees that it diverges",
}
_SWITCHES = {
  "JAX_DISABLE_JIT": "nothing is compiled",
  "JAX_DEBUG_NANS": "every step is waited for and looked at",
  "JAX_ENABLE_X64": "numbers become 64 bits wide where nobody says how wide",
  "CUDA_LAUNCH_BLOCKING": "every kernel is waited for",
  "NCCL_P2P_DISABLE": "GPUs of a host do not talk directly",
  "NCCL_IB_DISABLE": "hosts talk by plain sockets",
}
_OFF = ("", "0", "false", "no", "off")
_SECONDS = 30


def cluster(env: Mapping[str, str]) -> list[Finding]:
  """Whether the variables that describe a cluster are whole, and said to us where a launcher set them."""
  item = "cluster"
  given = {name: env.get(name, "") for name in (ADDRESS, NUMBER, PROCESS)}
  missing = [name for name, value in given.items() if not value]
  if 0 < len(missing) < 3:
    there = ", ".join(f"{name}={value}" for name, value in given.items() if value)
    return [wrong(item, f"{there}, but no {' and no '.join(missing)}", "Set all three, or none.")]
  if env.get(AUTO, "") not in ("", "auto"):
    return [wrong(item, f"{AUTO}={env[AUTO]}", f"Set {AUTO}=auto, or nothing.")]
  if not missing:
    return [_described(item, given)]
  if env.get(AUTO):
    return [ok(item, f"{AUTO}=auto: JAX finds the others")]
  for launcher, names in _TASKS.items():
    tasks = next((env[name] for name in names if env.get(name, "").isdigit()), "1")
    if int(tasks) > 1:
      found = f"{launcher} says that there are {tasks} tasks, and {AUTO} is not set: each would train for itself"
      return [warning(item, found, f"export {AUTO}=auto, where they are to train together")]
  hosts = [h for h in env.get("TPU_WORKER_HOSTNAMES", "").split(",") if h]
  if len(hosts) > 1:
    found = f"a TPU slice of {len(hosts)} hosts, and {AUTO} is not set"
    return [warning(item, found, f"export {AUTO}=auto on each of them")]
  return [ok(item, "none described: this process alone")]


def proxies(env: Mapping[str, str]) -> list[Finding]:
  """Whether processes would ask a proxy for one another: JAX's coordinator speaks gRPC, which takes them."""
  name = next((n for n in _PROXIES if env.get(n)), "")
  if not name:
    return [ok("proxies", "none")]
  host = env.get(ADDRESS, "").rpartition(":")[0] or "127.0.0.1"
  spared = next((env[n] for n in _EXCEPTIONS if env.get(n)), "")
  if _is_spared(host, spared):
    return [ok("proxies", f"{name}, not for {host}")]
  found = f"{name} is set, and no_proxy does not leave out {host}: processes may look for one another there"
  return [warning("proxies", found, f"export no_proxy={','.join(filter(None, [spared, host]))}")]


def switches(env: Mapping[str, str]) -> list[Finding]:
  """Flags and switches that are for finding faults, left on."""
  flags = env.get("XLA_FLAGS", "")
  found = []
  for pattern, what in _FLAGS.items():
    if match := re.search(rf"(?<!\S){pattern}", flags):
      found.append(warning("XLA_FLAGS", f"{match[0]} {what}", "Take it out for real runs."))
  for name, what in _SWITCHES.items():
    if env.get(name, "").lower() not in _OFF:
      found.append(warning(name, f"{env[name]}: {what}", "Unset it for real runs."))
  found += cpu_devices(env)
  return found or [ok("XLA_FLAGS", flags or "none")]


def cpu_devices(env: Mapping[str, str]) -> list[Finding]:
  """Whether the CPU is to be more devices than it has cores, by either of the ways to say so."""
  # Of flags the last counts, and JAX's own variable before them.
  flags = re.findall(rf"(?<!\S){DEVICES_FLAG}=(\d+)", env.get("XLA_FLAGS", ""))
  item, number = ("XLA_FLAGS", flags[-1]) if flags else (DEVICES, "")
  if env.get(DEVICES, "").isdigit():
    item, number = DEVICES, env[DEVICES]
  cores = usable_cores()
  if not number or int(number) <= cores:
    return []
  found = f"the CPU is to be {number} devices and has {_cores(cores)}: for trying meshes; slower"
  return [warning(item, found, f"{cores} at most for real runs.")]


def known_flags(env: Mapping[str, str]) -> list[Finding]:
  """Whether this jaxlib knows all XLA_FLAGS: an unknown one ends the process, so another one tries."""
  if not env.get("XLA_FLAGS"):
    return []
  command = [sys.executable, "-c", "import jax; jax.devices()"]
  done = subprocess.run(
    command,
    env={**env, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    errors="replace",
    timeout=_SECONDS,
  )
  if done.returncode == 0:
    return []
  said = [line for line in done.stderr.splitlines() if "flag" in line.lower()]
  text = " ".join((said or done.stderr.splitlines() or ["no word"])[-1].split())[-300:]
  remedy = "Take out what this jaxlib does not know; the rest is examined without XLA_FLAGS."
  return [wrong("XLA_FLAGS", f"JAX ends at its start: {text}", remedy)]


def without(env: os._Environ, *names: str) -> None:
  """Drop variables that were found wrong, so that the rest can be looked at."""
  for name in names:
    env.pop(name, None)


def _described(item: str, given: Mapping[str, str]) -> Finding:
  number, process, address = given[NUMBER], given[PROCESS], given[ADDRESS]
  host, _, port = address.rpartition(":")
  if not (number.isdigit() and process.isdigit() and int(process) < int(number)):
    found = f"{PROCESS}={process} of {NUMBER}={number}"
    return wrong(item, found, f"Give numbers, {PROCESS} from 0 to {NUMBER} less 1.")
  if not host or not port.isdigit():
    return wrong(item, f"{ADDRESS}={address}", "Give HOST:PORT.")
  return ok(item, f"process {process} of {number}, coordinator {address}")


def _is_spared(host: str, spared: str) -> bool:
  ends = [e.strip().lstrip("*") for e in spared.split(",")]
  return any(e and (host == e or host.endswith(e)) for e in ends) or "*" in spared.split(",")


def _cores(number: int) -> str:
  return "1 core" if number == 1 else f"{number} cores"
