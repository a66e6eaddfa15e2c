"""Hostile input for everything that is read: configs, rows, chat templates, tokenizers, weights, suites, verdicts, caches.

  python benchmarks/fuzz.py [--targets rows template] [--cases 10000] [--seed 0] [--jobs 1] [--out fuzzed]
  python benchmarks/fuzz.py --replay fuzzed/rows-1a2b3c4d.case

Each case ends within 5 s of processor time by success or by a UserError; nothing else is raised, no file is written but
in its own folder, no process is started, nothing is connected to, and memory stays bounded: all else is a failure, saved
with the smallest input found. Cases are made by hypothesis (three of ten) and by mutation of valid inputs; with atheris
installed (pip install atheris) what mutation keeps goes by the branches that it reaches, else by the messages that it
provokes. A target runs in a process of its own, which is begun anew after a crash.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

NAMES = ("config", "rows", "template", "tokenizer", "weights", "suite", "verdicts", "cache", "workdir", "saved")  # fmt: skip
SECONDS = 5.0  # of processor time, for a case
SILENT_SECONDS = 90.0  # without a new case, and a child is taken for hanging
MORE_MEMORY = 3 << 30  # bytes of address space beyond what the child begins with
LONGEST_MESSAGE = 4000
STRUCTURED = 0.3  # of the cases
MINIMISING = 60  # runs, for each new failure


class Hang(BaseException):
  """The time of a case is over."""


@dataclasses.dataclass
class Stats:
  """What came of a target's cases."""

  target: str
  cases: int = 0
  accepted: int = 0
  refused: int = 0
  failures: dict[str, str] = dataclasses.field(default_factory=dict)  # signature -> what
  slowest: float = 0.0
  seconds: float = 0.0
  engine: str = ""


class Watch:
  """Notes what a case must not do; an audit hook cannot be taken away, so it is told where it may write."""

  FILES = {"os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.symlink": 1, "os.link": 1, "os.rmdir": 0, "os.truncate": 0, "os.chmod": 0}  # fmt: skip
  NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class", "ctypes.dlopen")  # fmt: skip

  def __init__(self):
    self.folder: str | None = None
    self.seen: list[str] = []
    sys.addaudithook(self)

  def __call__(self, event, args):
    if self.folder is None:
      return
    if event == "open":
      path, mode, flags = args
      writes = any(c in mode for c in "wax+") if isinstance(mode, str) else flags & (os.O_WRONLY | os.O_RDWR)  # fmt: skip
      if writes:
        self._check(path)
    elif event in self.FILES:
      self._check(args[self.FILES[event]])
    elif event in self.NEVER and not str(args[0]).startswith("babel."):  # its own data are pickles
      self.seen.append(f"{event} {str(args)[:200]}")

  def _check(self, path) -> None:
    if isinstance(path, int):
      return
    text = os.path.realpath(os.fsdecode(path))
    scratch = os.path.join(tempfile.gettempdir(), "tmp")
    if not text.startswith((self.folder, "/dev/", scratch)) and "__pycache__" not in text:
      self.seen.append(f"writes {text}")


