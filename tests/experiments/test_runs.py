"""Ids of runs: the same for what is the same, another for whatever changes a figure."""

import copy
import json
import shutil
from unittest import mock

import pytest

from configs import base
from configs.paper import fig1_monolingual, fig3_pinch, fig4_unseen, fig5_languages, fig6_pairs
from mlit_jax.config import load_config
from mlit_jax.errors import UserError
from mlit_jax.experiments import costs, planning, runs, tasks
from mlit_jax.experiments.designs import Arm
from tests.experiments import small

EN = Arm("en alone", {"en": 60})


def config_of(tmp_path, *lines):
  return load_config(str(small.write_sweep(tmp_path, *lines)), [], base="sweep")


def id_of(c, arm=EN):
  (run,) = runs.make_runs(c, [arm], base.get_config())
  return run.id


def test_presets_share_their_runs():
  """English alone is P = 0 of figures 3 and 4, one language of figure 5 in each order, and a model of figures 1 and 6."""
  found = {}
  for preset in (fig1_monolingual, fig3_pinch, fig4_unseen, fig5_languages, fig6_pairs):
    c = preset.get_config()
    c.rows, c.eval_rows, c.dev_rows, c.model = (
      small.ROWS,
      small.HELD_OUT,
      small.HELD_OUT,
      "a/hub-id",
    )
    for run in runs.make_runs(c, preset.get_arms(c), base.get_config()):
      found.setdefault(run.id, []).append((preset.__name__.split(".")[-1], run.arm.name))
  english = next(where for where in found.values() if ("fig1_monolingual", "en") in where)
  assert english == [
    ("fig1_monolingual", "en"),
    ("fig3_pinch", "P=0"),
    ("fig4_unseen", "P=0"),
    ("fig5_languages", "1 language, order 1"),
    ("fig5_languages", "1 language, order 2"),
    ("fig5_languages", "1 language, order 3"),
    ("fig6_pairs", "en"),
  ]
  # 12 of figure 1, 11 more of 3, 11 more of 4, of 5 what is not in one of them: n = 2 to 5 in three orders, six
  # languages are P = 100 of figure 4; six pairs.
  assert len(found) == 12 + 11 + 11 + 12 + 6


def test_what_changes_an_id(tmp_path):
  c = config_of(tmp_path)
  first = id_of(c)
  for change in (
    lambda c: c.update(seeds=[1]),
    lambda c: c.update(seeds=[(1, 0)]),
    lambda c: c.run.optimizer.update(learning_rate=1e-4),
    lambda c: c.update(learning_rates={"en*": 1e-4}),
    lambda c: c.budget.update(unit="tokens"),
    lambda c: c.run.eval.update(generate_rows=3),
    lambda c: c.update(held_out=[]),
    lambda c: c.run.model.sizes.update(d_ff=128),
  ):
    other = copy.deepcopy(c).unlock()
    change(other)
    assert id_of(other) != first
  assert id_of(c, Arm("en alone", {"en": 59})) != first


def test_what_does_not_change_an_id(tmp_path):
  c = config_of(tmp_path)
  first = id_of(c)
  for change in (
    lambda c: c.update(workdir="elsewhere", trained="elsewhere", title="another"),
    lambda c: c.run.mesh.update(tensor=2),
    lambda c: c.run.log.update(every_steps=1),
    lambda c: c.update(judge="model:x"),
  ):
    other = copy.deepcopy(c).unlock()
    change(other)
    assert id_of(other) == first
  assert id_of(c, Arm("another name", {"en": 60, "fi": 0})) == first


