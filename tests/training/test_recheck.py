"""A step computed twice: healthy devices always agree, and one bit that does not is found and its device named."""

import contextlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from mlit_jax import checks, job, train
from mlit_jax import mesh as meshes
from mlit_jax.errors import MachineFault
from mlit_jax.training import loop
from mlit_jax.training.clock import Clock
from mlit_jax.training.digest import device_sums, digests
from mlit_jax.training.recheck import Recheck, disagreeing
from tests import commands
from tests.training import test_optimizers, test_step
from tests.training.test_bad_updates import bits
from tests.training.test_step import make_batch


def flipped(x: jax.Array, number: int) -> jax.Array:
  """The array with one bit of the part on one device turned over."""
  parts = []
  for shard in x.addressable_shards:
    part = np.array(shard.data)
    if shard.device.id == number:
      part.reshape(-1)[:1].view(np.uint8)[0] ^= 1
    parts.append(jax.device_put(part, shard.data.sharding))
  return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)


class Faulty:
  """A train step that miscomputes: in these calls (from 0), one bit of one array on these devices."""

  def __init__(
    self, step, calls, devices, of=lambda state: state.params["blocks"]["mlp"], name="up_DF"
  ):
    self.step, self.calls, self.devices, self.of, self.name = step, calls, devices, of, name
    self.called = 0

  def __call__(self, state, batch):
    state, metrics = self.step(state, batch)
    if self.called in self.calls:
      with jax.transfer_guard("allow"):
        for number in self.devices:
          holder = self.of(state)
          holder[self.name] = flipped(holder[self.name], number)
    self.called += 1
    return state, metrics


def rechecked(trainer, step=None, every=1, opening=0):
  said = []
  step, clock = step or trainer.step, Clock()
  trainer.step = Recheck(
    step, trainer.mesh, clock, said.append, first=0, every=every, opening=opening
  )
  return said


@pytest.fixture(scope="module")
def adamw():
  """Its program is compiled once for all tests; each puts its own step around it."""
  trainer = test_step.Trainer(test_step.adamw(), sizes=(2, 2, 2))
  return trainer, trainer.step, jax.device_get(trainer.state)


@pytest.fixture
def trainer(adamw):
  trainer, step, first = adamw
  shardings = jax.tree.map(lambda x: x.sharding, trainer.state)
  trainer.step, trainer.state = step, jax.device_put(first, shardings)
  return trainer


def test_a_healthy_run_never_alarms_and_is_the_run_without(trainer):
  step, first = trainer.step, jax.tree.map(jnp.copy, trainer.state)
  batches = [make_batch(i) for i in range(6)]
  plain = trainer.run(*batches)
  end = bits(trainer.state)
  trainer.state = first
  said = rechecked(trainer, every=2)
  assert bits(trainer.run(*batches)) == bits(plain) and bits(trainer.state) == end
  assert len(said) == 1 and said[0].startswith("step 2 was computed twice")
  assert step._cache_size() == 1, "another program than that of training"


@pytest.mark.parametrize("call, words", [(2, "the first was wrong"), (3, "the second was wrong")])
def test_one_bit_on_one_device(trainer, call, words):
  """Of the second step; it is called twice for each."""
  rechecked(trainer, Faulty(trainer.step, [call], [5]))
  trainer.run(make_batch(0))
  with pytest.raises(MachineFault) as e:
    trainer.run(make_batch(1))
  said = str(e.value)
  assert said.startswith("step 2 was computed twice") and "differ in 1 of" in said
  assert ": params/blocks/mlp/up_DF. Differing: " in said and words in said
  (device,) = [d for d in jax.devices() if d.id == 5]
  assert f"Differing: {device} (process 0)." in said
  assert "Up to step 1 every step that was compared was the same twice" in said
  assert re.search(r"Either run again here with JAX_NUM_CPU_DEVICES=1 \(.*\), or take the", said)


@pytest.mark.parametrize(
  "every, opening, calls, said",
  [
    (0, 2, [2, 2, 1, 1], ["; so is each until step 2"]),
    (0, 1, [2, 1, 1, 1], [""]),
    (4, 1, [2, 1, 1, 2], ["; so is one every 4 steps"]),
    (4, 2, [2, 2, 1, 2], ["; so is each until step 2 and one every 4 steps"]),
    (1, 2, [2, 2, 2, 2], ["; so is each after it"]),
  ],
)
def test_the_first_steps_alone(trainer, every, opening, calls, said):
  """How often the step is computed in each of four steps."""
  step = Faulty(trainer.step, [], [])
  words, done, each = rechecked(trainer, step, every, opening), 0, []
  for seed in range(4):
    trainer.run(make_batch(seed))
    each.append(step.called - done)
    done = step.called
  assert each == calls
  assert words == [f"step 1 was computed twice, with the same bits{more}" for more in said]


