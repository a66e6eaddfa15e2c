"""Signals to a run at any time: what is trained is kept, what is not whole is not taken for it, nobody is left behind."""

import os
import pathlib
import signal
import time
import uuid

import pytest

from mlit_jax.training.checkpoint import read_step_meta, resolve_step
from tests import commands

pytestmark = pytest.mark.slow
STEPS = 12
LINES = (
  "c.epochs = 0",
  f"c.steps = {STEPS}",
  "c.eval.every_steps = 6",
  "c.checkpoint.every_steps = 4",
  "c.eval.at_start = False",
)
# Touches a file whenever a batch is evaluated, and takes its time for it.
SLOW_EVALUATION = """
import pathlib, time
from mlit_jax.evals.evaluator import Evaluator
beat = Evaluator._beating
def slow(self, batches):
  for batch in beat(self, batches):
    pathlib.Path({mark!r}).touch()
    time.sleep(0.5)
    yield batch
  for _ in range({more}):  # so long that whoever waits for the end is found out
    self.beat()
    time.sleep(0.5)
Evaluator._beating = slow
"""
STUCK_SAVE = """
import pathlib, time
import orbax.checkpoint as ocp
def stuck(self, *args, **kwargs):
  pathlib.Path({mark!r}).touch()
  time.sleep(600)
ocp.CompositeCheckpointHandler.finalize = stuck
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  return commands.write_config(tmp_path_factory.mktemp("config"), *LINES)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
  return commands.undisturbed_runs(config, tmp_path_factory, STEPS)


def end(processes, timeout=120):
  return [commands.ended(p, timeout=timeout) for p in processes]


def wait_for(path: pathlib.Path, process, timeout=120):
  until = time.monotonic() + timeout
  while not path.exists():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < until, f"{path} did not appear"
    time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_before_the_first_step_it_ends_at_once(config, tmp_path, number):
  (process,) = commands.begin(1, config, tmp_path / "run")
  wait_for(tmp_path / "run" / ".lock", process)
  process.send_signal(number)
  began = time.monotonic()
  ((code, _, err),) = end([process])
  assert code == 75 and time.monotonic() - began < 3
  assert err == f"{number.name}: nothing to save yet; run again to begin where this began\n"
  assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_it_is_heard_while_the_main_thread_is_in_compiled_code(config, tmp_path):
  """As while a step compiles: Python's own handlers would wait for its end."""
  before = f"""
import ctypes, pathlib
from mlit_jax.job import Job
def compile(self, base):
  pathlib.Path({str(tmp_path / "mark")!r}).touch()
  mutex, lock = ctypes.create_string_buffer(128), ctypes.CDLL(None).pthread_mutex_lock
  lock(mutex)
  lock(mutex)  # for ever; unlike a sleep, a signal does not end it
Job.run = compile
"""
  (process,) = commands.begin(1, config, tmp_path / "run", before=before)
  wait_for(tmp_path / "mark", process)
  process.terminate()
  ((code, _, err),) = end([process], timeout=5)
  assert code == 75 and "nothing to save yet" in err


def test_before_the_first_step_a_signal_to_one_of_two_ends_both(config, tmp_path):
  both = commands.begin(2, config, tmp_path / "run")
  wait_for(tmp_path / "run" / ".lock", both[0])
  both[1].terminate()
  (first, _, err), (second, _, its) = end(both, timeout=30)
  assert (first, second) == (75, 75), (err, its)
  assert "nothing to save yet" in its and "process 1 was told to stop (SIGTERM)" in err


@pytest.mark.parametrize("processes", [1, 2])
def test_during_an_evaluation(config, undisturbed, tmp_path, processes):
  """It is left out, the step before it is saved, and it is made when the run goes on."""
  workdir, mark = tmp_path / "run", tmp_path / "mark"
  slow = SLOW_EVALUATION.format(mark=str(mark), more=200)
  running = commands.begin(processes, config, workdir, before=slow)
  wait_for(mark, running[0])
  running[-1].terminate()
  began = time.monotonic()
  ends = end(running)
  assert [code for code, *_ in ends] == [75] * processes, ends
  assert time.monotonic() - began < 20
  assert "step 6 is evaluated when the run goes on" in ends[0][1]
  assert f"SIGTERM: saved step 6 of {STEPS}; run again to go on" in ends[0][2]
  assert resolve_step(workdir / "checkpoints", "latest") == 6
  assert not (workdir / "evals" / "6").exists()
  commands.finish(commands.begin(processes, config, workdir))
  assert (workdir / "evals" / "6").is_dir() and (workdir / "evals" / str(STEPS)).is_dir()
  assert commands.final_digest(workdir, STEPS) == undisturbed(processes)


