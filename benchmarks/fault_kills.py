"""kill -9 at random moments: whatever was going on, the same command again ends in the same bits."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fault_material as material

PHASES = (
  "building the cache",
  "training",
  "evaluating",
  "saving",
  "deleting",
  "ending",
  "exporting",
)
FILES = {  # of a phase: which files of the workdir are touched meanwhile, and how often, about
  "building the cache": (lambda name: name.startswith("cache/"), 75),
  "saving": (lambda name: "orbax-checkpoint-tmp" in name or name.startswith("checkpoints/"), 500),
  "deleting": (lambda name: ".deleted-" in name, 8),
  "ending": (lambda name: name.startswith((".README.md", ".report.html", "report.html")), 5),
}
TIMED = {
  "training": ("step", 0.03),
  "evaluating": ("evaluation", 0.4),
}  # kind of the clock, seconds
TOUCHES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.scandir")


def die() -> None:
  os.kill(os.getpid(), signal.SIGKILL)


def at_a_touch(folder: Path, counts: Callable[[str], bool], number: int) -> Callable[[], None]:
  """To be called in the process: it dies at the number-th system call of Python on such a file."""
  left = [number]
  prefix = f"{folder}/"

  def hear(event, args):
    if event not in TOUCHES or not args:
      return
    path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes | os.PathLike) else ""
    if path.startswith(prefix) and counts(path[len(prefix) :]):
      left[0] -= 1
      if left[0] <= 0:
        die()

  return lambda: sys.addaudithook(hear)


def at_a_time(kind: str, number: int, seconds: float) -> Callable[[], None]:
  """To be called in the process: it dies so long after it began a kind of work for the number-th time."""

  def arm():
    from mlit_jax.training.clock import Clock

    left, real = [number], Clock.spent

    @contextlib.contextmanager
    def spent(self, what):
      if what == kind:
        left[0] -= 1
        if left[0] == 0:
          threading.Timer(seconds, die).start()
      with real(self, what):
        yield

    Clock.spent = spent

  return arm


def moment(phase: str, workdir: Path, rng: random.Random) -> Callable[[], None]:
  """A random moment of a phase, as what a process does before it begins."""
  if phase in TIMED:
    kind, seconds = TIMED[phase]
    return at_a_time(
      kind, rng.randrange(1, material.STEPS if kind == "step" else 4), rng.uniform(0, seconds)
    )
  counts, often = FILES[phase]
  if phase == "saving" and rng.random() < 0.5:  # while threads write, in C++
    return at_a_time("saving", rng.randrange(1, 8), rng.uniform(0, 0.15))
  return at_a_touch(workdir, counts, rng.randrange(1, often))


def run(folder: Path, total: int, seed: int, say: Callable[[str], None] = print) -> dict:
  """`total` kills, spread over the phases; what became of them."""
  rng = random.Random(seed)
  config = material.write_config(folder)
  reference, exported = material.undisturbed(folder, config)
  quota = {
    phase: total // len(PHASES) + (i < total % len(PHASES)) for i, phase in enumerate(PHASES)
  }
  kills, wrong, chains, told = dict.fromkeys(PHASES, 0), [], 0, 0
  wanted = {phase: n for phase, n in quota.items() if phase != "exporting"}
  began = time.monotonic()
  while any(kills[p] < n for p, n in wanted.items()):
    chains += 1
    workdir = folder / f"chain{chains}"
    wrong += chain(config, workdir, reference, wanted, kills, rng)
    for what in wrong[told:]:
      say(f"  FAULT {what}")
    told = len(wrong)
    say(
      f"  {sum(kills.values())} kills in {chains} runs, {time.monotonic() - began:,.0f} s: {len(wrong)} faults"
    )
    shutil.rmtree(workdir)
    if chains > 20 * total:
      raise RuntimeError(f"the moments are not met: {kills}")
  wrong += exports(folder, reference, exported, quota["exporting"], kills, rng)
  return {"kills": kills, "total": sum(kills.values()), "runs": chains, "wrong": wrong}


def chain(config, workdir: Path, reference: Path, wanted: dict, kills: dict, rng) -> list[str]:
  """One run from its beginning to its end, killed on the way; what is wrong with it then, in words."""
  log = workdir.with_suffix(".log")
  for _ in range(12):
    open_phases = [p for p, n in wanted.items() if kills[p] < n]
    built = any((workdir / "cache").glob("*/meta.json"))
    fitting = [p for p in open_phases if p != "building the cache" or not built]
    if not fitting:
      break
    phase = rng.choice(fitting)
    started = material.Started(
      "train", ["--config", config, "--workdir", workdir], log, moment(phase, workdir, rng)
    )
    code = started.wait()
    if code == 0:
      break  # it came to its end before the moment came
    if code != -signal.SIGKILL:
      return [f"after a kill while {phase}: exit code {code}: {started.said()[-600:]}"]
    kills[phase] += 1
  started = material.Started("train", ["--config", config, "--workdir", workdir], log)
  if (code := started.wait()) != 0:
    return [f"cannot go on: exit code {code}: {started.said()[-600:]}"]
  return [f"{workdir.name}: {what}" for what in material.differences(workdir, reference)]


def exports(
  folder: Path, reference: Path, exported: Path, number: int, kills: dict, rng
) -> list[str]:
  """Kill exports into one folder; a folder that is there is whole."""
  wrong, out = [], folder / "again"
  wanted = {p.relative_to(exported): p.read_bytes() for p in exported.rglob("*") if p.is_file()}
  beside = {p.name for p in folder.iterdir()} | {out.name, "again.log"}

  def counts(name):
    return "again" in name and not name.endswith(".log")

  args = ["--workdir", reference, "--out", out, "--no-verify"]
  while kills["exporting"] < number:
    before = at_a_touch(folder, counts, rng.randrange(1, 40))
    started = material.Started("export", args, folder / "again.log", before)
    code = started.wait()
    if code not in (0, -signal.SIGKILL):
      return [*wrong, f"export after a kill: exit code {code}: {started.said()[-600:]}"]
    kills["exporting"] += code != 0
    if out.exists():
      found = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
      if found != wanted:
        wrong.append("an export that has its name is not whole")
      shutil.rmtree(out)
  started = material.Started("export", args, folder / "again.log")
  if started.wait() != 0:
    wrong.append(f"export after kills: {started.said()[-600:]}")
  left = {p.name for p in folder.iterdir()} - beside
  if left:
    wrong.append(f"left behind by exports: {', '.join(sorted(left))}")
  return wrong
