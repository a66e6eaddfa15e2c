"""From the files of a sweep to cells, curves, matrices, gates and correlations."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from mlit_jax.errors import UserError
from mlit_jax.experiments import factors
from mlit_jax.experiments.cells import group_figure, group_value, metrics_of
from mlit_jax.experiments.curves import draw
from mlit_jax.experiments.factors import centred, correlate, correlations, pearson, spearman
from mlit_jax.experiments.gate import gates
from mlit_jax.experiments.outcomes import (
  FINISHED,
  MISSING,
  NOT_EVALUATED,
  UNFINISHED,
  Outcome,
  best_step,
  read_outcomes,
)
from mlit_jax.experiments.smallest import PROMPTS, RISES
from mlit_jax.experiments.sweep_files import Covariate, read_sweep
from mlit_jax.experiments.transfer import matrices
from mlit_jax.reporting.sweep import read_results
from mlit_jax.training.run_files import read_run
from tests.experiments.made_sweeps import pinch, write_judging, write_run, write_sweep

FEW = ("ar", "en", "cs")
EVEN = dict.fromkeys(FEW, 0.5)


def figure(value, n=10):
  return {"value": value, "n": n, "low": value - 1, "high": value + 1}


def outcome(id_, **by_metric):
  """by_metric: metric=(ar, en, cs)."""
  figures = {
    lang: {m: figure(float(values[k])) for m, values in by_metric.items() if values[k] is not None}
    for k, lang in enumerate(FEW)
  }
  return Outcome(id_, FINISHED, "", 20, figures)


def small_sweep(tmp_path, arms=None, runs=None, **more):
  arms = arms or {"P=0": (("en",), {"percent": 0}), "P=1": (("ar", "en"), {"percent": 1})}
  runs = runs or [("a", "P=0", 0, 0), ("b", "P=1", 0, 0), ("c", "P=1", 1, 1)]
  more = {"languages": list(FEW), "groups": {"seen": ["ar"], "unseen": ["cs"]}} | more
  return write_sweep(tmp_path / "sweep", arms, runs, **more)


@pytest.fixture(scope="module")
def jumped(tmp_path_factory):
  root = tmp_path_factory.mktemp("jumped")
  return pinch(root, percents=(0, 1, 10), replicates=4, languages=FEW)


# --- files


def test_a_planted_jump_is_found_from_the_files(jumped):
  results = read_results(jumped)
  assert results.faults == () and results.finished == 12
  drawn = results.curves[0]
  assert (drawn.xs, drawn.metrics[0]) == ((0, 1, 10), "chrf")
  found = drawn.line("chrf", "macro").verdict
  assert (found.says, found.smallest, found.moves.units) == (RISES, 1, 4)
  lower = drawn.line("bits_per_byte", "unseen").verdict
  assert (lower.says, lower.smallest) == (RISES, 1) and lower.moves.value > 0
  point = drawn.line("chrf", "macro").points[1]
  files = [jumped / f"../trained/p1r{k}/evals/20/heldout.json" for k in range(4)]
  values = [json.loads(path.read_text())["mean"]["chrf"]["value"] for path in files]
  assert point.figure.value == pytest.approx(np.mean(values)) and point.dots == pytest.approx(
    values
  )
  half = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) / 2
  assert point.figure.high == pytest.approx(point.figure.value + half)


def test_cells_know_group_and_tuning(jumped):
  results = read_results(jumped)
  by_key = {(c.arm, c.draw, c.lang, c.metric): c for c in results.cells}
  assert len(by_key) == len(results.cells) == 12 * 3 * len(results.metrics)
  cell = by_key["P=1", 2, "ar", "chrf"]
  assert (cell.group, cell.tuned, cell.run, cell.seed, cell.n) == ("seen", True, "p1r2", 2, 12)
  assert not by_key["P=1", 2, "cs", "chrf"].tuned and by_key["P=0", 2, "en", "chrf"].group == "base"
  assert cell.low < cell.value < cell.high


def test_runs_that_are_not_whole_are_named_and_not_averaged(tmp_path):
  runs = [(x, "P=0" if x == "a" else "P=1", k, k) for k, x in enumerate("abcdef")]
  folder = small_sweep(tmp_path, runs=runs)
  write_run(tmp_path / "trained" / "a", EVEN, languages=FEW)
  write_run(tmp_path / "trained" / "b", EVEN, languages=FEW)
  write_run(tmp_path / "trained" / "c", dict.fromkeys(FEW, 1.0), languages=FEW, finished=False)
  write_run(tmp_path / "trained" / "d", EVEN, languages=FEW, name="other")
  write_run(tmp_path / "trained" / "f", EVEN, languages=FEW)
  for path in (tmp_path / "trained/f/evals/20").iterdir():
    path.unlink()
  results = read_results(folder)
  states = {id_: o.state for id_, o in results.outcomes.items()}
  assert states == {
    "a": FINISHED, "b": FINISHED, "c": UNFINISHED, "d": NOT_EVALUATED, "e": MISSING, "f": NOT_EVALUATED,
  }  # fmt: skip
  said = "\n".join(results.faults)
  for text in (
    "run c (P=1, draw 2, seed 2) is unfinished: ended at step 10 of 20", "run d", "set heldout",
    "run e (P=1, draw 4, seed 4) is missing", "run f", "last evaluated at step 0 of 20",
  ):  # fmt: skip
    assert text in said
  point = results.curves[0].line("chrf", "macro").points[1]
  assert (len(point.dots), point.planned, point.over) == (1, 5, PROMPTS)
  assert {c.run for c in results.cells} == {"a", "b"}


def test_a_run_that_lacks_a_language_is_left_out_of_its_means_and_named(tmp_path):
  sweep = read_sweep(small_sweep(tmp_path))
  done = {
    "a": outcome("a", chrf=(1, 2, 3)), "b": outcome("b", chrf=(4, 5, 9)), "c": outcome("c", chrf=(4, 5, None))
  }  # fmt: skip
  drawn = draw(sweep.curves[0], sweep, done)
  assert drawn.line("chrf", "macro").points[1].dots == (6.0,)
  assert drawn.line("chrf", "seen").points[1].dots == (4.0, 4.0)
  assert drawn.left_out == ("run c lacks chrf in cs: not in the means of chrf over these",)


def test_the_best_step_is_that_of_the_saved_checkpoints(tmp_path):
  write_run(tmp_path / "run", EVEN, languages=FEW)
  found = json.loads((tmp_path / "run/evals/20/heldout.json").read_text())
  for step, loss in ((5, 1.0), (10, 2.0)):
    (tmp_path / f"run/evals/{step}").mkdir()
    found["mean"]["loss"]["value"] = loss
    (tmp_path / f"run/evals/{step}/heldout.json").write_text(json.dumps(found))
  run = read_run(tmp_path / "run")
  # step 20 has the loss of 0.5 good answers: 40 * 1.5 / 20 = 3
  assert best_step(run, tmp_path / "run", "heldout") == 5
  for step in (10, 20):
    (tmp_path / f"run/checkpoints/{step}").mkdir(parents=True)
  assert best_step(run, tmp_path / "run", "heldout") == 10
  run.config["checkpoint"] = {"best": "heldout/cs/chrf"}
  assert best_step(run, tmp_path / "run", "heldout") == 10  # equal: the earlier one
  run.config["checkpoint"] = {"best": "nothing/cs/chrf"}
  assert best_step(run, tmp_path / "run", "heldout") == 20


@pytest.mark.parametrize(
  "change, says",
  [
    ({"at": "first"}, "at is 'first'"),
    ({"groups": {"seen": ["en"]}}, "'en' in groups"),
    ({"groups": {"old": ["ar"]}}, "groups are seen and unseen"),
    ({"runs": [{"id": "a", "arm": "P=9", "draw": 0, "seed": 0, "workdir": "x"}]}, "the arm 'P=9'"),
    ({"runs": [{"id": i, "arm": "P=0", "draw": 0, "seed": 0, "workdir": "x"} for i in "ab"]}, "twice"),
    ({"arms": [{"name": "P=0"}]}, "lacks 'tuned'"),
    ({"curves": 3}, "is no sweep.json of ours"),
    ({"covariates": [{"name": "x", "kind": "odd", "values": {}}]}, "is of kind 'odd'"),
  ],
)  # fmt: skip
def test_what_is_wrong_with_a_sweep_file_is_said(tmp_path, change, says):
  folder = small_sweep(tmp_path)
  found = json.loads((folder / "sweep.json").read_text()) | change
  (folder / "sweep.json").write_text(json.dumps(found))
  with pytest.raises(UserError, match="sweep.json") as e:
    read_sweep(folder)
  assert says in str(e.value)


# --- means over languages


def test_means_and_worst_by_hand():
  o = outcome("a", chrf=(1, 2, 6), loss=(1, 2, 6))
  assert group_value(o, "chrf", FEW, "macro") == 3.0
  assert (group_value(o, "chrf", FEW, "worst"), group_value(o, "loss", FEW, "worst")) == (1.0, 6.0)
  assert group_value(outcome("a", chrf=(1, None, 6)), "chrf", FEW, "macro") is None
  found = group_figure(o, "chrf", FEW, "macro")  # no prompts: square and add, half = sqrt(3) / 3
  assert (found.low, found.high) == pytest.approx((3 - 3**-0.5, 3 + 3**-0.5))
  assert group_figure(o, "loss", FEW, "worst").high == 7.0


def test_translations_are_drawn_together_where_prompts_are_known(tmp_path):
  """Prompts that are hard in every language at once: the interval is wider than as if independent."""
  rng = np.random.default_rng(0)
  hard = rng.normal(50, 10, 30)
  half = 2.045 * hard.std(ddof=1) / 30**0.5
  prompts = {"chrf": {lang: {f"g{i}": hard[i] for i in range(30)} for lang in FEW}}
  figures = {
    lang: {
      "chrf": {"value": hard.mean(), "n": 30, "low": hard.mean() - half, "high": hard.mean() + half}
    }
    for lang in FEW
  }
  o = Outcome("a", FINISHED, "", 1, figures, prompts)
  joint = group_figure(o, "chrf", FEW, "macro")
  apart = group_figure(Outcome("a", FINISHED, "", 1, figures), "chrf", FEW, "macro")
  assert joint.high - joint.low > 1.5 * (apart.high - apart.low)


# --- matrix


def monolingual(tmp_path, **more):
  arms = {f"only {x}": ((x,), {}) for x in FEW}
  runs = [(f"{x}{s}", f"only {x}", 0, s) for x in FEW for s in range(2)]
  return read_sweep(small_sweep(tmp_path, arms, runs, curves=[], matrix=True, **more))


def test_a_matrix_by_hand(tmp_path):
  sweep = monolingual(tmp_path)
  done = {
    f"{x}{s}": outcome(f"{x}{s}", chrf=(10 * k + s, 20 + s, 30 + 3 * s))
    for k, x in enumerate(FEW)
    for s in range(2)
  }
  (found,) = matrices(sweep, done)
  entry = found.entries["only cs", "en"]
  assert (entry.figure.value, entry.figure.n, entry.own, entry.num_runs) == (20.5, 2, False, 2)
  half = stats.t.ppf(0.975, 1) * math.sqrt(0.5) / math.sqrt(2)
  assert entry.figure.high == pytest.approx(20.5 + half)
  assert found.entries["only cs", "cs"].own
  assert found.means["only cs"].value == pytest.approx(
    (20.5 + 20.5) / 2
  )  # ar 20.5 and en 20.5, without cs
  assert found.means["only ar"].value == pytest.approx((20.5 + 31.5) / 2)


def test_a_model_against_itself_is_50_by_definition(tmp_path):
  comparisons = [
    {"run": f"{a}{s}", "baseline": f"{b}0", "languages": [b], "out": f"judged/{a}{s}--{b}0"}
    for a in FEW for b in FEW for s in range(2) if a != b
  ]  # fmt: skip
  sweep = monolingual(tmp_path, comparisons=comparisons)
  for run in sweep.runs:
    write_run(run.workdir, EVEN, languages=FEW, prompts=4, likelihood=False)
  for c in sweep.comparisons[1:]:
    write_judging(c.out, c.run, c.languages, 0.3)
  done, faults = read_outcomes(sweep)
  assert faults == ["run ar0 against en0 in en: not judged yet"]
  assert metrics_of(sweep, done)[0] == "win_score_gated"
  found = next(m for m in matrices(sweep, done) if m.metric == "win_score")
  own = found.entries["only ar", "ar"]
  assert (own.figure.value, own.by_definition, own.figure.low) == (50.0, True, None)
  assert found.entries["only ar", "en"].num_runs == 1  # of two: ar0 is not judged
  assert found.lacking["only ar"] == () and found.means["only ar"].n > 2  # prompts of the one run
  assert found.entries["only cs", "en"].figure.value < 50


# --- gate


def test_the_gate_by_hand(tmp_path):
  sweep = read_sweep(small_sweep(tmp_path))
  prompts = {
    "chrf": {lang: {"g0": 40.0, "g1": 60.0} for lang in FEW},
    "chrf_gated": {"ar": {"g0": 0.0, "g1": 60.0}, "en": {"g0": 40.0, "g1": 60.0}, "cs": {"g0": 0.0, "g1": 0.0}},
  }  # fmt: skip
  done = dict.fromkeys("ab", Outcome("a", FINISHED, "", 1, {}, prompts))
  done["c"] = Outcome("c", UNFINISHED)
  rows = {(g.arm, g.group): g for g in gates(sweep, done)}
  assert rows["P=0", "seen"].before == 50 and rows["P=0", "seen"].after == 30
  assert rows["P=0", "unseen"].difference.value == -50
  row = rows["P=1", "macro"]
  assert (row.before, row.num_runs) == (50.0, 1)
  assert row.after == pytest.approx((30 + 50 + 0) / 3)
  assert (
    row.difference.value == pytest.approx(row.after - row.before)
    and row.difference.low < row.difference.value
  )


def test_gated_scores_come_from_the_records_of_fidelity(jumped):
  path = jumped / "../trained/p1r0/evals/20/generations.jsonl"
  rows = [r for r in map(json.loads, path.read_text().splitlines()) if r["lang"] == "cs"]
  wanted = np.mean([r["chrf"] if r["fidelity"]["right"] else 0 for r in rows])
  prompts = read_results(jumped).outcomes["p1r0"].prompts
  assert np.mean(list(prompts["chrf_gated"]["cs"].values())) == pytest.approx(wanted)
  assert 0 < wanted < np.mean(list(prompts["chrf"]["cs"].values()))


# --- covariates


LANGS = [f"l{k}" for k in range(8)]


def planted(strength, seed=0, n=8):
  rng = np.random.default_rng(seed)
  langs = LANGS[:n]
  near = rng.normal(0, 1, (n, n))
  near = near + near.T
  of_a, of_b = rng.normal(0, 1, n), rng.normal(0, 3, n)
  values = {
    (a, b): strength * near[i, j] + of_a[i] + of_b[j] + rng.normal(0, 0.5)
    for i, a in enumerate(langs) for j, b in enumerate(langs) if i != j
  }  # fmt: skip
  pair = {a: {b: near[i, j] for j, b in enumerate(langs) if j != i} for i, a in enumerate(langs)}
  return values, Covariate("near", "pair", pair)


def test_coefficients_are_those_of_scipy():
  x, y = [1.0, 2.0, 2.0, 5.0], [3.0, 1.0, 4.0, 9.0]
  assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
  assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
  assert np.isnan(pearson([1, 1], [2, 3]))


def test_a_planted_pair_covariate_is_found_more_surely_within_languages():
  values, covariate = planted(1.0)
  plain = correlate(covariate, values, "chrf")[0]
  within = correlate(covariate, centred(values), "chrf", True)[0]
  assert within.value > plain.value and within.p_value < 0.01 and within.low > 0
  assert (within.n, within.languages) == (56, 8) and "only 8 languages" in within.warning


def test_pairs_of_one_language_are_not_taken_as_independent(monkeypatch):
  """A covariate that only goes with the tuned language: 30 pairs, 6 languages' worth of evidence."""
  monkeypatch.setattr(factors, "NUM_DRAWS", 5)  # of the interval, which is not looked at
  claimed = []
  for seed in range(120):
    rng = np.random.default_rng(seed)
    values, _ = planted(0.0, seed, n=6)
    of = rng.normal(0, 1, 6)
    pair = {a: {b: of[i] for b in LANGS[:6] if b != a} for i, a in enumerate(LANGS[:6])}
    found = correlate(Covariate("x", "pair", pair), centred(values), "chrf", True)[0]
    claimed.append(found.p_value <= 0.05)
  assert np.mean(claimed) < 0.12  # 5 % and 3.5 deviations; pairs exchanged freely claim far more


