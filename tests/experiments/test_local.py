"""Tasks on this machine: some at a time, failures named, nothing left behind by a kill."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from unittest import mock

import pytest

from mlit_jax.experiments import local
from mlit_jax.experiments.tasks import Task


def task(name, code, *, chain="", done="nowhere"):
  """A task that is a line of Python."""
  return Task(name, name, "answer", chain, [textwrap.dedent(code)], str(done))


@pytest.fixture(autouse=True)
def python(monkeypatch):
  monkeypatch.setattr(local, "command", lambda t: [sys.executable, "-c", t.argv[0]])


def run(tasks, tmp_path, **options):
  said = []
  outcome = local.run_tasks(tasks, tmp_path / "logs", say=said.append, **{"jobs": 1} | options)
  return outcome, said


def test_a_failure_stops_its_chain_alone(tmp_path):
  """Exit code and log of the failed one are named; its chain waits, the others and the judging go on."""
  out = tmp_path / "out"
  tasks = [
    task("a.train", "print('error: x is 1\\nto the log'); raise SystemExit(2)", chain="a"),
    task("a.answer", f"open({str(out)!r}, 'a').write('a')", chain="a"),
    task("b.train", f"open({str(out)!r}, 'a').write('b')", chain="b"),
    task("judge", f"open({str(out)!r}, 'a').write('j')"),
  ]
  outcome, said = run(tasks, tmp_path)
  assert out.read_text() == "bj"
  assert (outcome.done, outcome.failed, outcome.left) == (2, {"a.train": 2}, ["a.answer"])
  log = tmp_path / "logs" / "a.train.log"
  assert log.read_text() == "error: x is 1\nto the log\n"
  assert outcome.errors == {"a.train": ": x is 1"}
  assert any(line.endswith(f"see {log}: x is 1") for line in said)
  assert any("exit code 2" in line and str(log) in line for line in said)


def test_what_is_done_is_not_done_again(tmp_path):
  out = tmp_path / "out"
  tasks = [task("a", f"open({str(out)!r}, 'a').write('x')", chain="a", done=out)]
  assert run(tasks, tmp_path)[0].done == 1
  outcome, _ = run(tasks, tmp_path)
  assert (outcome.done, outcome.skipped) == (0, 1) and out.read_text() == "x"


def test_so_many_at_a_time_and_judging_after_all(tmp_path):
  """Each task writes when it began and ended."""
  code = "import time, sys; a = time.time(); time.sleep(0.5); open({!r}, 'w').write(f'{{a}} {{time.time()}}')"
  files = [tmp_path / name for name in ("a", "b", "c", "judge")]
  tasks = [task(f.name, code.format(str(f)), chain="" if f.name == "judge" else f.name) for f in files]  # fmt: skip
  run(tasks, tmp_path, jobs=2)
  a, b, c, judge = ([float(x) for x in f.read_text().split()] for f in files)
  assert a[0] < b[1] and b[0] < a[1]  # side by side
  assert c[0] >= min(a[1], b[1]) and judge[0] >= max(a[1], b[1], c[1])


def test_each_job_has_its_devices(tmp_path):
  code = (
    "import os, time; time.sleep(0.3); open({!r}, 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])"
  )
  files = [tmp_path / name for name in "ab"]
  tasks = [task(f.name, code.format(str(f)), chain=f.name) for f in files]
  run(tasks, tmp_path, jobs=2, devices=["0,1", "2,3"])
  assert sorted(f.read_text() for f in files) == ["0,1", "2,3"]


def test_a_signal_is_passed_on_and_what_is_left_is_not_begun(tmp_path):
  began = tmp_path / "began"
  code = """
    import signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    open({!r}, 'w').close()
    time.sleep(60)
  """
  tasks = [
    task("a", code.format(str(began)), chain="a"),
    task("b", "raise SystemExit(3)", chain="b"),
  ]

  def send():
    while not began.exists():
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=send, daemon=True).start()
  started = time.monotonic()
  outcome, said = run(tasks, tmp_path)
  assert outcome.stopped and not outcome.failed and time.monotonic() - started < 30
  assert "SIGTERM" in said[-1]
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as before


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_a_killed_sweep_leaves_no_run_behind(tmp_path):
  """child.py: the command ends when its parent is killed, however."""
  verb = tmp_path / "mlit_jax_stub.py"
  pid_file = tmp_path / "pid"
  verb.write_text(
    f"import os, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
  )
  parent = f"""
    import os, subprocess, sys
    from unittest import mock
    import runpy
    code = "import runpy, sys; from mlit_jax.experiments import child; run = runpy.run_module; "
    code += "runpy.run_module = lambda name, **k: runpy.run_path({str(verb)!r}); sys.argv = ['child', {{}}, 'x']; child.main()"
    subprocess.Popen([sys.executable, '-c', code.replace('{{}}', repr(str(os.getpid())))]).wait()
  """
  process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(parent)])
  deadline = time.monotonic() + 60
  while not (pid_file.exists() and pid_file.read_text()):
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.05)
  child = int(pid_file.read_text())
  os.kill(child, 0)  # it lives
  process.kill()
  process.wait()
  while time.monotonic() < deadline:
    try:
      os.kill(child, 0)
    except ProcessLookupError:
      return
    time.sleep(0.05)
  os.kill(child, signal.SIGKILL)
  raise AssertionError("the run outlived its sweep")


def test_a_parent_that_is_gone_already(tmp_path):
  from mlit_jax.experiments import child

  with mock.patch.object(sys, "argv", ["child", "1", "train"]):
    process = subprocess.run(
      [sys.executable, "-m", child.__name__, "999999", "train", "--help"], capture_output=True, text=True
    )  # fmt: skip
  assert process.returncode == -signal.SIGKILL and not process.stdout
