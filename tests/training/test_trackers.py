"""Where events go besides metrics.jsonl: what TensorBoard reads back, and that no tracker can harm a run."""

import math
import subprocess
import sys
import types

import pytest

from mlit_jax.errors import UserError
from mlit_jax.training.trackers import check_trackers, open_trackers


def read_back(root) -> dict[str, list[tuple[int, float]]]:
  """{name: [(step, value)]} as TensorBoard shows it: a purge takes back what came before it at later steps."""
  from tensorboardX import record_writer  # noqa: F401  (that it is there)
  from tensorboardX.proto.event_pb2 import Event

  found: dict[str, dict[int, float]] = {}
  for path in sorted(root.glob("tensorboard/events*")):
    data, at = path.read_bytes(), 0
    while at < len(data):
      size = int.from_bytes(data[at : at + 8], "little")
      event = Event.FromString(data[at + 12 : at + 12 + size])
      at += 12 + size + 4
      if event.HasField("session_log") and event.session_log.status == 1:
        for by_step in found.values():
          for step in [s for s in by_step if s >= event.step]:
            del by_step[step]
      for value in event.summary.value:
        found.setdefault(value.tag, {})[event.step] = value.simple_value
  return {k: sorted(v.items()) for k, v in found.items()}


def opened(root, *names, first_step=0, said=None):
  said = [] if said is None else said
  return open_trackers(root, names, first_step=first_step, config={"a": 1}, say=said.append)


def test_tensorboard_has_every_number_and_a_restart_takes_back_what_was_lost(tmp_path):
  trackers = opened(tmp_path)
  for step in (1, 2, 3):
    trackers.log(
      step, {"train/loss": 3.0 - step, "eval/h/sw/chrf": None, "x": math.nan, "n": 2 * step}
    )
  trackers.close()
  trackers = opened(
    tmp_path, first_step=1
  )  # killed after step 3; the newest checkpoint was of step 1
  trackers.log(2, {"train/loss": 9.0})
  trackers.close()
  found = read_back(tmp_path)
  assert found["train/loss"] == [(1, 2.0), (2, 9.0)] and found["n"] == [(1, 2.0)]
  assert set(found) == {"train/loss", "n"}


def test_no_run_loads_torch_for_it(tmp_path):
  code = (
    "import sys, pathlib; from mlit_jax.training.trackers import open_trackers\n"
    f"t = open_trackers(pathlib.Path({str(tmp_path)!r}), (), first_step=0, config={{}}, say=print)\n"
    "t.log(1, {'x': 1.0}); t.close()\n"
    "assert 'torch' not in sys.modules, sys.modules['torch']"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
  assert read_back(tmp_path) == {"x": [(1, 1.0)]}


def fake(calls, fail=()):
  def act(name):
    def call(*args, **kwargs):
      calls.append((name, args, kwargs))
      if name in fail:
        raise ConnectionError("down")
      return types.SimpleNamespace(id="run7")

    return call

  return types.SimpleNamespace(
    **{name: act(name) for name in ("init", "log", "finish")}, __spec__=object()
  )


def test_wandb_gets_numbers_and_goes_on_with_the_same_run(tmp_path, monkeypatch):
  calls = []
  monkeypatch.setitem(sys.modules, "wandb", fake(calls))
  for _ in range(2):
    trackers = opened(tmp_path, "wandb")
    trackers.log(4, {"a": 1.5, "b": None})
    trackers.close()
  assert [name for name, _, _ in calls] == ["init", "log", "finish"] * 2
  assert calls[1][1:] == (({"a": 1.5},), {"step": 4})
  assert "id" not in calls[0][2] and calls[3][2]["id"] == "run7"
  assert calls[3][2]["resume"] == "allow" and calls[0][2]["config"] == {"a": 1}


@pytest.mark.parametrize("fails, left", [("init", []), ("log", ["init", "log"])])
def test_a_tracker_that_fails_is_left_alone_with_one_line(tmp_path, monkeypatch, fails, left):
  calls, said = [], []
  monkeypatch.setitem(sys.modules, "wandb", fake(calls, fail=(fails,)))
  trackers = opened(tmp_path, "wandb", said=said)
  for step in (1, 2):
    trackers.log(step, {"a": 1.0})
  trackers.close()
  assert len(said) == 1 and "wandb" in said[0] and "down" in said[0]
  assert [name for name, _, _ in calls] == (left or ["init"])
  assert read_back(tmp_path)["a"] == [(1, 1.0), (2, 1.0)]


def test_unknown_and_missing_ones_are_refused(monkeypatch):
  with pytest.raises(UserError, match="'mlflow'; known are wandb, trackio"):
    check_trackers(["mlflow"])
  monkeypatch.setitem(sys.modules, "trackio", None)
  monkeypatch.setattr("mlit_jax.training.trackers.find_spec", lambda name: None)
  with pytest.raises(UserError, match="trackio, which is not installed; pip install trackio"):
    check_trackers(["trackio"])
