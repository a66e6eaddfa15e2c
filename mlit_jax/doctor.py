"""Whether this machine is fit for a run: one line an item, with the remedy where something is not well.

  python -m mlit_jax.doctor
  python -m mlit_jax.doctor --workdir DIR --config FILE --processes 2 --json doctor.json

Under a described cluster (launch/README.md) start it on all processes, as a run: they compare and add up. Needs no
network, weights or rows, and leaves nothing behind but compiled programs in their cache. Exit codes: 0 nothing is
wrong (warnings may be), 2 something is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the lines are what is to be read

from mlit_jax.examining import environment, host, packages, storage
from mlit_jax.examining.finding import WARNING, WRONG, Finding, examine, wrong

CACHE = "~/.cache/mlit_jax/xla"


def main() -> int:
  parser = argparse.ArgumentParser(
    "mlit_jax.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", default=".", help="where runs will write; default: here")
  parser.add_argument("--config", default="", help="Python file with get_config(): does it fit?")
  parser.add_argument(
    "--processes", type=int, default=0, help="start so many here, on the CPU, that join each other"
  )
  parser.add_argument(
    "--wait", type=int, default=120, help="seconds for the other processes of a described cluster"
  )
  parser.add_argument("--json", default="", help="write all findings to this file")
  parser.add_argument("--debug", action="store_true", help="tracebacks of what crashes")
  args = parser.parse_args()
  if hasattr(sys.stdout, "reconfigure"):  # where the encoding is at fault a name must not end this
    sys.stdout.reconfigure(errors="backslashreplace")
  for name, value, least in (("processes", args.processes, 0), ("wait", args.wait, 1)):
    if value < least:
      parser.error(f"--{name} is {value}; give {least} or more")
  return run(args)


def run(args: argparse.Namespace) -> int:
  """Examine, print each line when it is known, write."""
  taken = Taken(args.debug)
  look_at_host(taken, args)
  if start(taken, args.wait):
    look_at_devices(taken, args)
  if args.processes:
    taken.take("processes", lambda: _network().on_this_host(args.processes))
  if args.json:
    taken.take("--json", lambda: write(args.json, taken.findings))
  counts = [sum(f.state == state for f in taken.findings) for state in (WRONG, WARNING)]
  print(f"{counts[0]} wrong, {counts[1]} warnings, {len(taken.findings)} lines", flush=True)
  return 2 if counts[0] else 0


class Taken:
  """The findings so far, printed as they come: what comes later may take long, or end the process."""

  def __init__(self, debug: bool = False):
    self.findings: list[Finding] = []
    self.debug = debug
    self.shown_from, self.prefix = (
      "",
      "",
    )  # other processes than the first say only what is not well

  def take(self, item: str, look: Callable) -> bool:
    """Whether nothing was wrong."""
    found = examine(item, self._traced(look) if self.debug else look)
    for finding in found:
      if finding.state != self.shown_from:
        print(self.prefix + finding.line(), flush=True)
    self.findings += found
    return all(f.state != WRONG for f in found)

  def _traced(self, look: Callable) -> Callable:
    def traced():
      try:
        return look()
      except Exception:
        traceback.print_exc()
        raise

    return traced


def look_at_host(taken: Taken, args: argparse.Namespace) -> None:
  """What is known without JAX, which may not even start."""
  taken.take("Python", packages.python)
  taken.take("requirements", packages.requirements)
  taken.take("jaxlib", packages.jax_and_jaxlib)
  taken.take("optional packages", packages.optional)
  taken.take("encoding", host.encoding)
  taken.take("open files", host.open_files)
  taken.take("shared memory", host.shared_memory)
  taken.take("memory", host.memory)
  taken.take("disk", lambda: storage.disk(Path(args.workdir)))
  cache = os.environ.get("MLIT_COMPILATION_CACHE", os.path.expanduser(CACHE))
  taken.take("compilation cache", lambda: storage.cache(cache))
  taken.take("proxies", lambda: environment.proxies(os.environ))
  taken.take("XLA_FLAGS", lambda: environment.switches(os.environ))
  if not taken.take("XLA_FLAGS", lambda: environment.known_flags(os.environ)):
    environment.without(os.environ, "XLA_FLAGS")
  if not taken.take("cluster", lambda: environment.cluster(os.environ)):
    _examine_alone()


def start(taken: Taken, wait: int) -> bool:
  """JAX, and the other processes where a cluster is described; whether devices can be looked at."""

  def look() -> list[Finding]:
    from mlit_jax import runtime  # late: JAX may be what is missing

    runtime.start(rendezvous_seconds=wait)
    return []

  if os.environ.get(environment.ADDRESS) or os.environ.get(environment.AUTO):
    print(f"{'':<8} waiting for the other processes, {wait} s at most", flush=True)
    if not taken.take("rendezvous", lambda: _network().rehearse(wait)):
      _examine_alone()
  return taken.take("start of JAX", look)


def look_at_devices(taken: Taken, args: argparse.Namespace) -> None:
  """What needs JAX; without devices there is nothing more to say."""

  def devices() -> list[Finding]:
    from mlit_jax.examining import devices

    return devices.devices()

  if not taken.take("devices", devices):
    return
  from mlit_jax import runtime
  from mlit_jax.examining import backends, model_memory
  from mlit_jax.examining import devices as computing

  if not runtime.is_main():
    import jax

    taken.shown_from, taken.prefix = "ok", f"process {jax.process_index()}: "
  taken.take("products in float32", lambda: computing.products("float32"))
  taken.take("products in bfloat16", lambda: computing.products("bfloat16"))
  taken.take("attention", backends.attention)
  if args.config:
    taken.take("model memory", lambda: model_memory.of_config(args.config))
  network = _network()
  if args.processes or os.environ.get(environment.ADDRESS):
    taken.take("host name", network.own_name)
  taken.take("network", network.cluster)


def write(path: str, findings: list[Finding]) -> list[Finding]:
  """As a list of objects."""
  text = json.dumps([f._asdict() for f in findings], ensure_ascii=False, indent=1)
  try:
    Path(path).write_text(text + "\n", encoding="utf-8")
  except OSError as e:
    return [wrong("--json", f"{path}: {e}", "Give a file that can be written.")]
  return []


def _examine_alone() -> None:
  """As if no cluster were described: what was wrong with it is said, and the rest of this host can be looked at."""
  environment.without(os.environ, environment.ADDRESS, environment.AUTO)


def _network():
  from mlit_jax.examining import network

  return network


if __name__ == "__main__":
  sys.exit(main())
