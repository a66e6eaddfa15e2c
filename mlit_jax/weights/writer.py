"""A folder that appears only when it is whole, written by the first of all processes."""

import collections
import os
import pathlib
import shutil
from collections.abc import Callable
from concurrent import futures

import jax
import numpy as np
from jax.experimental import multihost_utils

from mlit_jax import partial
from mlit_jax.errors import UserError
from mlit_jax.weights import hf_files

_MAKERS = 2
_AHEAD = 2  # tensors under way when another is begun


class FolderWriter:
  """Shards and files of the new folder `out`; under several processes all must call every method.

  The first process writes, each shard in a thread of its own: tensors are made ready while others go to the
  disk, and a shard is synced while the next is written. What fails there is kept until all hear of it, in
  `agree`: one process that stopped alone would leave the others waiting for it.
  """

  def __init__(self, out: pathlib.Path, num_bytes: int):
    self.out, self.num_bytes = out, num_bytes
    self.folder = self.shard = self.failure = None
    self.makers = futures.ThreadPoolExecutor(_MAKERS)
    self.thread = None  # of the shard
    self.begun: collections.deque[futures.Future] = collections.deque()  # tensors under way
    self.ended: collections.deque[futures.Future] = collections.deque()  # shards being synced

  def __enter__(self) -> "FolderWriter":
    self._attempt(self._make)
    self.agree()
    return self

  def __exit__(self, *_) -> None:
    self.makers.shutdown()
    futures.wait([*self.begun, *self.ended])
    if self.thread:
      self.thread.shutdown()
    if self.folder and self.folder.exists():
      shutil.rmtree(self.folder)

  def begin(self, file: str, header: str) -> None:
    """A new shard; what is left of the one before is written and synced meanwhile."""

    def begin():
      self._end_shard()
      self.shard = hf_files.open_shard(self.folder / file, header)
      self.put = self.shard.__enter__()
      self.thread = futures.ThreadPoolExecutor(1)

    self._attempt(begin)

  def write(self, tensor: hf_files.Tensor, make: Callable[[], np.ndarray]) -> None:
    """The shard's next tensor; `make` is called in the first process alone, in some thread."""

    def write():
      _wait(self.begun, _AHEAD)
      made, put = self.makers.submit(make), self.put
      self.begun.append(self.thread.submit(lambda: put(tensor, made.result())))

    self._attempt(write)

  def agree(self) -> None:
    """Raises in all processes if something failed in the first."""
    agree(self.failure, not_written(self.out))

  def finish(self, complete: Callable[[pathlib.Path], None]) -> None:
    """The last shard, what `complete` does to the folder, and its name."""

    def finish():
      self._end_shard()
      _wait(self.begun, 0)
      _wait(self.ended, 0)
      complete(self.folder)
      hf_files.sync_folder(self.folder)
      os.rename(self.folder, self.out)  # replaces an empty folder, never a full one
      hf_files.sync_folder(self.out.parent)

    self._attempt(finish)
    self.agree()

  def _attempt(self, call: Callable[[], None]) -> None:
    if jax.process_index() != 0 or self.failure:
      return
    try:
      call()
    except OSError as e:
      self.failure = UserError(f"{self.out}: cannot write the export: {e}.")
    except Exception as e:  # whatever it is: it is raised again where all processes are
      self.failure = e

  def _make(self) -> None:
    check_new(self.out)
    self.out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(self.out.parent).free
    if free < self.num_bytes:
      raise UserError(
        f"{self.out}: the export takes {self.num_bytes:,} bytes, {free:,} are free there. Make room, or "
        "name a folder elsewhere."
      )
    partial.remove_dead(self.out.parent, self.out.name)  # a model's size each
    folder = partial.beside(self.out)
    folder.mkdir()
    self.folder = folder

  def _end_shard(self) -> None:
    if self.shard:
      _wait(self.ended, 0)
      self.ended.append(self.thread.submit(self.shard.__exit__, None, None, None))
      self.thread.shutdown(wait=False)
      self.shard = None


def _wait(calls: collections.deque[futures.Future], num: int) -> None:
  """Until no more than `num` of the calls are under way; raises what one of them raised."""
  while len(calls) > num:
    calls.popleft().result()


def not_written(out) -> UserError:
  """What the other processes say where the first could not write."""
  return UserError(f"{out}: the first process cannot write there; its message says why.")


def check_new(out: pathlib.Path) -> None:
  """Refuses a file, or a folder that holds something."""
  if out.exists() and not out.is_dir():
    raise UserError(f"{out}: is a file; name a new folder for the export.")
  if out.is_dir() and any(out.iterdir()):
    raise UserError(
      f"{out}: is not empty, and old shards beside new ones would be read as one model. Name a new "
      "folder for the export, or empty this one."
    )


def on_first(call: Callable, otherwise: Exception):
  """call() in the first process, None in the others; what it raises is heard of by all."""
  result, failure = None, None
  if jax.process_index() == 0:
    try:
      result = call()
    except Exception as e:  # whatever it is: raised below, where all processes are
      failure = e
  agree(failure, otherwise)
  return result


def agree(failure: Exception | None, otherwise: Exception) -> None:
  """All processes go on, or all stop: those without a failure of their own with `otherwise`."""
  failed = failure is not None
  if jax.process_count() > 1:
    failed = bool(np.any(multihost_utils.process_allgather(np.array([failed]))))
  if failed:
    raise failure or otherwise