class Runner:
  """Runs cases of one target in a folder that is empty each time."""

  def __init__(self, name: str, run: Callable, work: Path, out: Path | None, watch: Watch):
    self.run, self.work, self.out, self.watch = run, work, out, watch
    self.stats = Stats(name)
    self.outcomes: set[str] = set()
    self.folder = work / "case"

  def case(self, data: bytes) -> bool:
    """Run it; whether what came of it is new."""
    began = time.process_time()  # a busy machine makes no case slow
    outcome, failure = self.outcome(data)
    took = time.process_time() - began
    s = self.stats
    s.cases += 1
    s.seconds += took
    s.slowest = max(s.slowest, took)
    s.accepted += outcome == "accepted"
    s.refused += failure is None and outcome != "accepted"
    if failure is not None and outcome not in s.failures:
      s.failures[outcome] = failure
      self._keep(outcome, data, failure)
    new = outcome not in self.outcomes and len(self.outcomes) < 3000
    self.outcomes.add(outcome)
    return new

  def outcome(self, data: bytes) -> tuple[str, str | None]:
    """(what came of it, how it failed if it did)"""
    import fuzz_inputs as inputs

    from mlit_jax.errors import UserError

    shutil.rmtree(self.folder, ignore_errors=True)
    self.folder.mkdir(parents=True)
    parts = inputs.split(data)
    self.watch.seen.clear()
    self.watch.folder = os.path.realpath(self.folder)
    try:
      with _limited(SECONDS):
        self.run(self.folder, parts)
      outcome, failure = "accepted", None
    except UserError as e:
      outcome, failure = _refusal(str(e))
    except Hang as e:
      outcome, failure = _fault(e, f"hang of more than {SECONDS:g} s")
    except BaseException as e:
      if isinstance(e, KeyboardInterrupt):
        raise
      outcome, failure = _fault(e, f"{type(e).__name__}: {str(e)[:300]}")
    finally:
      self.watch.folder = None
    if self.watch.seen:
      what = self.watch.seen[0]
      return f"forbidden {re.sub(r'[0-9]+', '', what)[:60]}", what
    return outcome, failure

  def _keep(self, signature: str, data: bytes, failure: str) -> None:
    if self.out is None:
      return
    small = self._smaller(data, signature)
    name = f"{self.stats.target}-{hashlib.blake2b(signature.encode(), digest_size=4).hexdigest()}"
    self.out.mkdir(parents=True, exist_ok=True)
    (self.out / f"{name}.case").write_bytes(small)
    (self.out / f"{name}.txt").write_text(f"{signature}\n{failure}\n", encoding="utf-8", errors="backslashreplace")  # fmt: skip

  def _smaller(self, data: bytes, signature: str) -> bytes:
    """The input with what it fails without taken out."""
    tries, piece = MINIMISING, max(1, len(data) // 2)
    while piece and tries:
      at = 0
      while at < len(data) and tries:
        shorter = data[:at] + data[at + piece :]
        tries -= 1
        if self.outcome(shorter)[0] == signature:
          data = shorter
        else:
          at += piece
      piece //= 2
    return data


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
  def stop(*_):
    raise Hang

  before = signal.signal(signal.SIGPROF, stop)
  signal.setitimer(signal.ITIMER_PROF, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def _refusal(message: str) -> tuple[str, str | None]:
  """A refusal is known by its words; one that is too long, or says nothing, is a failure."""
  if not message.strip() or len(message) > LONGEST_MESSAGE:
    return "message", f"a message of {len(message):,} characters: {message[:200]}"
  words = re.sub(r"'[^']*'|\"[^\"]*\"|[^A-Za-z `*{}.:;,]", "", message)
  return "refused " + words[-120:], None


def _fault(error: BaseException, what: str) -> tuple[str, str]:
  """Faults are one if they are of one kind, raised in the same places of ours."""
  frames = traceback.extract_tb(error.__traceback__)
  ours = [f"{Path(f.filename).stem}.{f.name}" for f in frames if "mlit_jax" in f.filename]
  lines = traceback.format_exception(error)
  return f"{type(error).__name__} in {' < '.join(ours[:-4:-1])}", what + "\n" + "".join(lines)[
    -3000:
  ]


# --- making cases


def cases(target, count: int, seed: int, keep: list) -> Iterator[bytes]:
  """Structured ones first, then mutated ones; `keep` gets the mutator, to be told which were of use."""
  import fuzz_inputs as inputs

  rng = random.Random(seed)
  seeds = [inputs.join(parts) for parts in target.seeds()]
  mutator = inputs.Mutator(seeds, rng)
  keep.append(mutator)
  yield from seeds[:count]
  left = max(0, count - len(seeds))
  structured = int(left * STRUCTURED)
  yield from inputs.structured(target.strategy(), structured, seed)
  for _ in range(left - structured):
    yield mutator.next()


def fuzz(name: str, count: int, seed: int, work: Path, out: Path | None, watch: Watch) -> Stats:
  """So many cases of a target in this process."""
  import fuzz_targets

  target = fuzz_targets.TARGETS[name]
  runner = Runner(name, target.run, work, out, watch)
  runner.stats.engine = "outcomes"
  keep: list = []
  for case in cases(target, count, seed, keep):
    _note_current(work, case)
    if runner.case(case):
      keep[0].keep(case)
    _note_stats(work, runner.stats)
  _note_stats(work, runner.stats, always=True)
  return runner.stats


def fuzz_with_atheris(name: str, count: int, seed: int, work: Path, out: Path, watch: Watch):
  """The same, guided by the branches of mlit_jax; never returns."""
  import atheris

  with atheris.instrument_imports(include=["mlit_jax"]):
    import fuzz_targets
  import fuzz_inputs as inputs

  target = fuzz_targets.TARGETS[name]
  runner = Runner(name, target.run, work, out, watch)
  runner.stats.engine = "branches"
  corpus = work / "corpus"
  corpus.mkdir(exist_ok=True)
  seeds = [inputs.join(parts) for parts in target.seeds()]
  for case in (*seeds, *inputs.structured(target.strategy(), int(count * STRUCTURED), seed)):
    (corpus / hashlib.blake2b(case, digest_size=8).hexdigest()).write_bytes(case)

  def one(data: bytes) -> None:
    _note_current(work, data)
    runner.case(data)
    _note_stats(work, runner.stats, always=runner.stats.cases >= count)
    if runner.stats.cases >= count:
      os._exit(0)

  def mutated(data: bytes, max_size: int, number: int) -> bytes:
    rng = random.Random(number)
    if rng.random() < 0.3:
      return atheris.Mutate(data, max_size)
    if not inputs.split(data):
      data = rng.choice(seeds)  # libFuzzer's own mutations may leave no part of a case
    return inputs.Mutator([data, rng.choice(seeds)], rng).next()[:max_size]

  # No timeout of its own: libFuzzer takes 0 for a second, and whoever started this process ends what is silent so long.
  options = [f"-runs={count * 2}", f"-seed={seed + 1}", "-max_len=262144", "-rss_limit_mb=0", f"-timeout={SILENT_SECONDS:.0f}", "-verbosity=0"]  # fmt: skip
  atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=mutated)
  atheris.Fuzz()


# --- processes


def _note_current(work: Path, case: bytes) -> None:
  """What a crash leaves to look at."""
  (work / "current").write_bytes(case)


def _note_stats(work: Path, stats: Stats, *, always: bool = False) -> None:
  if always or stats.cases % 20 == 0:
    temporary = work / "stats.new"
    temporary.write_text(json.dumps(dataclasses.asdict(stats)))
    temporary.replace(work / "stats.json")


def child(args) -> None:
  """One target, in this process alone."""
  work = Path(args.work)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  use_atheris = args.engine == "atheris"
  watch = Watch()
  if use_atheris:
    # Its own mappings are large, so memory is bounded from where they are made.
    import atheris  # noqa: F401
  else:
    import fuzz_targets  # noqa: F401
  size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
  limit = size + MORE_MEMORY * (3 if use_atheris else 1)
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  run = fuzz_with_atheris if use_atheris else fuzz
  run(args.child, args.cases, args.seed, work, Path(args.out), watch)


def supervise(name: str, args, engine: str) -> Stats:
  """The target's cases in child processes, a new one after each crash."""
  total = Stats(name)
  seed = args.seed
  while total.cases < args.cases:
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
      work = Path(folder)
      code = _run_child(name, args.cases - total.cases, seed, work, args, engine)
      found = work / "stats.json"
      part = Stats(**json.loads(found.read_text())) if found.exists() else Stats(name)
      _add(total, part)
      if code == 0:
        break
      total.cases += 1
      what = f"crash with exit code {code}" if code is not None else "hang that no signal ends"
      _keep_crash(total, what, work, Path(args.out))
      seed += 1_000_003
      if part.cases == 0 and len(total.failures) > 3:
        break
  return total


def _run_child(name: str, count: int, seed: int, work: Path, args, engine: str) -> int | None:
  """Its exit code; None where it had to be killed."""
  command = [sys.executable, __file__, "--child", name, "--cases", str(count), "--seed", str(seed), "--work", str(work)]  # fmt: skip
  command += ["--out", str(Path(args.out).resolve()), "--engine", engine]
  with open(work / "output", "wb") as log:
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=work)
    current, last = work / "current", time.monotonic()
    before = None
    while process.poll() is None:
      time.sleep(0.5)
      seen = current.stat().st_mtime_ns if current.exists() else None
      if seen != before:
        before, last = seen, time.monotonic()
      elif time.monotonic() - last > SILENT_SECONDS:
        process.kill()
        process.wait()
        return None
  return process.returncode