def test_only_what_a_step_takes_by_itself_is_training(trainer, monkeypatch):
  """Of two computations, of a second each by a clock that only they move."""
  now, step = [0.0], trainer.step
  monkeypatch.setattr("mlit_jax.training.clock.time.perf_counter", lambda: now[0])

  def slow(*args):
    now[0] += 1.0
    return step(*args)

  rechecked(trainer, slow, every=2)
  monkeypatch.setattr("mlit_jax.training.clock.COMPILE_EVENTS", ())  # their seconds are real ones
  clock = trainer.step.clock = Clock()
  for seed in range(4):
    with clock.spent("step"):
      trainer.run(make_batch(seed))
  assert (clock.seconds["step"], clock.seconds["recheck"], clock.total()) == (4.0, 2.0, 6.0)
  assert [trainer.step.is_due(done) for done in range(4)] == [False, True, False, True]


def test_the_step_before_is_read_before_one_that_waits(monkeypatch):
  """Else its line would have the time of both, and the next one's none."""
  seen = []

  def read(run, pending, *_):
    if pending is not None:
      seen.append(f"read {pending.step}")

  def train_step(state, batch):
    seen.append(f"step {batch}")
    return state, None

  for name, does in {
    "_read": read,
    "_log": lambda *_: None,
    "_first_step": lambda *_: None,
  }.items():
    monkeypatch.setattr(loop, name, does)
  monkeypatch.setattr(loop, "_put", lambda batch, *_: batch)
  run = types.SimpleNamespace(
    mesh=meshes.make_mesh(), total_steps=5, train_step=train_step, waits=lambda step: step in (1, 3),
    batches=iter(range(5)), has_stalled=lambda step: False, at=lambda step: None, poll=lambda: None,
    stop=types.SimpleNamespace(agreed=lambda: False), clock=Clock(), eval_every=0, save_every=0,
    terminal=types.SimpleNamespace(bar=lambda *_: contextlib.nullcontext(types.SimpleNamespace(update=lambda n: None))),
    profile=types.SimpleNamespace(step=lambda n: contextlib.nullcontext(lambda x: None), close=lambda: None),
  )  # fmt: skip
  loop.train(run, types.SimpleNamespace(step=0))
  words = "step 0, read 0, step 1, step 2, read 1, read 2, step 3, step 4, read 3, read 4"
  assert ", ".join(seen) == words


@pytest.mark.parametrize(
  "unrolled, devices, every, said",
  [
    (True, 2, 0, (0, 2)),
    (True, 2, 5, (5, 2)),
    (True, 2, -1, None),
    (True, 1, 0, None),
    (False, 2, 0, None),
    (False, 2, 5, (5, 0)),
    (True, 1, 1, (1, 0)),
  ],
)
def test_which_runs_compute_twice(unrolled, devices, every, said):
  """(every, opening), after three steps; or none are."""
  c = quickstart.get_config()
  c.workdir, c.debug.recheck_every = "run", every
  checks.check_config(c)
  job_ = types.SimpleNamespace(
    c=c, clock=Clock(), terminal=types.SimpleNamespace(line=print),
    mesh=meshes.make_mesh(devices=jax.devices()[:devices]),
    stepping=types.SimpleNamespace(unrolled=unrolled, train_step=lambda *_: None),
  )  # fmt: skip
  found = job.Job.recheck(job_, 3)
  assert (found and (found.every, found.opened - 3)) == said


def test_a_copy_of_what_all_devices_have(trainer):
  """The norms of queries are on all of them. One goes wrong in a step that is not looked at: it stays wrong."""
  of = lambda state: state.params["blocks"]["attn"]["q_norm"]  # noqa: E731
  assert of(trainer.state)["scale_H"].sharding.is_fully_replicated
  rechecked(trainer, Faulty(trainer.step, [0], [3], of, "scale_H"), every=3)
  trainer.run(make_batch(0), make_batch(1))
  with pytest.raises(MachineFault) as e:
    trainer.run(make_batch(2))
  assert "step 3: devices that hold copies" in str(e.value) and "q_norm/scale_H" in str(e.value)
  (device,) = [d for d in jax.devices() if d.id == 3]
  assert f"Differing: {device} (process 0). It came about in this step or in one before" in str(
    e.value
  )


