"""Processes that find and hear one another."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import jax

from mlit_jax import preflight
from mlit_jax.errors import UserError
from mlit_jax.examining.finding import Finding, ok, warning, wrong

MEMBER = "mlit_jax.examining.member"
SECONDS = 40
_OTHERS = ("MLIT_DISTRIBUTED", "XLA_FLAGS")


def cluster() -> list[Finding]:
  """All processes of the described cluster, and all devices; every process must call this."""
  if jax.device_count() == 1:
    return []
  item = "network" if jax.process_count() > 1 else "links"
  try:
    line, warnings = preflight.preflight()
  except UserError as e:
    return [wrong(item, str(e), "Give every process the same installation and devices.")]
  return [
    *(warning(item, *text.rstrip(".").rsplit(". ", 1)) for text in warnings),
    ok(item, line),
  ]


def own_name() -> list[Finding]:
  """Whether this host knows its own name: the CPU's collectives look it up."""
  name = socket.gethostname()
  try:
    return [ok("host name", f"{name} is {socket.gethostbyname(name)}")]
  except OSError as e:
    remedy = f"Put {name} into /etc/hosts; processes on several CPU hosts cannot meet else."
    return [warning("host name", f"{name} cannot be resolved ({e})", remedy)]


def rehearse(wait: int) -> list[Finding]:
  """Whether the processes of the described cluster meet: JAX ends a process that waited in vain, so others try."""
  try:
    done = subprocess.run(
      [sys.executable, "-m", MEMBER, str(wait)],
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      capture_output=True,
      timeout=wait + SECONDS,
    )
  except subprocess.TimeoutExpired:
    said = f"not met after {wait + SECONDS} s"
  else:
    if done.returncode == 0:
      return []
    said = _last((done.stdout + done.stderr).decode("utf-8", "replace"))
  remedy = (
    "Start all of them, and see that the coordinator's address can be reached from each (firewall, proxies); this one "
    "is examined alone."
  )
  return [wrong("rendezvous", f"no meeting within {wait} s: {said}", remedy)]


def on_this_host(number: int, module: str = MEMBER, seconds: float = SECONDS) -> list[Finding]:
  """`number` processes on the CPU join one another by the loopback and add up."""
  item = f"{number} processes here"
  began = time.monotonic()
  with tempfile.TemporaryDirectory(prefix="mlit_jax_doctor_") as folder:
    outputs = [Path(folder) / str(i) for i in range(number)]
    port = _port()
    started = []
    try:
      for i, output in enumerate(outputs):
        env = member_environment(os.environ, number, i, port)
        with open(output, "wb") as file:
          started.append(
            subprocess.Popen(
              [sys.executable, "-m", module], env=env, stdout=file, stderr=subprocess.STDOUT
            )
          )
      late = _wait(started, began + seconds)
    finally:
      for process in started:
        if process.poll() is None:
          process.kill()
          process.wait()
    said = [output.read_text("utf-8", "replace") for output in outputs]
  return check_members(item, [p.returncode for p in started], late, said, seconds)


def check_members(item: str, codes: list[int], late: list[int], said: list[str], seconds):
  """What the first process measured; or who failed, and its last words."""
  remedy = (
    "See proxies, host name and firewalls of the loopback; launch/README.md has how they meet."
  )
  if late:
    found = f"not done after {seconds:.0f} s: processes {late}; {_last(said[late[0]])}"
    return [wrong(item, found, remedy)]
  failed = [i for i, code in enumerate(codes) if code]
  if failed:
    found = f"process {failed[0]} ended with {codes[failed[0]]}: {_last(said[failed[0]])}"
    return [wrong(item, found, remedy)]
  return [ok(item, json.loads(said[0].strip().splitlines()[-1])["line"])]


def member_environment(env: Mapping[str, str], number: int, i: int, port: int) -> dict[str, str]:
  """Of one of them: on the CPU, since the accelerators are ours already; no file is written."""
  kept = {k: v for k, v in env.items() if k not in _OTHERS}
  return kept | {
    "JAX_PLATFORMS": "cpu",
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": str(number),
    "JAX_PROCESS_ID": str(i),
    "MLIT_COMPILATION_CACHE": "",
  }


def _wait(started: list[subprocess.Popen], until: float) -> list[int]:
  """Numbers of those that are not done by then; where one fails, the others would wait for it."""
  while time.monotonic() < until:
    codes = [p.poll() for p in started]
    if all(code is not None for code in codes) or any(codes):
      return []
    time.sleep(0.1)
  return [i for i, p in enumerate(started) if p.poll() is None]


def _port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def _last(text: str) -> str:
  """The line that says why, of what a process left: the last one is of a stack where JAX ended it."""
  lines = [line.strip() for line in text.splitlines() if line.strip(" *")]
  lines = [line for line in lines if not line.startswith(("@", "***"))]
  telling = [
    line for line in lines if re.search(r"absl::Status|Unknown flag|rror\b|detected", line)
  ]
  return [*lines[-1:], *telling][-1][-300:] if lines else "it said nothing"
