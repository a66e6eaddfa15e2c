"""A run that hangs, or whose other processes do, ends by itself, says where, and goes on when it is run again."""

import itertools
import json
import re
import signal
import threading
import time

import pytest

from mlit_jax.watchdog import Limits, Watchdog
from tests import commands
from tests.few import few

# --- the thread alone


class Ended(Exception):
  pass


class Store:
  """What JAX's coordination service keeps, without it."""

  def __init__(self):
    self.texts = {}

  def of(self, process: int, count: int):
    return Channel(self, process, count)


class Channel:
  def __init__(self, store, process, count):
    self.store, self.process, self.count = store, process, count

  def put(self, folder, text):
    self.store.texts[folder, self.process] = text

  def all(self, folder):
    return {i: text for (name, i), text in list(self.store.texts.items()) if name == folder}


def watching(folder, limits: Limits, channel=None):
  """(a watchdog at work, what it ended with); the code is (exit code, reason), told once."""
  told = []

  def end(code, reason):
    told.append((code, reason))
    watchdog._ended.set()

  watchdog = Watchdog(limits, folder, end=end, channel=channel)
  return watchdog, told


def until(condition, seconds=10):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "did not come to be"
    time.sleep(0.05)


def test_who_beats_lives_and_who_does_not_is_named(tmp_path, capfd):
  watchdog, told = watching(tmp_path, Limits(step=1.5, other=600, peer=0))
  with watchdog:
    watchdog.at(29)
    watchdog.at(30)
    for _ in range(8):
      time.sleep(0.5)
      watchdog.beat("step")
    assert not told
    watchdog.beat("data_wait")
    until(lambda: told)
  ((code, reason),) = told
  assert code == 1
  assert re.fullmatch(r"process 0 has not finished step 31 for 2 s; it waits in data_wait", reason)
  written = (tmp_path / "stacks-0.txt").read_text()
  assert written.startswith(reason) and "in until" in written  # where this test's thread is
  err = capfd.readouterr().err
  assert f"error: {reason}" in err and str(tmp_path / "stacks-0.txt") in err and "in until" in err


@pytest.mark.parametrize("kind", few(1, ["saving", "evaluation", "data", "starting"]))
def test_what_is_no_step_may_take_longer(tmp_path, kind):
  watchdog, told = watching(tmp_path, Limits(step=0.6, other=2.5, peer=0))
  with watchdog:
    watchdog.at(0)
    watchdog.at(1)
    watchdog.beat(kind)
    time.sleep(1.8)
    assert not told
    until(lambda: told)
  assert told[0][1].endswith(f"waits in {kind}")


def test_the_first_step_may_take_longer(tmp_path):
  watchdog, told = watching(tmp_path, Limits(step=0.6, other=600, peer=0))
  with watchdog:
    watchdog.at(70)  # where the run went on
    watchdog.beat("step")
    time.sleep(1.8)
    assert not told


def test_without_limits_nothing_ends(tmp_path):
  watchdog, told = watching(tmp_path, Limits(0, 0, 0), Store().of(0, 2))
  with watchdog:
    watchdog.at(1)
    watchdog.at(2)
    time.sleep(1.5)
  assert not told and not list(tmp_path.iterdir())


def test_a_process_waits_for_another_that_gets_on(tmp_path):
  """As while the first one tokenises; once that one hangs too, it is named."""
  store = Store()
  watchdog, told = watching(tmp_path, Limits(1.5, 1.5, 600), store.of(1, 2))
  numbers, busy = itertools.count(), threading.Event()

  def first():
    beats = 0
    while not told:
      beats += not busy.is_set()
      store.of(0, 2).put("life", json.dumps([next(numbers), beats, None, "data"]))
      time.sleep(0.2)

  watchdog.peers.every = 0.2
  threading.Thread(target=first, daemon=True).start()
  with watchdog:
    watchdog.beat("step")
    time.sleep(4)
    assert not told
    busy.set()
    until(lambda: told)
  assert "process 1 has not got on for" in told[0][1]
  assert re.search(
    r"process 0 was last heard of [01] s ago, before the first step, in data", told[0][1]
  ), told


def test_a_process_that_falls_silent_is_named_and_one_that_is_done_is_not(tmp_path):
  store = Store()
  watchdog, told = watching(tmp_path, Limits(0, 0, 2), store.of(0, 3))
  store.of(1, 3).put("life", json.dumps([5, 40, 12, "step"]))
  store.of(2, 3).put("life", json.dumps([9, 44, 30, "done"]))
  with watchdog:
    until(lambda: told)
  ((code, reason),) = told
  assert code == 1
  assert re.fullmatch(
    r"process 1 was last heard of \d s ago, with 12 steps done, in step", reason
  ), reason


def test_where_the_first_process_does_not_answer_it_is_named(tmp_path):
  class Hung(Channel):
    def all(self, folder):
      threading.Event().wait()

  watchdog, told = watching(tmp_path, Limits(0, 0, 1), Hung(Store(), 1, 2))
  with watchdog:
    until(lambda: told)
  assert "process 0, which keeps the run together, has not answered for" in told[0][1]


def test_who_leaves_is_followed_with_the_same_code(tmp_path, capfd):
  store = Store()
  watchdog, told = watching(tmp_path, Limits(0, 0, 0), store.of(0, 2))
  with watchdog:
    store.of(1, 2).put("left", json.dumps([2, "cannot go on: no rows"]))
    until(lambda: told)
  assert told[0][0] == 2
  assert capfd.readouterr().err == "process 1 cannot go on: no rows\n"


