"""Damage, full disks and vanished folders: what is used, what is said, and that nothing is lost by it."""

import contextlib
import errno
import json
import os
import random
import shutil
import time

import pytest

from mlit_jax import checksums, runtime
from mlit_jax.errors import UserError
from mlit_jax.training import safety
from mlit_jax.training.checkpoint import Checkpoints, abstract_like, read_metrics, retained
from mlit_jax.training.digest import digests
from mlit_jax.training.events import Events
from tests import commands
from tests.damage import damage
from tests.training.test_checkpoint import bits, make_state, meta, save_all, shapes, shardings_on

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax


def abstract(*sizes):
  return abstract_like(shapes(), shardings_on(*(sizes or (1, 1, 1))))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Steps 1 and 2; not to be written to."""
  root = tmp_path_factory.mktemp("saved")
  with Checkpoints(root / "checkpoints", keep_latest=5) as checkpoints:
    save_all(checkpoints, {1: 1.5, 2: 2.5})
  return root


@pytest.fixture
def copy(saved, tmp_path):
  shutil.copytree(saved, tmp_path / "run")
  return tmp_path / "run"


def files_of(step_folder):
  return sorted(p for p in step_folder.rglob("*") if p.is_file())


def newest(root):
  """(step, state, meta, warnings) of what a run would go on from."""
  warnings = []
  with Checkpoints(root / "checkpoints", keep_latest=5, warn=warnings.append) as checkpoints:
    return *checkpoints.restore_newest(abstract()), warnings


# --------------------------------------------------------------------------------------- damage


def assert_found_or_harmless(root, whole: dict) -> bool:
  """The bits of a step that was saved come back: of step 2 if it was found whole, else of step 1."""
  step, state, found, warnings = newest(root)
  assert bits(state) == whole[step][0] and found == whole[step][1]
  aside = root / "quarantine" / "2-1"
  assert aside.is_dir() == (step == 1) == bool(warnings)
  if step == 1:
    reason = json.loads((aside / "reason.json").read_text())
    assert reason["step"] == 2 and reason["reason"]
    assert "step 2 is damaged" in warnings[0] and "step 1 is used" in warnings[0]
    assert len(warnings) == 1
  return step == 1


def whole(root) -> dict:
  with Checkpoints(root / "checkpoints", read_only=True) as checkpoints:
    out = {step: checkpoints.restore(step, abstract()) for step in (1, 2)}
  return {step: (bits(state), found) for step, (state, found) in out.items()}


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_in_the_arrays_is_found(copy, seed):
  rng, expected = random.Random(seed), whole(copy)
  files = [p for p in files_of(copy / "checkpoints" / "2") if p.parent.name == "d"]
  # The largest hold the arrays themselves; Orbax restores 24 of 25 such flips without a word.
  damage(max(files, key=lambda p: (p.stat().st_size, str(p))), "bit", rng)
  assert_found_or_harmless(copy, expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bit", "cut", "empty", "missing"])
def test_damage_to_any_file_is_found_or_harmless(saved, tmp_path, kind):
  rng, expected, found = random.Random(f"damage {kind}"), whole(saved), {}
  names = [p.relative_to(saved) for p in files_of(saved / "checkpoints" / "2")]
  for name in names:
    for attempt in range(4 if kind in ("bit", "cut") else 1):
      root = tmp_path / f"{len(found)}"
      shutil.copytree(saved, root)
      if damage(root / name, kind, rng):
        found[name, attempt] = assert_found_or_harmless(root, expected)
      shutil.rmtree(root)
  print(f"{kind}: {sum(found.values())} of {len(found)} found, the others harmless")
  assert sum(found.values()) >= len(found) / 8


@pytest.mark.parametrize("what", ["item", "step", "json"])
def test_a_step_of_which_much_is_missing(copy, what):
  """As a kill leaves one that was being deleted; an empty folder with a number for a name."""
  expected, two = whole(copy), copy / "checkpoints" / "2"
  if what == "json":
    (two / "meta" / "metadata").write_text("{}")
  else:
    shutil.rmtree(two / "optimizer" if what == "item" else two)
    two.mkdir(exist_ok=True)
  assert assert_found_or_harmless(copy, expected)


@pytest.mark.parametrize(
  "was, now", [('"step": 2', '"step": 3'), ('"sw": 6', '"sw": 7'), ('"digest"', '"digesu"'), ('"seal"', '"seam"')]
)  # fmt: skip
def test_a_change_in_the_json_is_found(copy, was, now):
  file = copy / "checkpoints" / "2" / "meta" / "metadata"
  text = file.read_text()
  assert was in text
  file.write_text(text.replace(was, now))
  assert newest(copy)[0] == 1


def test_the_array_that_differs_is_named(copy):
  """Written anew by Orbax itself, so that only the digest can tell."""
  state = make_state(2)
  other = state.params | {"embed": {"table_VD": state.params["embed"]["table_VD"].at[3, 4].add(1)}}
  kept = json.loads((copy / "checkpoints/2/meta/metadata").read_text())
  shutil.rmtree(copy / "checkpoints" / "2")
  with Checkpoints(copy / "checkpoints", keep_latest=5) as checkpoints:
    checkpoints.save(state._replace(params=other), meta(2), 2.5)
    checkpoints.wait()
    (copy / "checkpoints/2/meta/metadata").write_text(json.dumps(kept))
    with pytest.raises(safety.Damaged, match=r"/2 is not as it was saved: params/embed/table_VD has other values"):  # fmt: skip
      checkpoints.restore(2, abstract())
    with pytest.raises(safety.Damaged, match="params/embed/table_VD has other values"):
      checkpoints.restore_params(2, abstract().params)
  assert (copy / "checkpoints" / "2").is_dir()  # named by a user: nothing is moved


def test_exchanged_arrays_are_found(copy):
  state = make_state(2)
  mlp = state.params["blocks"]["mlp"]
  mlp = mlp | {"gate_DF": mlp["up_DF"], "up_DF": mlp["gate_DF"]}
  exchanged = state._replace(
    params=state.params | {"blocks": state.params["blocks"] | {"mlp": mlp}}
  )
  assert digests(exchanged._asdict()) != digests(state._asdict())


def test_where_all_are_damaged_none_is_touched(copy):
  for step in (1, 2):
    (copy / "checkpoints" / str(step) / "meta" / "metadata").write_text("{")
  before = commands.contents(copy)
  for _ in range(2):
    with pytest.raises(UserError, match="none was touched.*step 2.*step 1"):
      newest(copy)
  assert commands.contents(copy) == before and not (copy / "quarantine").exists()


def test_a_second_damaged_step_of_the_same_number_gets_a_name_of_its_own(copy):
  for n in (1, 2):
    (copy / "checkpoints" / "2" / "meta" / "metadata").write_text("")
    newest(copy)
    assert (copy / "quarantine" / f"2-{n}" / "params").is_dir()
    shutil.copytree(copy / "checkpoints" / "1", copy / "checkpoints" / "2")


def test_the_number_that_was_damaged_can_be_saved_again(copy):
  """Orbax skips a step that is not above its latest: damage left in place would stop all saving."""
  (copy / "checkpoints" / "2" / "params" / "_METADATA").write_bytes(b"")
  assert newest(copy)[0] == 1
  with Checkpoints(copy / "checkpoints", keep_latest=5) as checkpoints:
    save_all(checkpoints, {2: None})
  assert newest(copy)[0] == 2


def test_what_failed_once_is_read_again(copy, monkeypatch):
  real, calls = checksums.read_sealed, []

  def once(path):
    calls.append(path)
    if len(calls) == 1:
      raise OSError(errno.EIO, "Input/output error")
    return real(path)

  with Checkpoints(copy / "checkpoints", read_only=True) as checkpoints:
    monkeypatch.setattr(checksums, "read_sealed", once)
    assert checkpoints.restore_newest(abstract())[0] == 2


def test_a_checkpoint_from_before_there_were_digests(copy):
  file, said = copy / "checkpoints" / "2" / "meta" / "metadata", []
  old = json.loads(file.read_text())
  file.write_text(
    json.dumps({k: v for k, v in old.items() if k not in ("digest", "seal", "sealed")})
  )
  with Checkpoints(copy / "checkpoints", say=said.append) as checkpoints:
    step, state, found = checkpoints.restore_newest(abstract())
    checkpoints.add_metric(2, 0.5)
  assert (step, bits(state), found) == (2, bits(make_state(2)), meta(2) | {"metric": 2.5})
  assert said == ["step 2 was saved without a digest: it is not verified"]
  assert json.loads(file.read_text())["metric"] == 0.5  # and no seal that nobody can vouch for
  assert "seal" not in json.loads(file.read_text())


def test_a_metric_added_later_is_under_the_seal(copy):
  with Checkpoints(copy / "checkpoints") as checkpoints:
    checkpoints.add_metric(2, 0.5)
  assert newest(copy)[2]["metric"] == 0.5 and read_metrics(copy / "checkpoints") == {1: 1.5, 2: 0.5}


# ----------------------------------------------------------------------------------- not saved


class Alarms(list):
  def __call__(self, step, text):
    self.append((step, text))


def full(*_, **__):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def poll_until(told: list, checkpoints):
  end = time.monotonic() + 60
  while not told and time.monotonic() < end:
    checkpoints.poll()
  assert told


def assert_goes_on(checkpoints, alarms, monkeypatch):
  """Step 2 has failed: said with the last good one; nothing of it is left, and step 3 is saved."""
  ((step, text),) = alarms
  assert step == 2 and "step 2 is not saved" in text and "last good one is step 1" in text, text
  left = [p.name for p in checkpoints.folder.iterdir()]
  assert left == ["1"]
  restored, _ = checkpoints.restore(1, abstract())
  assert bits(restored) == bits(make_state(1))
  monkeypatch.undo()
  save_all(checkpoints, {3: None})
  assert checkpoints.steps()[-1] == 3 and len(alarms) == 1
  assert bits(checkpoints.restore(3, abstract())[0]) == bits(make_state(3))


@pytest.mark.parametrize("where", ["begin", "thread", "commit"])
def test_a_write_that_fails(tmp_path, monkeypatch, where):
  alarms, said = Alarms(), []
  with Checkpoints(tmp_path / "c", keep_latest=1, alarm=alarms, say=said.append) as checkpoints:
    save_all(checkpoints, {1: None})
    assert len(said) == 1 and said[0].startswith("step 1 is durable")
    if where == "begin":
      monkeypatch.setattr(checkpoints.writer, "save", full)
    elif where == "thread":
      monkeypatch.setattr(checkpoints.writer.handler, "finalize", full)
    else:
      monkeypatch.setattr(safety, "make_durable", full)
    checkpoints.save(make_state(2), meta(2), None)
    assert len(said) == 1
    if where == "commit":
      checkpoints.wait()
      assert "step 2 is not saved" in alarms[0][1] and len(said) == 1
      assert checkpoints.steps() == [
        1,
        2,
      ]  # the one before is not deleted for one that may not last
      return
    poll_until(alarms, checkpoints)  # at once, not when the next step is saved
    assert "No space left on device" in alarms[0][1] and len(said) == 1
    assert_goes_on(checkpoints, alarms, monkeypatch)


def test_a_write_that_fails_on_another_process_than_the_first_is_said_there(
  tmp_path, monkeypatch, capfd
):
  alarms = Alarms()
  with Checkpoints(tmp_path, alarm=alarms) as checkpoints:
    save_all(checkpoints, {1: None})
    monkeypatch.setattr(checkpoints.writer.handler, "finalize", full)
    checkpoints.save(make_state(2), meta(2), None)
    monkeypatch.setattr(runtime, "is_main", lambda: False)
    poll_until(alarms, checkpoints)
  assert "step 2 is not saved" in alarms[0][1] and "No space left on device" in alarms[0][1]
  assert f"warning: process 0: {alarms[0][1]}\n" in capfd.readouterr().err


def test_what_all_processes_know_is_said_by_the_first_alone(tmp_path, monkeypatch, capfd):
  alarms = Alarms()
  with Checkpoints(tmp_path, alarm=alarms) as checkpoints:
    monkeypatch.setattr(safety, "check_can_save", full)
    monkeypatch.setattr(runtime, "is_main", lambda: False)
    checkpoints.save(make_state(1), meta(1), None)
  assert len(alarms) == 1 and "warning" not in capfd.readouterr().err


def test_durable_is_said_when_it_is_written_and_not_before(tmp_path, monkeypatch):
  import threading

  may_end, said = threading.Event(), []
  with Checkpoints(tmp_path, say=said.append) as checkpoints:
    real = checkpoints.writer.handler.finalize
    monkeypatch.setattr(
      checkpoints.writer.handler, "finalize", lambda *a, **k: (may_end.wait(60), real(*a, **k))[1]
    )
    checkpoints.save(make_state(1), meta(1), None)
    for _ in range(20):
      checkpoints.poll()
    assert said == [] and checkpoints.steps() == []
    may_end.set()
    poll_until(said, checkpoints)
    assert checkpoints.steps() == [1]
    checkpoints.poll()
    checkpoints.wait()
  assert len(said) == 1


def test_too_little_room_is_seen_before_anything_is_written(tmp_path, monkeypatch):
  alarms = Alarms()
  with Checkpoints(tmp_path, alarm=alarms) as checkpoints:
    save_all(checkpoints, {1: None})
    size = safety.size_of(tmp_path / "1")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda p: usage._replace(free=size))
    monkeypatch.setattr(checkpoints.writer, "save", lambda *a, **k: pytest.fail("was begun"))
    checkpoints.save(make_state(2), meta(2), None)
    assert "kB free, a step takes" in alarms[0][1] and "keep_latest" in alarms[0][1]
    assert_goes_on(checkpoints, alarms, monkeypatch)


def test_a_folder_that_is_gone_is_not_made_anew_and_used_when_it_is_back(tmp_path, monkeypatch):
  alarms, folder = Alarms(), tmp_path / "c"
  with Checkpoints(folder, alarm=alarms) as checkpoints:
    save_all(checkpoints, {1: None})
    folder.rename(tmp_path / "unmounted")
    checkpoints.save(make_state(2), meta(2), None)
    assert not folder.exists() and "is gone" in alarms[0][1] and "no step" in alarms[0][1]
    (tmp_path / "unmounted").rename(folder)
    save_all(checkpoints, {3: None})
    assert checkpoints.steps() == [3] and len(alarms) == 1


def test_a_folder_that_goes_while_it_is_written(tmp_path, monkeypatch):
  """A file stands in its place: otherwise threads of the save may make it again, and the step would be whole."""
  alarms, folder = Alarms(), tmp_path / "c"

  def unmount():
    for n in range(1000):
      folder.rename(tmp_path / f"unmounted{n}")
      with contextlib.suppress(FileExistsError):  # one of those threads was quicker
        return folder.touch(exist_ok=False)

  with Checkpoints(folder, alarm=alarms, keep_latest=3) as checkpoints:
    save_all(checkpoints, {1: None})
    real = checkpoints.writer.save
    monkeypatch.setattr(
      checkpoints.writer, "save",
      lambda *a, **k: (real(*a, **k), unmount())[0],
    )  # fmt: skip
    checkpoints.save(make_state(2), meta(2), None)
    checkpoints.wait()
    assert alarms and "step 2 is not saved" in alarms[0][1]
    folder.unlink()
    for _ in range(1000):  # threads of the failed save may still write where the folder was
      shutil.rmtree(folder, ignore_errors=True)
      with contextlib.suppress(OSError):
        (tmp_path / "unmounted0").rename(folder)
        break
    monkeypatch.undo()
    save_all(checkpoints, {3: None})
    assert {1, 3} <= set(checkpoints.steps())
    assert bits(checkpoints.restore(1, abstract())[0]) == bits(make_state(1))


def test_a_read_only_folder(tmp_path, monkeypatch):
  """Root writes into any folder, so the refusal is that of the system call."""
  alarms, real = Alarms(), os.open

  def refuse(path, flags, *args, **kwargs):
    if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(tmp_path)):
      raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
    return real(path, flags, *args, **kwargs)

  with Checkpoints(tmp_path, alarm=alarms) as checkpoints:
    save_all(checkpoints, {1: None})
    monkeypatch.setattr(os, "open", refuse)
    checkpoints.save(make_state(2), meta(2), None)
    assert "Read-only file system" in alarms[0][1]
    assert_goes_on(checkpoints, alarms, monkeypatch)


def test_without_an_alarm_a_failed_save_is_an_error(tmp_path, monkeypatch):
  with Checkpoints(tmp_path) as checkpoints:
    monkeypatch.setattr(checkpoints.writer, "save", full)
    with pytest.raises(UserError, match="No space left"):
      checkpoints.save(make_state(1), meta(1), None)


def test_what_a_kill_left_half_deleted_or_half_written_is_cleaned_away(tmp_path):
  for name in (".deleted-1", "2.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-17"):
    (tmp_path / name / "params").mkdir(parents=True)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps() == []
  assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ retention


def test_what_is_retained():
  nan, inf = float("nan"), float("inf")
  metrics = {1: 2.0, 2: 1.0, 3: nan, 4: 3.0, 5: -inf}
  keep = lambda latest, best, lower=True: sorted(  # noqa: E731
    retained([1, 2, 3, 4, 5, 6], metrics, latest, best, lower_is_better=lower)
  )
  assert keep(1, 1) == [2, 6] and keep(2, 2) == [1, 2, 5, 6]
  assert keep(1, 1, lower=False) == [4, 6]
  assert keep(0, 1) == [2] and keep(1, 0) == [6] and keep(9, 0) == [1, 2, 3, 4, 5, 6]


# --------------------------------------------------------------------------------------- events


def test_events_are_held_while_they_cannot_be_written(tmp_path, monkeypatch):
  warnings = []
  events = Events(tmp_path, warnings.append)
  events.log(1, {"a": 1})
  real = os.write

  def half(fd, data):  # a disk that takes a part, and then nothing
    if len(data) > 5:
      return real(fd, data[:5])
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "write", half)
  events.log(2, {"a": 2})
  events.log(3, {"a": 3})
  assert len(warnings) == 1 and [e["a"] for e in commands.events(tmp_path)] == [1]
  assert (tmp_path / "metrics.jsonl").read_text().endswith("}\n")  # nothing of half a line
  monkeypatch.undo()
  events.log(4, {"a": 4})
  assert [e["a"] for e in commands.events(tmp_path)] == [1, 2, 3, 4] and not events.held
  assert len(warnings) == 2
