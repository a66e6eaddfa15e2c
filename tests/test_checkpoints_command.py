"""`python -m mlit_jax.checkpoints` on small folders that look like a run."""

import json
import shutil

import pytest

from mlit_jax import checkpoints as command
from mlit_jax import runtime
from mlit_jax.training.checkpoint import Checkpoints
from tests import commands
from tests.training.test_checkpoint import save_all

METRICS = {1: 1.0, 2: 0.5, 3: None, 4: 2.0}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  root = tmp_path_factory.mktemp("saved") / "run"
  with Checkpoints(root / "checkpoints", keep_latest=9) as checkpoints:
    save_all(checkpoints, METRICS)
  config = {
    "eval": {"sets": {"heldout": {}}},
    "checkpoint": {"best": "", "keep_latest": 2, "keep_best": 1},
  }
  (root / "config.json").write_text(json.dumps({"config": config}))
  return root


@pytest.fixture
def root(saved, tmp_path):
  shutil.copytree(saved, tmp_path / "run")
  return tmp_path / "run"


def steps(root):
  return sorted(int(p.name) for p in (root / "checkpoints").iterdir())


def break_meta(root, step):
  file = root / "checkpoints" / str(step) / "meta" / "metadata"
  file.write_text(file.read_text().replace('"sw": ', '"sw": 1'))


def break_arrays(folder):
  """One bit of every file of arrays: of two with the same content Orbax reads but one."""
  for path in [p for p in folder.rglob("*") if p.parent.name == "d"]:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def call(action, root, *args):
  return commands.here(command, action, root, *args)


def test_list(root):
  break_meta(root, 1)
  file = root / "checkpoints" / "3" / "meta" / "metadata"
  old = json.loads(file.read_text())
  file.write_text(
    json.dumps({k: v for k, v in old.items() if k not in ("digest", "seal", "sealed")})
  )
  (root / "quarantine" / "5-1").mkdir(parents=True)
  before = commands.contents(root)
  code, out, err = call("list", root)
  assert code == 0 and not err
  head, *lines, aside = out.splitlines()
  assert head.split() == ["step", "size", "metric", "saved", "state"]
  assert [line.split()[0] for line in lines] == ["1", "2", "3", "4"]
  assert "damaged: step 1" in lines[0] and lines[0].split()[3] == "-"
  assert lines[1].split()[3] == "0.5" and lines[1].endswith("with a digest, best")
  assert lines[2].endswith("no digest: cannot be verified")
  assert lines[3].split()[3] == "2" and lines[3].endswith("with a digest, latest")
  assert all(" kB " in line for line in lines) and aside.endswith("quarantine/5-1")
  assert commands.contents(root) == before


def test_verify(root):
  code, out, err = call("verify", root)
  assert code == 0 and out.count("35 arrays are as they were saved") == 4, out + err
  break_meta(root, 1)
  break_arrays(root / "checkpoints" / "2" / "optimizer")
  before = commands.contents(root)
  code, out, err = call("verify", root)
  assert code == 2 and err.count("\n") == 1 and "2 of 4 steps" in err and ": 1, 2." in err
  assert "step 1: DAMAGED" in out and "step 2: DAMAGED" in out and out.count("as they were") == 2
  assert call("verify", root, "--step", "latest")[0] == 0
  assert call("verify", root, "--step", "2")[0] == 2
  assert commands.contents(root) == before


def test_prune(root):
  code, out, _ = call("prune", root, "--yes")  # as the run itself keeps: 2 latest, 1 best
  assert code == 0 and out.startswith("deleted steps 1 (") and steps(root) == [2, 3, 4]
  assert call("prune", root, "--yes")[1] == "nothing to delete: 3 steps, all kept\n"
  code, _, _ = call("prune", root, "--keep_latest", "1", "--keep_best", "0", "--yes")
  assert code == 0 and steps(root) == [4]


@pytest.mark.parametrize("answer, left", [("y", [2, 4]), ("n", [1, 2, 3, 4]), ("", [1, 2, 3, 4])])
def test_prune_asks(root, monkeypatch, answer, left):
  asked = []
  monkeypatch.setattr("builtins.input", lambda q: (asked.append(q), answer)[1])
  assert call("prune", root, "--keep_latest", "1")[0] == 0
  assert steps(root) == left and "delete steps 1, 3 (" in asked[0] and "keep 2, 4?" in asked[0]


def test_prune_with_nobody_to_ask(root, monkeypatch):
  def nobody(question):
    raise EOFError

  monkeypatch.setattr("builtins.input", nobody)
  code, _, err = call("prune", root, "--keep_latest", "1")
  assert code == 2 and "--yes" in err and steps(root) == [1, 2, 3, 4]


def test_prune_leaves_a_run_at_work_alone(root):
  with runtime.locked(root):
    code, _, err = call("prune", root, "--yes")
  assert code == 2 and "in use" in err and steps(root) == [1, 2, 3, 4]


def test_prune_never_deletes_all(root):
  code, _, err = call("prune", root, "--keep_latest", "0", "--keep_best", "0", "--yes")
  assert code == 2 and "keep nothing" in err and steps(root) == [1, 2, 3, 4]
  for step in (1, 2, 4):
    shutil.rmtree(root / "checkpoints" / str(step))
  code, _, err = call("prune", root, "--keep_latest", "0", "--keep_best", "1", "--yes")
  assert code == 2 and "no step has a metric" in err and steps(root) == [3]


def test_copy(root, tmp_path):
  out = tmp_path / "copies"
  code, said, err = call("copy", root, "--step", "best", "--out", out)
  assert code == 0 and "2: 35 arrays are as they were saved" in said, err
  assert (
    f"with config.json of {root} and this folder as DIR/checkpoints/2; then --model DIR@2" in said
  )
  assert commands.contents(out / "2") == commands.contents(root / "checkpoints" / "2")
  code, _, err = call("copy", root, "--step", "best", "--out", out)
  assert code == 2 and "there already" in err
  break_arrays(root / "checkpoints" / "4" / "params")
  code, _, err = call("copy", root, "--out", out)
  assert code == 2 and "error: " in err
  assert [p.name for p in out.iterdir()] == ["2"]  # a damaged copy never gets its name
  assert call("copy", root)[0] == 2


def test_a_folder_that_is_no_workdir(tmp_path):
  for action in ("list", "verify", "prune", "copy"):
    code, _, err = call(action, tmp_path, "--out", tmp_path / "x")
    assert code == 2 and "is missing; is" in err


def test_help_has_examples():
  code, out, _ = commands.here(command, "--help")
  assert code == 0 and "checkpoints prune  runs/quickstart --keep_latest 1" in out
