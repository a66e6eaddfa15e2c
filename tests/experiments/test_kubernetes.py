"""Manifests of a sweep: what runs in the pods, what is tried again, and whether Kubernetes' schemas take them."""

import json
import os
import re
import subprocess

import pytest
import yaml

from mlit_jax import sweep
from tests import commands
from tests.experiments.planned import planned, train

FLAGS = ("--image=reg/mlit:gpu", "--claim=vol", "--gpus=4")
VERSIONS = ("1.29", "1.33", "1.36")  # 1.29: the first in which indexes fail one by one by default


def call(root, *flags):
  return commands.here(sweep, "--workdir", root, "--executor", "kubernetes", *flags)


def written(root, *flags):
  """{"runs": manifest}, and what was printed."""
  code, out, err = call(root, *FLAGS, f"--mount={root.parent}", *flags)
  assert code == 0, err
  folder = root / "kubernetes"
  found = {str(p.relative_to(folder))[:-5]: yaml.safe_load(p.read_text()) for p in folder.rglob("*.yaml")}  # fmt: skip
  return found, out


def jobs(manifest):
  """The Jobs of a manifest, those that JobSet would make included."""
  if manifest["kind"] == "Job":
    return [manifest]
  return [
    {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "of-set"}, **of["template"]}
    for of in manifest["spec"]["replicatedJobs"]
  ]


def container(job):
  (only,) = job["spec"]["template"]["spec"]["containers"]
  return only


def test_an_index_for_each_run_that_is_left(tmp_path):
  root = planned(tmp_path / "Fig. 3_ä", runs=7, done=(0, 3, 4))
  made, out = written(root, "--array_limit=2", "--secret=keys")
  assert made.keys() == {"runs", "finish"}
  job = made["runs"]["spec"]
  assert made["runs"]["metadata"]["name"] == "mlit-fig-3-runs"
  assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 4, 2)
  of = container(made["runs"])
  assert of["image"] == "reg/mlit:gpu" and of["resources"] == {"limits": {"nvidia.com/gpu": 4}}
  assert of["workingDir"] == os.getcwd() and of["envFrom"] == [{"secretRef": {"name": "keys"}}]
  assert of["volumeMounts"] == [{"name": "runs", "mountPath": str(tmp_path)}]
  (volume,) = job["template"]["spec"]["volumes"]
  assert volume == {"name": "runs", "persistentVolumeClaim": {"claimName": "vol"}}
  finish = container(made["finish"])["command"]
  assert finish == ["python", "-m", "mlit_jax.sweep", "--workdir", str(root), "--judge_and_report"]
  order = re.findall(r"kubectl (apply|get) -f .*/(\w+)\.yaml", out)
  assert order == [("apply", "runs"), ("get", "runs"), ("apply", "finish")]


def test_an_index_does_its_run(tmp_path):
  """The command as a container's shell would do it, with a python that says what it was asked for."""
  root = planned(tmp_path / "it's $(HOME)", runs=7, done=(0, 3, 4))
  made, _ = written(root)
  python = tmp_path / "python"
  python.write_text('#!/bin/sh\nprintf "%s\\n" "$$" "$@"\n')
  python.chmod(0o755)
  # What Kubernetes does before: $(NAME) is a variable, $$ a dollar.
  command = [word.replace("$$", "$") for word in container(made["runs"])["command"]]
  assert "$$(HOME)" in container(made["runs"])["command"][-1]
  for index, run in enumerate([1, 2, 5, 6]):
    env = {"PATH": f"{tmp_path}:/bin:/usr/bin", "JOB_COMPLETION_INDEX": str(index)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    pid, *said = process.communicate()[0].splitlines()
    assert said == ["-m", "mlit_jax.sweep", "--workdir", str(root), "--only", str(run)]
    assert int(pid) == process.pid  # it took the shell's place, so that signals reach it


def test_bad_input_is_not_tried_again_and_a_stop_is_no_failure(tmp_path):
  made, _ = written(planned(tmp_path / "s"))
  for name, action in (("runs", "FailIndex"), ("finish", "FailJob")):
    job = made[name]["spec"]
    rules = job["podFailurePolicy"]["rules"]
    on_exit = {rule["onExitCodes"]["values"][0]: rule for rule in rules if "onExitCodes" in rule}
    assert {code: rule["action"] for code, rule in on_exit.items()} == {2: action, 75: "Ignore"}
    for rule in on_exit.values():
      assert rule["onExitCodes"]["containerName"] == container(made[name])["name"]
    assert [r["action"] for r in rules if "onPodConditions" in r] == ["Ignore"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # else the policy is refused
    retries = "backoffLimitPerIndex" if name == "runs" else "backoffLimit"
    assert job[retries] == 3


def test_a_run_over_several_hosts_is_a_job_set(tmp_path):
  root = planned(tmp_path / "s", done=(1,), answers=True)
  train(root / "trained" / "r3")  # which has not answered
  made, out = written(root, "--hosts=2")
  assert made.keys() == {"runs/r0", "runs/r2", "answers", "finish"}
  one = made["runs/r2"]
  assert one["kind"] == "JobSet" and one["metadata"]["name"] == "mlit-s-2"
  (job,) = jobs(one)
  assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
  assert job["spec"]["backoffLimit"] == 0
  (rule,) = job["spec"]["podFailurePolicy"]["rules"]
  assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2])
  (rule,) = one["spec"]["failurePolicy"]["rules"]
  assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
  command = container(job)["command"]
  assert command[:5] == ["python", "-m", "mlit_jax.train", "--config", str(root / "configs/r2.py")]
  env = {e["name"]: e.get("value") for e in container(job)["env"]}
  assert env["JAX_COORDINATOR_ADDRESS"] == "mlit-s-2-train-0-0.mlit-s-2:8476"
  assert env["JAX_NUM_PROCESSES"] == "2" and "JAX_PROCESS_ID" in env
  shell = container(made["answers"])["command"][-1]
  assert shell.startswith("set -- 0 2 3; ") and made["answers"]["spec"]["completions"] == 3
  applied = re.findall(r"kubectl apply -f \S*/kubernetes/(\S+)", out)
  assert applied == ["runs", "answers.yaml", "finish.yaml"]