@pytest.mark.parametrize(
  "reason, said",
  [
    ("process 1 has not finished step 15 for 12 s", "process 1 has not finished step 15 for 12 s"),
    ("process 2 was last heard of 9 s ago", "process 1 says that process 2 was last heard of 9 s ago"),
  ],
)  # fmt: skip
def test_who_is_followed_is_named_once(tmp_path, capfd, reason, said):
  store = Store()
  watchdog, told = watching(tmp_path, Limits(0, 0, 0), store.of(0, 2))
  with watchdog:
    store.of(1, 2).put("left", json.dumps([1, reason]))
    until(lambda: told)
  assert told == [(1, "has followed process 1")]
  assert capfd.readouterr().err == f"{said}\n"
  assert f": {said}\n" in (tmp_path / "stacks-0.txt").read_text()


# --- whole runs

STEPS = 60
LINES = (
  "c.epochs = 0",
  f"c.steps = {STEPS}",
  "c.eval.sets = {}",
  "c.eval.every_steps = 0",
  "c.checkpoint.every_steps = 8",
  "c.watchdog.step_seconds = 12",
  "c.watchdog.peer_seconds = 5",
)
# The loader stops once, at step 14, the first time that the run is begun.
BLOCKED = """
import pathlib, threading
import mlit_jax.job as job
load = job.load_batches
def blocked(encoded, plan, first, rows):
  for step, batch in enumerate(load(encoded, plan, first, rows), first):
    if step == 14 and {when}:
      waits_for_a_disk_that_never_answers()
    yield batch
def waits_for_a_disk_that_never_answers():
  threading.Event().wait()
job.load_batches = blocked
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  return commands.write_config(tmp_path_factory.mktemp("config"), *LINES)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
  return commands.undisturbed_runs(config, tmp_path_factory, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_loader_that_blocks(config, undisturbed, tmp_path, processes):
  workdir = tmp_path / "run"
  when = "__import__('os').environ.get('JAX_PROCESS_ID', '1') == '1'"
  running = commands.begin(processes, config, workdir, before=BLOCKED.format(when=when))
  assert commands.wait_for_step(running[0], workdir, 13)
  began = time.monotonic()
  ends = [commands.ended(p, timeout=60) for p in running]
  assert 10 < time.monotonic() - began < 30
  assert [code for code, *_ in ends] == [1] * processes, ends
  mine = processes - 1
  stacks = (workdir / f"stacks-{mine}.txt").read_text()
  assert re.match(
    rf"process {mine} has not finished step 14 for \d+ s; it waits in data_wait", stacks
  )
  assert "waits_for_a_disk_that_never_answers" in stacks
  # Either may tell first, by its own error; the other follows, and repeats it. Both say who waits for data.
  assert any("error: process " in err for *_, err in ends)
  named = rf"process {mine} (has not finished step 14 .* waits|was last heard of .* 13 steps done,) in data_wait"
  assert all(re.search(named, err) for *_, err in ends), ends
  assert commands.ended_digest(processes, config, workdir, STEPS) == undisturbed(processes)


@pytest.mark.slow
@pytest.mark.parametrize("processes, victim", [(2, 1), (2, 0), (4, 2)])
def test_a_process_that_is_stopped(config, undisturbed, tmp_path, processes, victim):
  """As on a host that hangs: the others are gone within the limit, and it too once it is back."""
  workdir = tmp_path / "run"
  running = commands.begin(processes, config, workdir)
  assert commands.wait_for_step(running[0], workdir, 18)
  running[victim].send_signal(signal.SIGSTOP)
  began = time.monotonic()
  others = [p for i, p in enumerate(running) if i != victim]
  try:
    ends = [commands.ended(p, timeout=60) for p in others]
  finally:
    running[victim].send_signal(signal.SIGCONT)
  assert time.monotonic() - began < 20
  resumed = time.monotonic()
  (mine,) = [commands.ended(running[victim], timeout=60)]
  assert time.monotonic() - resumed < 20
  assert all(code not in (0, 2, 75) for code, *_ in [*ends, mine]), [ends, mine]
  said = "".join(err for *_, err in ends)
  word = "has not answered for" if victim == 0 else "was last heard of"
  assert re.search(rf"error: process {victim}\b.* {word}", said), said
  assert list(workdir.glob("stacks-*.txt"))
  assert commands.ended_digest(processes, config, workdir, STEPS) == undisturbed(processes)


@pytest.mark.slow
@pytest.mark.parametrize("processes, victim", [(2, 1), (2, 0), (4, 2)])
def test_a_process_that_is_killed(config, undisturbed, tmp_path, processes, victim):
  workdir = tmp_path / "run"
  running = commands.begin(processes, config, workdir)
  assert commands.wait_for_step(running[0], workdir, 18)
  running[victim].kill()
  began = time.monotonic()
  ends = [commands.ended(p, timeout=60) for i, p in enumerate(running) if i != victim]
  assert time.monotonic() - began < 15
  assert all(code not in (0, 2, 75) for code, *_ in ends), ends
  if victim:  # with the first one JAX's own service goes, and JAX aborts
    # The network says so at once where all are within a step; else, as in a save, the watchdog misses the process.
    words = rf"has lost another process|has failed|process {victim} was last heard of"
    assert all(re.search(words, err) for *_, err in ends), [err for *_, err in ends]
  assert commands.ended_digest(processes, config, workdir, STEPS) == undisturbed(processes)


@pytest.mark.slow
def test_ctrl_z_is_no_hang(config, tmp_path):
  """The clock of the watchdog stands still with the process."""
  workdir = tmp_path / "run"
  (process,) = commands.begin(1, config, workdir)
  assert commands.wait_for_step(process, workdir, 18)
  process.send_signal(signal.SIGSTOP)
  time.sleep(16)
  process.send_signal(signal.SIGCONT)
  commands.finish([process])