def test_during_the_last_evaluation(tmp_path):
  """The last step is saved; the run that goes on only evaluates it and ends."""
  config = commands.write_config(tmp_path, *LINES, "c.eval.every_steps = 0")
  workdir, mark = tmp_path / "run", tmp_path / "mark"
  slow = SLOW_EVALUATION.format(mark=str(mark), more=200)
  (process,) = commands.begin(1, config, workdir, before=slow)
  wait_for(mark, process)
  process.terminate()
  ((code, _, err),) = end([process])
  assert code == 75 and f"saved the last step, {STEPS}; run again to evaluate it" in err, err
  ((code, out, err),) = end(commands.begin(1, config, workdir))
  assert code == 0 and f"resumed at step {STEPS} of {STEPS}" in out, err
  assert (workdir / "evals" / str(STEPS) / "heldout.json").exists()
  assert read_step_meta(workdir / "checkpoints", STEPS)["metric"] is not None


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_signal_during_a_save_ends_at_once_and_the_half_is_not_used(
  config, undisturbed, tmp_path, processes
):
  workdir, mark = tmp_path / "run", tmp_path / "mark"
  stuck = STUCK_SAVE.format(mark=str(mark))
  running = commands.begin(processes, config, workdir, before=stuck)
  wait_for(mark, running[0])
  assert list((workdir / "checkpoints").glob("*tmp*"))
  running[-1].terminate()
  time.sleep(1.5)
  assert all(p.poll() is None for p in running)
  running[-1].terminate()
  began = time.monotonic()
  ends = end(running, timeout=20)
  assert [code for code, *_ in ends] == [128 + 15] * processes, ends
  assert time.monotonic() - began < 8
  assert "SIGTERM: ends at once" in ends[-1][2]
  assert not [p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
  assert commands.ended_digest(processes, config, workdir, STEPS) == undisturbed(processes)
  assert not list((workdir / "checkpoints").glob("*tmp*"))


# --- kill -9


def marked(mark: str) -> dict[int, str]:
  """{process: command} of the living that were begun with MARK=mark, and of whatever these began."""
  found = {}
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      if f"MARK={mark}\0".encode() in (folder / "environ").read_bytes():
        found[int(folder.name)] = (folder / "cmdline").read_bytes().decode()
    except OSError:
      continue  # it has just ended, or is of somebody else
  return found


def assert_gone(mark: str, shared: set[str], seconds: float = 5) -> None:
  until = time.monotonic() + seconds
  while (left := marked(mark)) and time.monotonic() < until:
    time.sleep(0.1)
  for process in left:
    os.kill(process, signal.SIGKILL)
  assert not left
  assert set(os.listdir("/dev/shm")) - shared == set()


def test_killed_while_it_tokenises_its_workers_are_gone_too(config, tmp_path):
  """Also those that are in the middle of a part, and would see the end of their input only after it."""
  mark, shared, seen = uuid.uuid4().hex, set(os.listdir("/dev/shm")), tmp_path / "mark"
  (tmp_path / "sitecustomize.py").write_text(
    "import sys\n"
    "if 'mlit_jax.data.worker' in sys.orig_argv:\n"
    "  import pathlib, time, mlit_jax.data.parts as parts\n"
    "  def slow(*args):\n"
    f"    pathlib.Path({str(seen)!r}).touch()\n"
    "    time.sleep(600)\n"
    f"  parts.encode_rows = slow\n"
  )
  text = config.read_text().replace("  return c\n", "  c.data.workers = 2\n  return c\n")
  (tmp_path / "workers.py").write_text(text)
  path = f"{tmp_path}{os.pathsep}{commands.ROOT}"
  (process,) = commands.begin(
    1,
    tmp_path / "workers.py",
    tmp_path / "run",
    before="import mlit_jax.data.cache as cache\ncache.ALONE = 0",  # workers for however few rows
    MARK=mark,
    PYTHONPATH=path,
  )
  wait_for(seen, process)
  assert len(marked(mark)) >= 2
  process.kill()
  process.wait()  # not for its pipes, which whoever is left would hold
  assert_gone(mark, shared)


def test_killed_in_training_nothing_is_left(config, undisturbed, tmp_path):
  mark, shared = uuid.uuid4().hex, set(os.listdir("/dev/shm"))
  (process,) = commands.begin(1, config, tmp_path / "run", MARK=mark)
  assert commands.wait_for_step(process, tmp_path / "run", 5)
  assert marked(mark)
  process.kill()
  process.wait()  # not for its pipes, which whoever is left would hold
  assert_gone(mark, shared)
  ((code, _, err),) = end(commands.begin(1, config, tmp_path / "run"))
  assert code == 0, err
  assert commands.final_digest(tmp_path / "run", STEPS) == undisturbed(1)
