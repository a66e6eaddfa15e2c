"""Worker processes for the token cache: plain subprocesses that end when their parent does.

A worker reads pickled jobs from its standard input and answers on its standard output. It imports neither JAX nor
the program that started it, which `multiprocessing` would. It dies with its parent, however that one dies; where the
system cannot do that, an end of input is its end.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator

from mlit_jax import lifeline

AHEAD = 2  # jobs in flight for each worker: memory does not grow with the number of jobs


def map_in_order(function: Callable, common, jobs: Iterable[tuple], num_workers: int) -> Iterator:
  """function(common, *job) of every job, in their order, on `num_workers` processes.

  `function` must be a module's own, and everything must pickle. An exception of a worker is raised here.
  """
  with contextlib.ExitStack() as stack:
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for _ in range(num_workers):
      idle.put(stack.enter_context(_Worker(function, common)))
    threads = stack.enter_context(concurrent.futures.ThreadPoolExecutor(num_workers))

    def run(job):
      worker = idle.get()
      try:
        return worker.run(job)
      finally:
        idle.put(worker)

    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
      for job in jobs:
        waiting.append(threads.submit(run, job))
        if len(waiting) >= AHEAD * num_workers:
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()
    finally:
      for future in waiting:
        future.cancel()


class _Worker:
  def __init__(self, function, common):
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    # The workers are the parallelism; threads in each would only get in one another's way.
    env = os.environ | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    self.process = subprocess.Popen(
      [sys.executable, "-m", "mlit_jax.data.worker", str(os.getpid())],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=env,
    )
    self._send((function, common))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
      self.process.wait(10)
    self.process.kill()
    self.process.wait()
    self.process.stdout.close()

  def run(self, job):
    try:
      self._send(job)
      done, value = pickle.load(self.process.stdout)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError) as e:
      code = self.process.wait()
      raise RuntimeError(
        f"a worker that tokenises rows died with exit code {code} (killed for memory, if -9)"
      ) from e
    if not done:
      raise value
    return value

  def _send(self, value) -> None:
    pickle.dump(value, self.process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
    self.process.stdin.flush()


def main() -> None:
  lifeline.end_with(int(sys.argv[1]))
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)  # Ctrl-C and SLURM reach the parent too, which ends us
  source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
  os.dup2(2, 1)  # what a library prints must not stand among the answers
  with contextlib.suppress(EOFError, BrokenPipeError):
    function, common = pickle.load(source)
    while True:
      job = pickle.load(source)
      try:
        answer = (True, function(common, *job))
      except Exception as e:
        answer = (False, e)
      pickle.dump(answer, sink, protocol=pickle.HIGHEST_PROTOCOL)
      sink.flush()


if __name__ == "__main__":
  main()
