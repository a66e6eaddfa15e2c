"""A sweep as manifests for Kubernetes: an indexed Job over the runs, or a JobSet for each, and a Job that reports.

Nothing is sent to a cluster. The plan names files by their paths, so the volume lies at the same path here and there.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from mlit_jax import runtime
from mlit_jax.errors import UserError
from mlit_jax.experiments import tasks
from mlit_jax.experiments.tasks import TRAIN, Task
from mlit_jax.runtime import EXIT_STOPPED, EXIT_USER

FOLDER = "kubernetes"
CONTAINER, VOLUME, PORT = "mlit", "runs", 8476
SECONDS_TO_SAVE = 120
RETRIES = 3  # of a run that failed otherwise than by bad input
RESTARTS = 100  # of a JobSet, which counts stops after saving too
LONGEST_NAME = 36  # names of pods have 63 characters, with what Kubernetes adds


@dataclasses.dataclass(frozen=True)
class Options:
  """claim: a PersistentVolumeClaim, mounted at `mount`; secret: environment variables of all pods."""

  image: str = ""
  claim: str = ""
  mount: str = ""
  gpus: int = -1  # of a pod; 0: none
  hosts: int = 1  # of a run
  secret: str = ""
  limit: int = 0  # runs at a time; 0: all


def write(root: Path, options: Options, say: Callable[[str], None]) -> None:
  """Write the manifests of what is left, and say how to apply them."""
  todo = tasks.read_tasks(root)
  check(root, todo, options)
  folder = root / FOLDER
  # One of an earlier plan would be applied with the others.
  for old in (*folder.glob("*.yaml"), *folder.glob("runs/*.yaml")):
    old.unlink()
  made = manifests(root, todo, options)
  for name, manifest in made.items():
    about = (
      f"# {name} of the sweep {root}. Written by python -m mlit_jax.sweep --executor kubernetes."
    )
    text = json.dumps(manifest, indent=2, ensure_ascii=False)  # which YAML takes as it is
    runtime.write_atomic(folder / f"{name}.yaml", f"{about}\n{text}\n")
  say(f"written  {len(made)} manifests in {folder}; nothing was sent to a cluster")
  for line in commands(folder, made):
    say(f"run      {line}")
  say(f"again    kubectl delete --ignore-not-found -R -f {shlex.quote(str(folder))}, then this command: it leaves out what is done")  # fmt: skip


def manifests(root: Path, todo: Sequence[Task], options: Options) -> dict[str, dict]:
  """{"runs": ..., "finish": ...} of one host each; of several "runs/<id>" and, with a judge, "answers"."""
  name = name_of(root)
  left = tasks.left(todo)
  out = {}
  if options.hosts == 1:
    if left:
      out["runs"] = indexed_job(f"{name}-runs", root, left, options)
  else:
    chains = tasks.chains(todo)
    for number in left:
      train = chains[number][0]
      if not train.is_done():
        out[f"runs/{train.chain}"] = job_set(f"{name}-{number}", train, options)
    asked = [n for n in left if any(task.kind != TRAIN for task in chains[n])]
    if asked:
      out["answers"] = indexed_job(f"{name}-answers", root, asked, options)
  out["finish"] = single_job(f"{name}-finish", root, options)
  return out


def indexed_job(name: str, root: Path, chains: Sequence[int], options: Options) -> dict:
  """Index I of the Job does the I-th of `chains`."""
  # exec: signals reach the sweep, which has its runs save.
  do = shlex.join(["exec", *_sweep(root), "--only"])
  shell = f'set -- {" ".join(map(str, chains))}; shift "$JOB_COMPLETION_INDEX"; {do} "$1"'
  at_a_time = min(options.limit or len(chains), len(chains))
  return _job(
    name,
    {
      "completionMode": "Indexed",
      "completions": len(chains),
      "parallelism": at_a_time,
      "backoffLimitPerIndex": RETRIES,
      "podFailurePolicy": _failures("FailIndex"),
      "template": pod(["sh", "-c", shell], options),
    },
  )


def single_job(name: str, root: Path, options: Options) -> dict:
  """Judging and report."""
  spec = {
    "backoffLimit": RETRIES,
    "podFailurePolicy": _failures("FailJob"),
    "template": pod([*_sweep(root), "--judge_and_report"], options),
  }
  return _job(name, spec)


def job_set(name: str, train: Task, options: Options) -> dict:
  """One run over several hosts, which find one another through the JobSet's headless service."""
  env = [
    {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-train-0-0.{name}:{PORT}"},
    {"name": "JAX_NUM_PROCESSES", "value": str(options.hosts)},
    {
      "name": "JAX_PROCESS_ID",
      "valueFrom": {
        "fieldRef": {
          "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        }
      },
    },
  ]
  verb, *rest = train.argv
  job = {
    "completionMode": "Indexed",
    "parallelism": options.hosts,
    "completions": options.hosts,
    "backoffLimit": 0,  # where one host fails all of them start again
    "podFailurePolicy": {"rules": [_on_exit("FailJob", EXIT_USER)]},
    "template": pod(["python", "-m", f"mlit_jax.{verb}", *rest], options, env),
  }
  fails = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {"name": name},
    "spec": {
      "failurePolicy": {"maxRestarts": RESTARTS, "rules": [fails]},
      "replicatedJobs": [{"name": "train", "replicas": 1, "template": {"spec": job}}],
    },
  }


def pod(command: Sequence[str], options: Options, env: Sequence[dict] = ()) -> dict:
  """The template of a pod with one container, in the folder that the sweep was planned in."""
  container = {
    "name": CONTAINER,
    "image": options.image,
    "command": [_literal(word) for word in command],
    "workingDir": str(Path.cwd()),
    "env": [*env],
    "envFrom": [{"secretRef": {"name": options.secret}}] if options.secret else [],
    "resources": {"limits": {"nvidia.com/gpu": options.gpus}} if options.gpus else {},
    "volumeMounts": [{"name": VOLUME, "mountPath": options.mount}],
  }
  return {
    "spec": {
      "restartPolicy": "Never",
      "terminationGracePeriodSeconds": SECONDS_TO_SAVE,
      "containers": [{key: value for key, value in container.items() if value}],
      "volumes": [{"name": VOLUME, "persistentVolumeClaim": {"claimName": options.claim}}],
    }
  }


def commands(folder: Path, made: Sequence[str]) -> list[str]:
  """What a person runs, in order; Kubernetes knows no Job that waits for others."""
  at = shlex.quote(str(folder))
  steps = []
  if any(name.startswith("runs/") for name in made):
    steps.append(f"{at}/runs")
  steps += [f"{at}/{name}.yaml" for name in ("runs", "answers", "finish") if name in made]
  out = []
  for i, step in enumerate(steps):
    out.append(f"kubectl apply -f {step}")
    if i + 1 < len(steps):
      out.append(f"kubectl get -f {step}   # until all are complete or failed")
  return out


def check(root: Path, todo: Sequence[Task], options: Options) -> None:
  """Refuse what is missing, and folders that pods would not see."""
  given = {"--image": options.image, "--claim": options.claim, "--mount": options.mount}
  missing = [flag for flag, value in given.items() if not value]
  if options.gpus < 0:
    missing.append("--gpus")
  if missing:
    raise UserError(
      f"--executor kubernetes needs {', '.join(missing)}, as in --image=REGISTRY/mlit_jax:gpu --claim=CLAIM "
      "--mount=/runs --gpus=1 (the PersistentVolumeClaim CLAIM at /runs, here and in the pods; --gpus=0 for none)"
    )
  if options.hosts < 1 or options.limit < 0:
    raise UserError(
      f"--hosts is {options.hosts}, --array_limit {options.limit}; they must be at least 1 (no limit: 0)"
    )
  if options.hosts > 1 and options.limit:
    raise UserError(
      "--array_limit holds within one Job, and with --hosts each run is a JobSet; apply some of the manifests at a time"
    )
  if not Path(options.mount).is_absolute():
    raise UserError(f"--mount is {options.mount!r}; it must be an absolute path")
  mount = Path(options.mount).resolve()
  folders = {root, *(Path(task.done) for task in todo if task.kind == TRAIN)}
  for path in sorted(folders):
    if not path.resolve().is_relative_to(mount):
      raise UserError(
        f"{path} is not below --mount {options.mount}, so pods would not see it; mount the volume "
        "here at that path too, and put --workdir and --config.trained on it"
      )


def name_of(root: Path) -> str:
  """A name that Kubernetes takes, of the sweep's folder."""
  name = re.sub(r"[^a-z0-9]+", "-", root.resolve().name.lower())
  return f"mlit-{name}"[:LONGEST_NAME].strip("-")


def _sweep(root: Path) -> list[str]:
  return ["python", "-m", "mlit_jax.sweep", "--workdir", str(root)]


def _job(name: str, spec: dict) -> dict:
  return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def _failures(action: str) -> dict:
  """Bad input is not tried again; a stop after saving, or a pod that was put out, is no failure."""
  put_out = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}  # fmt: skip
  return {"rules": [_on_exit(action, EXIT_USER), _on_exit("Ignore", EXIT_STOPPED), put_out]}


def _on_exit(action: str, code: int) -> dict:
  on = {"containerName": CONTAINER, "operator": "In", "values": [code]}
  return {"action": action, "onExitCodes": on}


def _literal(word: str) -> str:
  """Kubernetes puts variables for $(NAME) in commands; $$ is a dollar there."""
  return word.replace("$(", "$$(")