def test_pairs_without_all_renamings_have_no_p():
  values, covariate = planted(1.0)
  del covariate.values["l0"]["l1"]
  found = correlate(covariate, values, "chrf")[0]
  assert found.p_value is None and found.n == 55 and found.low < found.value


def test_languages_against_their_mean_transfer():
  values = {(a, b): 2.0 * i for i, a in enumerate(LANGS) for b in LANGS if a != b}
  covariate = Covariate("share", "language", {a: float(i) for i, a in enumerate(LANGS)})
  found, rank = correlate(covariate, values, "chrf", base="l0")
  assert found.value == pytest.approx(1.0) and (found.n, found.languages) == (
    7,
    7,
  )  # without the base
  assert found.p_value == pytest.approx(2 / 5040) and rank.value == pytest.approx(1.0)
  values["l1", "l2"] = 30.0
  found = correlate(covariate, values, "chrf", base="l0")[0]
  z = math.atanh(found.value)
  assert found.low == pytest.approx(math.tanh(z - 1.959964 / 2), abs=1e-6)
  few = Covariate("share", "language", {a: 1.0 for a in LANGS[:3]})
  assert "too few" in correlate(few, values, "chrf")[0].warning


def test_correlations_take_the_arms_of_one_language(tmp_path):
  sweep = monolingual(
    tmp_path, covariates=[{"name": "x", "kind": "language", "values": dict.fromkeys(FEW, 1)}]
  )
  done = {run.id: outcome(run.id, chrf=(1, 2, 3)) for run in sweep.runs}
  found = correlations(sweep, done)
  assert len(found) == 4 and all(c.value is None and c.warning for c in found)