def test_rows_count_and_not_where_they_lie(tmp_path):
  c = config_of(tmp_path)
  first = id_of(c)
  for lang in ("en", "fi", "sw"):
    shutil.copy(small.ROWS.format(lang=lang), tmp_path / f"{lang}.jsonl")
  c.rows = str(tmp_path / "{lang}.jsonl")
  assert id_of(c) == first
  (tmp_path / "fi.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
  assert id_of(c) == first  # Finnish is not in this arm
  text = (tmp_path / "en.jsonl").read_text(encoding="utf-8")
  (tmp_path / "en.jsonl").write_text(text.replace("leaves", "Leaves", 1), encoding="utf-8")
  assert id_of(c) != first


def test_a_base_model_counts_by_what_it_holds(tmp_path):
  c = config_of(tmp_path)
  folder = tmp_path / "model"
  shutil.copytree(small.ASSETS / "tiny12", folder)
  c.model = str(folder)
  first = id_of(c)
  folder = folder.rename(tmp_path / "moved")
  c.model = str(folder)
  assert id_of(c) == first
  weights = bytearray((folder / "model.safetensors").read_bytes())
  weights[-1] ^= 1
  (folder / "model.safetensors").write_bytes(weights)
  assert id_of(c) != first


def test_a_large_file_is_known_by_pieces_at_its_ends_and_within(tmp_path):
  path = tmp_path / "large"
  with mock.patch.object(runs, "SAMPLE_BYTES", 10):
    data = bytearray(1000)
    path.write_bytes(data)
    first = runs.digest(path)
    for at in (0, 999, 5, 500 - 500 % 66):
      changed = bytearray(data)
      changed[at] = 1
      path.write_bytes(changed)
      assert (runs.digest(path) != first) == any(
        k * 990 // 15 <= at < k * 990 // 15 + 10 for k in range(16)
      )
    path.write_bytes(bytes(1001))
    assert runs.digest(path) != first


def test_the_config_file_is_the_run(tmp_path):
  """What the sweep writes for a run gives the same config when train reads it."""
  c = config_of(tmp_path, "c.seeds = [(3, 5)]", "c.learning_rates = {'en*': 1e-4}")
  (run,) = runs.make_runs(c, [EN], base.get_config())
  path = tmp_path / f"{run.id}.py"
  path.write_text(runs.config_file(run, "a test"), encoding="utf-8")
  read = load_config(str(path))
  assert (read.seed, read.data.seed, read.optimizer.learning_rate) == (5, 3, 1e-4)
  assert read.data.mixture == {"counts": {"en": 60}} and list(read.data.train) == ["en"]
  assert sorted(read.eval.sets["heldout"]) == ["en", "fi", "sw", "zh"]
  assert read.steps == 4 and read.model.sizes["d_model"] == 32


def test_each_run_is_compared_with_the_model_of_each_language(tmp_path):
  arms = [
    Arm("en", {"en": 60}),
    Arm("both", {"en": 30, "fi": 30}),
    Arm("only fi", {"fi": 60}, is_baseline=True),
  ]
  c = config_of(tmp_path, "c.seeds = [0, 1]")
  found = runs.make_runs(c, arms, base.get_config())
  number = {(run.arm.name, run.seed): run.id for run in found}
  pairs = tasks.compare_with_own(found, ["en", "fi"], 60)
  assert [(p.run, p.baseline, p.languages) for p in pairs] == [
    (number["en", 0], number["only fi", 0], ["fi"]),
    (number["en", 1], number["only fi", 1], ["fi"]),
    (number["both", 0], number["en", 0], ["en"]),
    (number["both", 0], number["only fi", 0], ["fi"]),
    (number["both", 1], number["en", 1], ["en"]),
    (number["both", 1], number["only fi", 1], ["fi"]),
  ]  # fmt: skip


def test_a_judge_adds_what_it_needs(tmp_path):
  c = config_of(
    tmp_path, "c.judge = 'recorded:verdicts.jsonl'", f"c.workdir = {str(tmp_path / 's')!r}"
  )
  arms = [
    Arm("P=0", {"en": 60}, {"percent": 0}),
    Arm("P=10", {"en": 56, "fi": 2, "sw": 2}, {"percent": 10}),
  ]
  plan = planning.make_plan(c, arms, [], base.get_config())
  assert [run.arm.name for run in plan.runs] == ["P=0", "P=10", "only fi", "only sw", "only zh"]
  assert len(plan.comparisons) == 3 + 4  # P=0 is English alone, and not compared with itself
  kinds = [task.kind for task in plan.tasks]
  assert kinds == [tasks.TRAIN, tasks.ANSWER] * 5 + [tasks.JUDGE] * 7
  assert len(plan.prompts) == 4 * 20
  by_id = {row["id"]: row["lang"] for row in plan.prompts}
  assert len(by_id) == 20  # parallel prompts share their id
  asked = {e["out"] for e in plan.sweep["comparisons"]}
  c.generate_options = {"temperature": 0.5}
  again = planning.make_plan(c, arms, [], base.get_config())
  assert not asked & {e["out"] for e in again.sweep["comparisons"]}  # asked otherwise, judged anew


@pytest.mark.parametrize(
  "options, words",
  [
    ({}, "nobody is there to agree"),
    ({"max_cost": 5}, "needs price_in and price_out"),
    ({"max_cost": 0.1, "price_in": 1.0, "price_out": 2.0}, "7 comparisons may cost 0.5"),
    ({"max_cost": 5, "price_in": 1.0, "price_out": 2.0}, ""),
    ({"yes": True}, ""),
  ],
)
def test_a_judge_that_costs_needs_someone_who_agrees(tmp_path, options, words):
  """Of all comparisons together, before anything is trained."""
  c = config_of(
    tmp_path, f"c.workdir = {str(tmp_path / 's')!r}", "c.judge = 'https://example.org/v1#m'"
  )
  c.judge_options = options
  arms = [Arm("P=0", {"en": 60}), Arm("P=10", {"en": 56, "fi": 2, "sw": 2})]
  plan = planning.make_plan(c, arms, [], base.get_config())
  if words:
    with pytest.raises(UserError, match=words):
      costs.check_agreed(plan)
  else:
    costs.check_agreed(plan)


def test_a_planned_sweep_is_read_back(tmp_path):
  c = config_of(tmp_path, f"c.workdir = {str(tmp_path / 's')!r}")
  plan = planning.make_plan(c, [EN], [], base.get_config())
  planning.write(plan)
  assert tasks.read_tasks(tmp_path / "s") == plan.tasks
  assert json.loads((tmp_path / "s" / "sweep.json").read_text()) == plan.sweep
  assert (tmp_path / "s" / "configs" / f"{plan.runs[0].id}.py").exists()


@pytest.mark.parametrize(
  "lines, words",
  [
    (["c.rows = 'rows.jsonl'"], r"rows is 'rows.jsonl'; it needs \{lang\}"),
    (["c.eval_rows = ''"], "nothing is measured"),
    (["c.held_out = ['fi']"], "held_out names fi, which languages has too"),
    (["c.seeds = []"], "give at least one"),
    (["c.seeds = [0, 0]"], "none twice"),
    (["c.seeds = [(0, 1, 2)]"], r"seeds has \(0, 1, 2\)"),
    (["c.learning_rates = {'P=5': 1e-5}"], "fits no arm; the arms are en alone"),
    (["c.learning_rates = {'*': 0}"], "must be a number above 0"),
    (["c.at = 'first'"], "at is 'first'"),
    (["r.model.sizes = {}"], "model is empty"),
    (["r.checkpoint.best = 'dev/mean/loss'"], "dev_rows is empty"),
    (["c.covariates = [{'name': 'x', 'kind': 'pair', 'file': 'none.csv'}]"], "none.csv cannot be read"),
    (["c.covariates = [{'name': 'x', 'kind': 'trio'}]"], "a kind of pair, language"),
  ],
)  # fmt: skip
def test_what_a_sweep_can_get_wrong(tmp_path, lines, words):
  c = config_of(tmp_path, *lines, f"c.workdir = {str(tmp_path / 's')!r}")
  with pytest.raises(UserError, match=words):
    planning.make_plan(c, [EN], [], base.get_config())


def test_covariates_are_read(tmp_path):
  path = tmp_path / "far.csv"
  path.write_text("tuned,evaluated,value\nen,fi,0.5\nen,sw,0.75\n")
  given = {"name": "distance", "kind": "pair", "file": str(path)}
  assert planning.read_covariate(given)["values"] == {"en": {"fi": 0.5, "sw": 0.75}}
  path.write_text("tuned,value\nen,1\nfi,much\n")
  with pytest.raises(UserError, match="with a number as value"):
    planning.read_covariate(given | {"kind": "language"})