def test_who_is_in_the_minority():
  words = lambda *values: np.array([[v, 0, 0, 0] for v in values], np.uint32)  # noqa: E731
  parts = np.array([0, 0, 0, 1, 1, 1])
  found = disagreeing(
    {"same": words(7, 7, 7, 8, 8, 8), "one": words(7, 7, 7, 8, 9, 8), "none": words(1, 2, 3, 8, 8, 8)},
    dict.fromkeys(("same", "one", "none"), parts),
  )  # fmt: skip
  assert {k: v.tolist() for k, v in found.items()} == {"one": [4], "none": [0, 1, 2]}


def test_what_was_exchanged_has_no_place_and_what_is_frequent_no_winner(trainer):
  rechecked(trainer, Faulty(trainer.step, [0], range(8)))
  with pytest.raises(MachineFault, match="All 8 devices differ: .* cannot be seen.* the first was"):
    trainer.run(make_batch(0))


def test_faults_of_two_devices_in_two_computations(trainer):
  first = Faulty(trainer.step, [0], [1])
  rechecked(trainer, Faulty(first, [1], [6]))
  with pytest.raises(
    MachineFault, match=r"Differing: \S+1 \(process 0\), \S+6 .*differently again"
  ):
    trainer.run(make_batch(0))


def test_sums_of_devices_are_parts_of_the_digest(trainer):
  """Added up over devices that have different parts; one flipped bit shows on its device alone."""
  tree = trainer.state.params["blocks"]["mlp"]
  sums = jax.device_get(device_sums(tree))
  up, parts = tree["up_DF"], {}
  for device, shard in zip(trainer.mesh.devices.flat, up.addressable_shards, strict=True):
    assert device == shard.device
    parts.setdefault(str(shard.index), []).append(sums["up_DF"][shard.device.id])
  assert 1 < len(parts) < 8 and all(
    (same == same[0]).all() for same in map(np.array, parts.values())
  )
  total = np.sum([same[0] for same in parts.values()], axis=0, dtype=np.uint32)
  assert digests(tree)["up_DF"].endswith("".join(f"{int(word):08x}" for word in total))
  other = jax.device_get(device_sums({"up_DF": flipped(up, 6)}))
  assert np.flatnonzero((other["up_DF"] != sums["up_DF"]).any(axis=1)).tolist() == [6]


@pytest.mark.slow
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize(
  "kind",
  [
    ("adamw", "bfloat16", "bfloat16"),
    ("adamw", "int8", "float32"),
    ("adafactor", "float32", "bfloat16"),
    ("muon", "int8", "bfloat16"),
  ],
)
def test_every_optimizer_is_the_same_twice(kind, offload):
  plain, twice = (
    test_optimizers.Trainer(*kind, sizes=(2, 2, 2), offload=offload) for _ in range(2)
  )
  rechecked(twice)
  assert plain.run(range(3)) == twice.run(range(3))
  assert bits(plain.state) == bits(twice.state)


@pytest.mark.slow
def test_a_run_ends_without_saving_and_goes_on_elsewhere(tmp_path, monkeypatch):
  lines = (
    "c.batch.rows = 8", "c.epochs, c.steps = 0, 6", "c.eval.sets = {}", "c.checkpoint.keep_best = 0",
  )  # fmt: skip
  config, root = commands.write_config(tmp_path, *lines), tmp_path / "run"
  args = ("--config", config, "--workdir", root, "--config.debug.recheck_every=2")
  real = job.Recheck
  # The first two twice, as ever on several devices of a CPU, one once, then the fourth: its first result is wrong.
  broken = lambda step, *rest, **keys: real(Faulty(step, [5], [2]), *rest, **keys)  # noqa: E731
  monkeypatch.setattr(job, "Recheck", broken)
  code, out, err = commands.here(train, *args)
  assert "step 1 was computed twice, with the same bits; so is each until step 2 and one" in out
  assert code == 1 and err.startswith("error: step 4 was computed twice"), out + err
  assert err.count("\n") == 1 and "params/blocks/mlp/up_DF" in err and "Traceback" not in err
  assert [p.name for p in (root / "checkpoints").iterdir()] == ["2"]
  monkeypatch.setattr(job, "Recheck", real)
  code, out, err = commands.here(train, *args[:-1], "--config.debug.recheck_every=1")
  assert code == 0 and "resumed at step 2" in out and "step 3 was computed twice" in out, err
  times = [event["time/recheck"] for event in commands.events(root) if "train/loss" in event]
  assert len(times) == 6 and all(seconds > 0 for seconds in times)