def _add(total: Stats, part: Stats) -> None:
  for field in ("cases", "accepted", "refused", "seconds"):
    setattr(total, field, getattr(total, field) + getattr(part, field))
  total.slowest = max(total.slowest, part.slowest)
  total.failures |= part.failures
  total.engine = part.engine or total.engine


def _keep_crash(total: Stats, what: str, work: Path, out: Path) -> None:
  said = (work / "output").read_text(errors="replace")[-2000:]
  signature = f"{what} #{len(total.failures)}"
  total.failures[signature] = said
  out.mkdir(parents=True, exist_ok=True)
  name = f"{total.target}-crash-{len(total.failures)}"
  if (work / "current").exists():
    shutil.copy(work / "current", out / f"{name}.case")
  (out / f"{name}.txt").write_text(f"{what}\n{said}", errors="replace")


def table(found: list[Stats]) -> str:
  """Markdown, a row for each target."""
  rows = ["| target | cases | accepted | refused | failures | slowest, CPU s | cases/CPU s | guided by |", "|---|--:|--:|--:|--:|--:|--:|---|"]  # fmt: skip
  for s in found:
    rate = s.cases / s.seconds if s.seconds else 0.0
    rows.append(f"| {s.target} | {s.cases:,} | {s.accepted:,} | {s.refused:,} | {len(s.failures)} | {s.slowest:.2f} | {rate:,.0f} | {s.engine} |")  # fmt: skip
  return "\n".join(rows)


