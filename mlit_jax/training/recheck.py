"""Every so many steps one is computed twice, from the same bits, and the results are compared: a chip that
computes wrongly now and then shows up as a difference. Devices that hold the same part of an array are compared with
each other too: a copy that went wrong in a step before stays so, and both computations begin from it.

The very program of training runs both times. It overwrites its state, so the state is copied to the host before,
which needs as much host memory as the state takes on the devices of the host, and no device memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from mlit_jax.batch import Batch
from mlit_jax.errors import MachineFault
from mlit_jax.training.clock import Clock
from mlit_jax.training.digest import device_sums, named_leaves, over_processes
from mlit_jax.training.step import State, StepMetrics

SHOWN = 5  # arrays named in the message


class Recheck:
  """In the place of a train step: (state, batch) -> (state, metrics)."""

  def __init__(
    self,
    train_step: Callable,
    mesh: Mesh,
    clock: Clock,
    say: Callable[[str], None],
    *,
    first: int,
    every: int,
    opening: int,
  ):
    """`first`: steps done before. `opening`: so many after them are compared, and then every `every`th, with 0 none.

    `say` is told of the first recheck, so that nobody waits for what is not on.
    """
    self.train_step, self.mesh, self.clock, self.say = train_step, mesh, clock, say
    self.step, self.good = first, 0
    self.every, self.opened = every, first + opening

  def is_due(self, done: int) -> bool:
    """Whether the step after so many is computed twice: it then waits for its results."""
    return done < self.opened or (self.every > 0 and (done + 1) % self.every == 0)

  def __call__(self, state: State, batch: Batch) -> tuple[State, StepMetrics]:
    """One step; MachineFault where it was computed twice with different results, or where copies differ."""
    is_due = self.is_due(self.step)
    self.step += 1
    if not is_due:
      return self.train_step(state, batch)
    with jax.transfer_guard("allow"), self.clock.spent("recheck"):
      before = jax.tree.map(_Copy, state)
      with self.clock.spent("step"):  # as it would be by itself: all else is for the comparison
        out = jax.block_until_ready(self.train_step(state, batch))
      once = self._sums(out)
      del out  # there is memory for one
      out = self.train_step(_back(before), batch)
      twice = self._sums(out)
      where = differing(once, twice)
      if where:
        del out
        thrice = self._sums(self.train_step(_back(before), batch))
        raise MachineFault(self._words(where, once, twice, thrice))
      apart = disagreeing(twice, _parts(_named(out), self.mesh))
      if apart:
        raise MachineFault(self._words_of_copies(apart))
    if not self.good:
      self.say(f"step {self.step} was computed twice, with the same bits{self._more()}")
    self.good = self.step
    return out

  def _more(self) -> str:
    """Which others will be."""
    if self.every == 1:
      return "; so is each after it"
    opening = f"each until step {self.opened}" if self.step < self.opened else ""
    later = f"one every {self.every} steps" if self.every else ""
    others = " and ".join(filter(None, (opening, later)))
    return f"; so is {others}" if others else ""

  def _sums(self, out: tuple[State, StepMetrics]) -> dict[str, np.ndarray]:
    """{array: uint32[devices, 4]}."""
    return _everywhere(device_sums(_named(out)), self.mesh.size)

  def _words(self, where: Mapping, once: dict, twice: dict, thrice: dict) -> str:
    return (
      f"step {self.step} was computed twice from the same state and batch, and the results differ in {len(where)} of "
      f"{len(once)} arrays: {_names(where)}. {self._places(where)} {_vote(once, twice, thrice)} {self._remedy()}"
    )

  def _words_of_copies(self, where: Mapping) -> str:
    return (
      f"step {self.step}: devices that hold copies of the same have different ones, in {len(where)} arrays: "
      f"{_names(where)}. {self._places(where)} It came about in this step or in one before. {self._remedy()}"
    )

  def _remedy(self) -> str:
    known = (
      f"Up to step {self.good} every step that was compared was the same twice."
      if self.good
      else "No step of this run had been compared before."
    )
    devices = list(self.mesh.devices.flat)
    shared = len(devices) > 1 and devices[0].platform == "cpu" and jax.process_count() == 1
    test = "the machine out of use or test it (python -m mlit_jax.doctor), then run again elsewhere"
    ways = f"Take {test}"
    if shared:
      ways = (
        "Several devices of one CPU may be at fault themselves. Either run again here with JAX_NUM_CPU_DEVICES=1 "
        f"(mesh.* must allow one device), or take {test}"
      )
    return f"Nothing of this step is saved. {known} {ways}: it goes on from the last checkpoint."

  def _places(self, where: Mapping[str, np.ndarray]) -> str:
    found = sorted({int(i) for devices in where.values() for i in devices})
    devices = self.mesh.devices.flat
    if len(found) == len(devices) > 1:
      return (
        f"All {len(devices)} devices differ: what was wrong was exchanged between them, and which it came from cannot "
        "be seen."
      )
    return (
      "Differing: "
      + ", ".join(f"{devices[i]} (process {devices[i].process_index})" for i in found)
      + "."
    )


def _named(out: tuple[State, StepMetrics]) -> dict:
  state, metrics = out
  return state._asdict() | {"loss and counts": metrics.sums, "grad_norm": metrics.grad_norm}


def _everywhere(sums: Mapping[str, jax.Array], num_devices: int) -> dict[str, np.ndarray]:
  """The sums of all devices, on every process."""
  out_DL4 = np.zeros((num_devices, len(sums), 4), np.uint32)
  for i, x in enumerate(sums.values()):
    for shard in x.addressable_shards:
      out_DL4[shard.index[0], i] = shard.data
  out_DL4 = over_processes(out_DL4)  # each has zeros where others have sums
  return {name: out_DL4[:, i] for i, name in enumerate(sums)}


def _names(where: Mapping[str, np.ndarray]) -> str:
  """Of the arrays, those first that are wrong on the fewest devices."""
  names = [name for name, _ in sorted(where.items(), key=lambda item: (len(item[1]), item[0]))]
  more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
  return ", ".join(names[:SHOWN]) + more


class _Copy:
  """The parts of an array that lie on devices of this process, in memory of the host; a leaf to JAX."""

  def __init__(self, x: jax.Array):
    self.shape, self.sharding = x.shape, x.sharding
    # Every device's own part, also where several hold the same: what a device had is what it gets again.
    self.parts = [(s.device, np.array(s.data, copy=True)) for s in x.addressable_shards]

  def back(self) -> jax.Array:
    kind = self.sharding.memory_kind
    placed = [
      jax.device_put(part, SingleDeviceSharding(device, memory_kind=kind), may_alias=False)
      for device, part in self.parts
    ]
    return jax.make_array_from_single_device_arrays(self.shape, self.sharding, placed)


def _back(tree: State) -> State:
  return jax.tree.map(lambda copy: copy.back(), tree)


def differing(once: Mapping, twice: Mapping) -> dict[str, np.ndarray]:
  """{array: numbers of the devices whose part differs} of those that do."""
  found = {name: np.flatnonzero((once[name] != twice[name]).any(axis=1)) for name in once}
  return {name: devices for name, devices in found.items() if len(devices)}


def disagreeing(
  sums: Mapping[str, np.ndarray], parts: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """{array: numbers of the devices that have another copy than most that hold the same part}."""
  found: dict[str, list[int]] = {}
  for name, of_device in parts.items():
    for part in np.unique(of_device):
      devices = np.flatnonzero(of_device == part)
      _, which, counts = np.unique(
        sums[name][devices], axis=0, return_inverse=True, return_counts=True
      )
      if len(counts) > 1:
        most = counts == counts.max()
        is_right = most[which.reshape(-1)] if most.sum() == 1 else np.zeros(len(devices), bool)
        found.setdefault(name, []).extend(devices[~is_right].tolist())
  return {name: np.array(sorted(devices)) for name, devices in found.items()}


def _parts(tree, mesh: Mesh) -> dict[str, np.ndarray]:
  """{array: for each device, the number of the part that it holds}, named as device_sums names them."""
  out = {}
  for name, x in named_leaves(tree).items():
    where, numbers = x.sharding.devices_indices_map(x.shape), {}
    of_device = [numbers.setdefault(str(where[d]), len(numbers)) for d in mesh.devices.flat]
    out[name] = np.array(of_device)
  return out


def _vote(once: dict, twice: dict, thrice: dict) -> str:
  """Which of three computations stands alone."""
  if not differing(once, thrice):
    return "A third time it came out as the first: the second was wrong."
  if not differing(twice, thrice):
    return "A third time it came out as the second: the first was wrong."
  return (
    "A third time it came out differently again: the fault is frequent, or the program is not deterministic on these "
    "devices."
  )
