"""A sweep's folder as planning leaves it, for executors: tasks of runs, some of them done."""

import json

from mlit_jax import runtime
from mlit_jax.experiments import tasks
from mlit_jax.experiments.tasks import ANSWER, JUDGE, TRAIN, Task


def planned(root, *, runs=4, done=(), answers=False):
  """tasks.json of runs r0, r1, ... in root/trained; those in `done` are trained and have answered."""
  todo = []
  for n in range(runs):
    run, workdir, out = f"r{n}", root / "trained" / f"r{n}", root / "answers" / f"r{n}.jsonl"
    argv = ["train", "--config", str(root / "configs" / f"{run}.py"), "--workdir", str(workdir)]
    todo.append(Task(f"{run}.train", run, TRAIN, run, argv, str(workdir)))
    if answers:
      argv = ["generate", "--model", str(workdir), "--out", str(out)]
      todo.append(Task(f"{run}.answer", run, ANSWER, run, argv, str(out)))
    if n in done:
      train(workdir)
      runtime.write_atomic(out, "")
  if answers:
    todo.append(Task("r0--r1.judge", "judge", JUDGE, "", ["judge"], str(root / "judged")))
  runtime.write_atomic(root / "tasks.json", tasks.tasks_json(todo))
  return root


def train(workdir):
  """The traces of a run that came to its end."""
  runtime.write_atomic(workdir / "data_plan.json", json.dumps({"steps_done": 4}))
  runtime.write_atomic(workdir / "report.html", "")
