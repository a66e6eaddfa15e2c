"""The command: exit codes, lines, the file, and that one fault does not hide the others."""

import json
import subprocess
import sys
import time

import pytest

from mlit_jax import cli, doctor, runtime
from mlit_jax.errors import UserError
from mlit_jax.examining import backends, devices, environment, host, packages, storage
from mlit_jax.examining.finding import examine, ok, wrong
from tests import commands

SUBJECTS = {
  host: ("encoding", "open_files", "shared_memory", "memory"),
  packages: ("python", "requirements", "jax_and_jaxlib", "optional"),
  storage: ("disk", "cache"),
  environment: ("proxies", "switches", "known_flags", "cluster"),
  devices: ("devices", "products"),
  backends: ("attention",),
}


@pytest.fixture
def healthy(monkeypatch):
  """Every examination finds that all is well; a test plants its fault."""
  for module, names in SUBJECTS.items():
    for name in names:
      monkeypatch.setattr(module, name, lambda *args, name=name: [ok(name, "well")])
  monkeypatch.setattr(runtime, "start", lambda **settings: None)
  monkeypatch.setattr(doctor._network(), "cluster", lambda: [ok("network", "well")])
  monkeypatch.setattr(environment, "without", lambda env, *names: dropped.append(names))
  dropped = []
  return dropped


def called(*args):
  return commands.here(doctor, *args)


def test_all_well_is_0_and_a_line_an_item(healthy, tmp_path):
  code, out, _ = called("--json", tmp_path / "found.json")
  lines = out.splitlines()
  assert code == 0 and lines[-1].startswith("0 wrong, 0 warnings, ")
  assert all(line.startswith("ok       ") for line in lines[:-1])
  found = json.loads((tmp_path / "found.json").read_text("utf-8"))
  assert len(found) == len(lines) - 1
  assert found[0] == {"state": "ok", "item": "python", "found": "well", "remedy": ""}


def test_a_warning_is_0_and_says_what_to_do(healthy, monkeypatch):
  monkeypatch.setattr(host, "open_files", lambda: host.check_open_files(1024, 1 << 20))
  code, out, _ = called()
  assert code == 0 and "warning  open files: 1,024 at most. ulimit -n 65536" in out.splitlines()
  assert out.splitlines()[-1].startswith("0 wrong, 1 warnings, ")


@pytest.mark.parametrize("module", SUBJECTS)
def test_a_crash_of_any_item_is_2_and_the_others_go_on(healthy, monkeypatch, module):
  def crash(*args):
    raise RuntimeError("boom")

  monkeypatch.setattr(module, SUBJECTS[module][-1], crash)
  code, out, _ = called()
  assert code == 2 and "RuntimeError: boom" in out
  assert "ok       network: well" in out.splitlines()


def test_without_devices_nothing_that_needs_them_is_tried(healthy, monkeypatch):
  monkeypatch.setattr(devices, "devices", lambda: [wrong("devices", "none", "get one")])
  code, out, _ = called()
  assert code == 2 and "attention" not in out and "wrong    devices: none. get one" in out


def test_half_a_cluster_is_examined_alone(healthy, monkeypatch):
  half = [wrong("cluster", "half", "Set all three.")]
  monkeypatch.setattr(environment, "cluster", lambda env: half)
  code, out, _ = called()
  assert code == 2 and (environment.ADDRESS, environment.AUTO) in healthy
  assert "ok       attention: well" in out.splitlines()


def test_a_cluster_that_does_not_meet_is_examined_alone(healthy, monkeypatch):
  monkeypatch.setenv(environment.AUTO, "auto")
  waited = []

  def nobody(seconds):
    waited.append(seconds)
    return [wrong("rendezvous", "nobody came", "Start them.")]

  monkeypatch.setattr(doctor._network(), "rehearse", nobody)
  code, out, _ = called("--wait", 7)
  assert code == 2 and waited == [7] and (environment.ADDRESS, environment.AUTO) in healthy
  assert "ok       attention: well" in out.splitlines()


def test_processes_are_started_when_asked_for(healthy, monkeypatch):
  network = doctor._network()
  monkeypatch.setattr(network, "on_this_host", lambda n: [wrong(f"{n} processes", "no", "x")])
  monkeypatch.setattr(network, "own_name", lambda: [])
  assert called()[0] == 0
  code, out, _ = called("--processes", 3)
  assert code == 2 and "wrong    3 processes: no. x" in out


def test_a_file_that_cannot_be_written_is_2(healthy):
  code, out, _ = called("--json", "/proc/no/such.json")
  assert code == 2 and "wrong    --json: /proc/no/such.json" in out


def test_without_jax_the_host_is_still_examined(tmp_path):
  program = (
    "import sys; sys.modules['jax'] = None; from mlit_jax import doctor; sys.exit(doctor.main())"
  )
  done = subprocess.run(
    [sys.executable, "-c", program, "--workdir", tmp_path],
    cwd=commands.ROOT,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 2 and done.stderr == ""
  assert "ok       rename: atomic" in done.stdout
  assert "wrong    start of JAX: ModuleNotFoundError" in done.stdout


def test_what_a_user_can_mend_is_said_without_its_type():
  def look():
    raise UserError("--config nope.py: no such file. Here are: mine.py.")

  (found,) = examine("model memory", look)
  assert found.line() == "wrong    model memory: --config nope.py: no such file. Here are: mine.py."


def test_it_is_a_verb():
  assert "doctor" in cli.VERBS


@pytest.mark.slow
def test_the_real_command_ends_within_a_minute_and_leaves_nothing(tmp_path):
  began = time.monotonic()
  workdir, config = tmp_path / "work", commands.ROOT / "configs" / "quickstart.py"
  workdir.mkdir()
  done = commands.start("doctor", "--workdir", workdir, "--config", config, "--processes", 2)
  code, out, err = commands.ended(done, timeout=120)
  assert code == 0, out + err
  for item in ("Python", "jaxlib", "disk speed", "locks", "attention xla_chunked", "2 processes"):
    assert any(line.startswith("ok") and f" {item}" in line for line in out.splitlines()), item
  assert list(workdir.iterdir()) == []
  assert time.monotonic() - began < 60
