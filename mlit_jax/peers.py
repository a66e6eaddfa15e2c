"""What the processes of a run tell one another beside their collectives: signs of life, and why one leaves.

The text lies with JAX's coordination service, in the first process. It goes on where a collective is stuck.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import jax

FOLDER = "mlit_jax"
LOOK_SECONDS = 0.5  # between two looks for processes that left
GRACE_SECONDS = 1.0  # after another has left: time to end by oneself, with one's own message
LINGER_SECONDS = 1.5  # after telling that one leaves: the others read it before they miss us
KEEPER_SECONDS = 4.0  # of the first process: JAX aborts who is still there without it
MOST_LETTERS = 2000  # of a reason
_leaving = threading.Lock()


class Channel:
  """Text under names, seen by all processes. Its calls may block or raise where the first process is gone."""

  def __init__(self, client, process: int, count: int):
    self.client, self.process, self.count = client, process, count

  def put(self, folder: str, text: str) -> None:
    """This process's text in a folder, in the place of the one before."""
    self.client.key_value_set(f"{FOLDER}/{folder}/{self.process}", text, allow_overwrite=True)

  def all(self, folder: str) -> dict[int, str]:
    """{process: its text}."""
    found = self.client.key_value_dir_get(f"{FOLDER}/{folder}")
    return {int(key.rsplit("/", 1)[1]): text for key, text in found}


def open_channel() -> Channel | None:
  """None for a process alone, and where this JAX has no such store: then less is known of the others."""
  try:
    from jax._src import distributed  # JAX has no public name for it

    state = distributed.global_state
    client, process, count = state.client, state.process_id, state.num_processes
  except (ImportError, AttributeError):
    return None
  if client is None or count < 2 or not hasattr(client, "key_value_dir_get"):
    return None
  return Channel(client, process, count)


def are_there() -> bool:
  """Whether this process works with others; unlike jax.process_count, this begins nothing."""
  return jax.distributed.is_initialized()


def leave(code: int, reason: str, *, linger: float | None = None) -> NoReturn:
  """End this process at once, without the wait for the others that JAX has at its end; tell them why before.

  They end too, with the same code. What was being written stays half written, and is not taken for whole.
  """
  channel = open_channel()
  if linger is None:
    linger = KEEPER_SECONDS if channel and channel.process == 0 else LINGER_SECONDS
  if not _leaving.acquire(blocking=False):  # another thread does so already: its code counts
    time.sleep(2 * linger)
    os._exit(code)
  if channel is not None:
    text = json.dumps([code, reason[:MOST_LETTERS]])
    told = _within(linger, lambda: channel.put("left", text))
    if told:
      time.sleep(linger)
  with contextlib.suppress(Exception):
    sys.stdout.flush()
    sys.stderr.flush()
  os._exit(code)


@dataclasses.dataclass
class Heard:
  """The last sign of life of a process. Times are of the clock that the listener uses."""

  text: str = ""
  at: float = 0.0  # when it last changed


class Peers:
  """Tells the others how this process stands, and knows how they do; a thread that ends with the process.

  tell: () -> text that changes with every call. every: seconds between two signs of life.
  seconds: a clock; it may leave out the time that this process was stopped.
  """

  def __init__(
    self,
    channel: Channel | None,
    tell: Callable[[], str],
    *,
    every: float,
    seconds: Callable[[], float] = time.monotonic,
  ):
    self.channel, self.tell, self.every, self.seconds = channel, tell, every, seconds
    self.heard: dict[int, Heard] = {}
    self.left: dict[int, tuple[int, str, float]] = {}  # process -> (exit code, reason, noticed at)
    self.answered = seconds()  # when the first process last did
    self._ended = threading.Event()
    if channel is not None:
      others = set(range(channel.count)) - {channel.process}
      self.heard = {i: Heard(at=self.answered) for i in sorted(others)}
      threading.Thread(target=self._talk, name="peers", daemon=True).start()

  def close(self, last: str) -> None:
    """Say so: a process that is done is silent, and not missed."""
    if self.channel is not None and not self._ended.is_set():
      self._ended.set()
      _within(LINGER_SECONDS, lambda: self.channel.put("life", last))

  def _talk(self) -> None:
    told = -self.every
    while not self._ended.wait(min(LOOK_SECONDS, self.every)):
      with contextlib.suppress(Exception):  # the first process is gone: `answered` grows old
        for process, text in self.channel.all("left").items():
          code, reason = json.loads(text)
          if process != self.channel.process:
            self.left.setdefault(process, (code, reason, self.seconds()))
        if self.seconds() - told >= self.every:
          self._tell()
          told = self.seconds()
        self.answered = self.seconds()

  def _tell(self) -> None:
    self.channel.put("life", self.tell())
    for process, text in self.channel.all("life").items():
      known = self.heard.get(process)
      if known is not None and known.text != text:
        self.heard[process] = Heard(text, self.seconds())


def _within(seconds: float, act: Callable[[], None]) -> bool:
  """Whether `act` was done in this time; one that blocks is left behind."""
  done = threading.Event()

  def run():
    with contextlib.suppress(Exception):
      act()
      done.set()

  threading.Thread(target=run, daemon=True).start()
  return done.wait(seconds)