def test_manifests_of_an_earlier_call_are_gone(tmp_path):
  root = planned(tmp_path / "s")
  assert len(written(root, "--hosts=2")[0]) == 5
  assert written(root)[0].keys() == {"runs", "finish"}
  for n in range(4):
    train(root / "trained" / f"r{n}")
  made, out = written(root, "--hosts=3")
  assert made.keys() == {"finish"} and out.count("kubectl apply") == 1


def test_no_gpus_are_no_limit(tmp_path):
  made, _ = written(planned(tmp_path / "s"), "--gpus=0")
  assert "resources" not in container(made["runs"])


@pytest.mark.parametrize(
  "flags, what",
  [
    (["--image=i"], "needs --claim, --mount, --gpus,"),
    ([*FLAGS, "--mount=runs"], "must be an absolute path"),
    ([*FLAGS, "--mount=/elsewhere"], "is not below --mount /elsewhere"),
    ([*FLAGS, "--mount=/", "--hosts=0"], "--hosts is 0"),
    ([*FLAGS, "--mount=/", "--hosts=2", "--array_limit=1"], "each run is a JobSet"),
    ([*FLAGS, "--mount=/", "--judge_and_report"], "--executor kubernetes does all of the sweep"),
  ],
)
def test_what_is_missing_or_cannot_be(tmp_path, flags, what):
  code, _, err = call(planned(tmp_path / "s"), *flags)
  assert code == 2 and what in err and err.count("\n") == 1
  assert not (tmp_path / "s" / "kubernetes").exists()


def test_runs_beside_the_volume_are_refused(tmp_path):
  """The folder of the sweep is on it, those of the runs are not."""
  root = planned(tmp_path / "s")
  text = json.dumps(json.loads((root / "tasks.json").read_text()))
  (root / "tasks.json").write_text(text.replace(str(root / "trained"), "/other"))
  code, _, err = call(root, *FLAGS, f"--mount={tmp_path}")
  assert code == 2 and "/other/r0 is not below" in err


def schemas():
  return pytest.importorskip(
    "kubernetes_validate", reason="pip install kubernetes-validate: 120 MB"
  )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("hosts", [1, 2])
def test_the_schemas_of_kubernetes_take_them(tmp_path, version, hosts):
  """JobSet is not part of Kubernetes; the Job within it is, and is what we write of it."""
  validate = schemas().validate
  made, _ = written(planned(tmp_path / "s", answers=True), f"--hosts={hosts}", "--secret=keys")
  for manifest in made.values():
    for job in jobs(manifest):
      validate(job, version, strict=True)


@pytest.mark.parametrize("name, what", [("gke_jobset.yaml", "GPU"), ("gke_jobset_tpu.yaml", "TPU")])
def test_the_schemas_take_the_jobs_in_launch_too(name, what):
  validate = schemas().validate
  (job,) = jobs(yaml.safe_load((commands.ROOT / "launch" / name).read_text()))
  validate(job, VERSIONS[-1], strict=True)


def test_the_schemas_refuse_what_is_wrong(tmp_path):
  """They are strict: a key that Kubernetes does not know, and a number that is text."""
  kubernetes_validate = schemas()
  for key, value in (("backoffLimitPerIdx", 3), ("completions", "four")):
    made, _ = written(planned(tmp_path / "s"))
    made["runs"]["spec"][key] = value
    with pytest.raises(kubernetes_validate.ValidationError):
      kubernetes_validate.validate(made["runs"], VERSIONS[-1], strict=True)