def replay(path: Path) -> None:
  """What comes of a saved case."""
  import fuzz_common
  import fuzz_targets

  fuzz_common.encoded()  # made once, and not by the case
  name = path.name.split("-")[0]
  with tempfile.TemporaryDirectory() as folder:
    runner = Runner(name, fuzz_targets.TARGETS[name].run, Path(folder), None, Watch())
    print("\n".join(filter(None, runner.outcome(path.read_bytes()))))


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--targets", nargs="+", choices=NAMES, default=NAMES)
  parser.add_argument("--cases", type=int, default=10_000, help="of each target")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
  parser.add_argument("--out", default="fuzzed", help="folder for failures")
  parser.add_argument("--engine", default="auto", choices=("auto", "atheris", "own"))
  parser.add_argument("--replay", type=Path)
  parser.add_argument("--child", help=argparse.SUPPRESS)
  parser.add_argument("--work", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.replay:
    replay(args.replay)
    return 0
  if args.child:
    child(args)
    return 0
  engine = args.engine
  if engine == "auto":
    engine = "atheris" if importlib.util.find_spec("atheris") else "own"
  with concurrent.futures.ThreadPoolExecutor(args.jobs) as threads:
    found = []
    for stats in threads.map(lambda name: supervise(name, args, engine), args.targets):
      found.append(stats)
      print(table([stats]).split("\n")[-1], flush=True)
      for signature in stats.failures:
        print(f"  {signature}", flush=True)
  print(table(found))
  return 1 if any(s.failures for s in found) else 0


if __name__ == "__main__":
  sys.exit(main())
