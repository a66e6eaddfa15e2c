import collections
import dataclasses
import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from made_up import examples_of, language_of, make_encoded, names_of

from mlit_jax.data.hashing import stable_hash
from mlit_jax.data.loader import load_batches
from mlit_jax.data.order import interleave as interleave_sizes
from mlit_jax.data.plan import make_plan
from mlit_jax.errors import UserError

LENGTH = 32
ROWS = {"ar": 30, "en": 90, "fi": 40, "hi": 30, "zh": 30}
MIXTURE = {"counts": {"en": 60, "*": 30}}


def plan_of(encoded=None, spec=MIXTURE, **kwargs):
  encoded = encoded or make_encoded(examples_of(ROWS))
  kwargs = dict(seed=0, rows_per_step=4, max_length=LENGTH) | kwargs
  return make_plan(encoded, spec, **({"epochs": 1} if "steps" not in kwargs else {}) | kwargs)


def ids(encoded, plan):
  return names_of(encoded, plan.examples)


def interleave(counts):
  """Languages of items of size 1, by name."""
  languages = sorted(counts)
  order = interleave_sizes([np.ones(counts[lang], int) for lang in languages])
  return [languages[number] for number in order]


# --- the order of languages


def test_the_worked_example():
  assert interleave({"en": 4, "fi": 2}) == ["en", "en", "fi", "en", "en", "fi"]


def check_interleave(counts):
  order = interleave(counts)
  total = sum(counts.values())
  assert collections.Counter(order) == collections.Counter({k: v for k, v in counts.items() if v})
  seen = dict.fromkeys(counts, 0)
  for t, lang in enumerate(order, start=1):
    seen[lang] += 1
    # |seen - t * count / total| < 1, in whole numbers
    assert all(abs(seen[k] * total - t * count) < total for k, count in counts.items()), (t, counts)


@hypothesis.given(
  st.lists(st.one_of(st.integers(0, 3), st.integers(0, 80)), min_size=1, max_size=30)
)
@hypothesis.settings(deadline=None, max_examples=100, database=None)
def test_every_prefix_is_within_one_example_of_its_share(counts):
  check_interleave({f"l{i:02}": count for i, count in enumerate(counts)})


def test_every_prefix_of_a_pinch():
  check_interleave({"en": 4350} | {f"l{i:02}": 4 - (i > 6) for i in range(11)})


def test_the_order_does_not_depend_on_the_order_of_the_mapping():
  counts = {"zh": 3, "en": 7, "fi": 3, "ar": 3}
  assert interleave(counts) == interleave(dict(sorted(counts.items())))


# --- the plan


def test_each_chosen_example_stands_once_in_every_epoch_and_rows_never_span_epochs():
  encoded = make_encoded(examples_of(ROWS))
  plan = plan_of(encoded, epochs=3)
  (stage,) = plan.stages
  assert stage.counts == {"ar": 8, "en": 60, "fi": 8, "hi": 7, "zh": 7}
  assert plan.epochs == 3 and len(plan.examples) == 3 * 90
  epochs = plan.examples.reshape(3, 90)
  chosen = set(epochs[0].tolist())
  assert len(chosen) == 90
  for epoch in epochs:
    assert set(epoch.tolist()) == chosen
    languages = collections.Counter(language_of(encoded, i) for i in epoch)
    assert languages == stage.counts
  assert {0, 90, 180, 270} <= set(plan.row_starts.tolist())
  assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()


def test_rows_fit_steps_are_whole_and_the_last_one_is_filled_up_with_empty_rows():
  encoded = make_encoded(examples_of(ROWS))
  plan = plan_of(encoded, rows_per_step=7)
  rows = [row for step in range(plan.steps) for row in plan.rows(step)]
  assert len(rows) == plan.steps * 7 == len(plan.row_starts) - 1
  assert max(encoded.lengths[row].sum() for row in rows) <= LENGTH
  filled = [len(row) > 0 for row in rows]
  empty = filled.count(False)
  assert 0 < empty < 7 and not any(filled[-empty:]) and all(filled[:-empty])
  np.testing.assert_array_equal(np.concatenate(rows), plan.examples)


def test_without_packing_each_row_holds_one_example():
  plan = plan_of(packing=False)
  assert [len(row) for step in range(plan.steps) for row in plan.rows(step)] == [1] * 90 + [0, 0]
  # Then the run is the interleaved order itself, in every prefix.
  encoded = make_encoded(examples_of(ROWS))
  assert [language_of(encoded, i) for i in plan.examples] == interleave(plan.stages[0].counts)


def test_steps_and_epochs_give_the_same_order():
  whole = plan_of(epochs=3)
  for steps in (1, 3, whole.steps // 2, whole.steps - 1):
    cut = plan_of(steps=steps)
    assert cut.steps == steps and len(cut.row_starts) == 4 * steps + 1
    np.testing.assert_array_equal(cut.row_starts, whole.row_starts[: 4 * steps + 1])
    np.testing.assert_array_equal(cut.examples, whole.examples[: cut.row_starts[-1]])
  assert plan_of(steps=1).epochs == 1 and plan_of(steps=whole.steps - 1).epochs == 3


def test_repeats_stand_as_often_as_asked():
  encoded = make_encoded(examples_of({"en": 20, "sw": 5}))
  with pytest.raises(UserError, match="12 examples of 'sw'"):
    plan_of(encoded, {"counts": {"en": 20, "sw": 12}})
  plan = plan_of(encoded, {"counts": {"en": 20, "sw": 12}}, epochs=2, max_repeats=3)
  for epoch in plan.examples.reshape(2, 32):
    times = collections.Counter(epoch.tolist())
    assert [times[i] for i in range(20)] == [1] * 20
    assert sorted(times[i] for i in range(20, 25)) == [2, 2, 2, 3, 3]


def test_smaller_mixtures_are_contained_in_larger_ones():
  encoded = make_encoded(examples_of({"en": 90, "fi": 120}))
  few, many = (
    set(ids(encoded, plan_of(encoded, {"counts": {"en": 60, "fi": n}}))) for n in (40, 80)
  )
  assert len(few) == 100 and len(many) == 140 and few < many


def test_parallel_groups_are_chosen_together_or_independently():
  encoded = make_encoded(examples_of(ROWS, parallel=True))

  def groups(**kwargs):
    chosen = collections.defaultdict(set)
    for i in plan_of(encoded, {"uniform": {"total": 50}}, **kwargs).examples:
      chosen[language_of(encoded, i)].add(int(encoded.groups[i]))
    return chosen

  together = groups()
  assert together["ar"] == together["hi"] == together["zh"] and len(together["ar"]) == 10
  # English has more groups, which win some of the places; of the common ones it has the same first.
  common = {stable_hash("group", f"g{i}") for i in range(30)}
  assert together["en"] & common <= together["ar"]
  independent = groups(groups="independent")
  assert len({frozenset(chosen) for chosen in independent.values()}) == 5


@pytest.mark.parametrize("groups", ["together", "independent"])
def test_the_order_of_files_and_rows_does_not_matter(groups):
  """Not even where a language has several rows of one group."""
  examples = examples_of(ROWS, parallel=True)
  examples += [
    ("en", f"second-{i}", f"g{i}", 5) for i in range(90)
  ]  # 61 is odd: one pair is parted
  shuffled = random.Random(0).sample(examples, len(examples))
  one, two = make_encoded(examples), make_encoded(shuffled)
  spec = {"counts": {"en": 61, "*": 30}}
  first, second = (plan_of(e, spec, epochs=2, groups=groups) for e in (one, two))
  assert ids(one, first) == ids(two, second)
  np.testing.assert_array_equal(first.row_starts, second.row_starts)


def test_other_languages_do_not_change_which_rows_are_chosen():
  def finnish(rows):
    encoded = make_encoded([e for e in examples_of(ROWS) if e[0] in rows])
    plan = plan_of(encoded, {"counts": {"en": 10, "fi": 20}})
    return {x for x in ids(encoded, plan) if x.startswith("fi")}

  assert finnish({"en", "fi"}) == finnish(ROWS)


def test_the_seed_changes_the_choice_and_the_order():
  encoded = make_encoded(examples_of(ROWS))
  zero, one = (ids(encoded, plan_of(encoded, seed=seed)) for seed in (0, 1))
  assert set(zero) != set(one)
  few = make_encoded(examples_of(dict.fromkeys(ROWS, 30)))
  everything = {"counts": {"*": 150}}
  zero, one = (ids(few, plan_of(few, everything, seed=seed)) for seed in (0, 1))
  assert set(zero) == set(one) and zero != one


def test_a_seed_of_the_choice_alone():
  """The order changes with `seed`, the rows with `choice_seed`; without it `seed` says both."""
  encoded = make_encoded(examples_of(ROWS))
  plans = {
    (a, b): ids(encoded, plan_of(encoded, seed=a, choice_seed=b)) for a in (0, 1) for b in (0, 1)
  }
  assert plans[0, 0] == ids(encoded, plan_of(encoded, seed=0))
  assert plans[1, 1] == ids(encoded, plan_of(encoded, seed=1))
  assert sorted(plans[0, 0]) == sorted(plans[1, 0]) and plans[0, 0] != plans[1, 0]
  assert sorted(plans[0, 0]) != sorted(plans[0, 1])


def test_the_hash_tells_every_change_apart():
  encoded = make_encoded(examples_of(ROWS))
  other = dataclasses.replace(encoded, fingerprint="other bytes")
  hashes = [
    plan_of().hash,
    plan_of(other).hash,
    plan_of(seed=1).hash,
    plan_of(rows_per_step=8).hash,
    plan_of(max_length=LENGTH + 1).hash,
    plan_of(packing=False).hash,
    plan_of(epochs=2).hash,
    plan_of(spec={"counts": {"en": 61, "*": 30}}).hash,
  ]
  assert len(set(hashes)) == len(hashes)
  assert plan_of().hash == plan_of(make_encoded(examples_of(ROWS))).hash


# --- units, sources, stages


def test_shares_of_trained_tokens_are_met_over_any_200_steps():
  """0.5 % of all trained tokens; Hindi's rows are three times as long as English ones."""
  rng = np.random.default_rng(0)
  scale = {"en": 30, "fi": 45, "hi": 90, "sw": 50}
  number = {"en": 40_000, "fi": 6_000, "hi": 3_000, "sw": 800}
  examples = [
    (lang, f"{lang}-{i}", None, int(n))
    for lang in scale
    for i, n in enumerate(np.clip(rng.lognormal(0, 0.8, number[lang]) * scale[lang], 4, 256))
  ]
  encoded = make_encoded(examples)
  shares = {"en": 0.9, "fi": 0.06, "hi": 0.03, "sw": 0.01}
  spec = {"shares": shares, "unit": "trained_tokens", "total": 650_000, "max_repeats": 2}
  plan = make_plan(encoded, spec, seed=0, rows_per_step=16, max_length=256, epochs=1)
  assert plan.steps > 250
  of_step = np.zeros((plan.steps, len(encoded.languages)))
  for step in range(plan.steps):
    here = np.concatenate(plan.rows(step))
    of_step[step] = np.bincount(encoded.language[here], encoded.trained_counts[here], 4)
  sums = np.concatenate([np.zeros((1, 4)), np.cumsum(of_step, axis=0)])
  windows = sums[200:] - sums[:-200]
  found = windows / windows.sum(axis=1, keepdims=True)
  wanted = np.array([shares[lang] for lang in encoded.languages])
  assert np.abs(found - wanted).max() < 0.005, np.abs(found - wanted).max(axis=0)
  whole = sums[-1] / sums[-1].sum()
  assert np.abs(whole - wanted).max() < 0.0005


def test_sources_of_a_language_are_spread_over_the_epoch():
  encoded = make_encoded(
    examples_of({"en": 90, "fi": 40}),
    sources=("lima", "dolly"),
    source_of=lambda name: int(name.startswith("en") and int(name[3:]) % 2),
  )
  plan = plan_of(encoded, {"counts": {"en": {"lima": 10, "dolly": 40}, "fi": 20}}, packing=False)
  (stage,) = plan.stages
  assert stage.counts == {"en": 50, "fi": 20}
  assert stage.source_counts == {("en", "lima"): 10, ("en", "dolly"): 40, ("fi", "lima"): 20}
  english = [i for i in plan.examples if language_of(encoded, i) == "en"]
  seen = np.cumsum([encoded.source[i] == 0 for i in english])
  assert np.abs(seen - np.arange(1, 51) * 10 / 50).max() < 1


def test_stages_follow_one_another_each_from_a_step_of_its_own():
  encoded = make_encoded(examples_of(ROWS))
  mixture = [
    {"counts": {"en": 61}, "epochs": 1},
    {"counts": {"en": 20, "*": 31}, "steps": 9},
    {"uniform": {"languages": ["fi", "zh"], "total": 21}, "epochs": 2},
  ]
  plan = make_plan(encoded, mixture, seed=0, rows_per_step=4, max_length=LENGTH)
  one, two, three = plan.stages
  assert (one.first_step, two.first_step, three.first_step) == (
    0, one.steps, one.steps + 9,
  )  # fmt: skip
  assert two.steps == 9 and plan.steps == one.steps + 9 + three.steps
  assert one.epochs == 1 and three.epochs == 2 and two.epochs > 1
  assert plan.languages == sorted(ROWS)

  def languages(stage):
    rows = [plan.rows(s) for s in range(stage.first_step, stage.first_step + stage.steps)]
    return collections.Counter(
      language_of(encoded, i) for step in rows for row in step for i in row
    )

  assert languages(one) == {"en": 61} and languages(three) == {"fi": 22, "zh": 20}
  assert languages(two).keys() == set(ROWS)
  # Rows chosen in one stage are those of another, as far as both go; each epoch has its own order.
  first = set(ids(encoded, plan)[:61])
  english = {x for x in ids(encoded, plan)[61:] if x.startswith("en")}
  assert english < first
  alone = plan_of(encoded, {"counts": {"en": 61}})
  np.testing.assert_array_equal(plan.examples[:61], alone.examples)


hosts = st.sampled_from([1, 2, 4])


@hypothesis.given(
  st.dictionaries(st.sampled_from(sorted(ROWS)), st.integers(1, 30), min_size=1),
  st.integers(0, 2**31), st.integers(1, 3), hosts, st.integers(0, 40), st.booleans(),
)  # fmt: skip
@hypothesis.settings(deadline=None, max_examples=60, database=None)
def test_exact_once_an_epoch_the_same_on_any_hosts_from_any_step(
  counts, seed, epochs, num_hosts, killed_at, packing
):
  """Union over hosts equals the plan, and a run that goes on from a step sees what the whole run saw."""
  encoded = make_encoded(examples_of(ROWS))
  plan = plan_of(
    encoded, {"counts": counts}, seed=seed, epochs=epochs, rows_per_step=4, packing=packing
  )
  for epoch in plan.examples.reshape(epochs, -1):
    assert len(set(epoch.tolist())) == len(epoch)
    assert collections.Counter(language_of(encoded, i) for i in epoch) == counts
  per_host = 4 // num_hosts
  parts = [
    list(load_batches(encoded, plan, 0, slice(h * per_host, (h + 1) * per_host)))
    for h in range(num_hosts)
  ]
  first = min(killed_at, plan.steps)
  again = list(load_batches(encoded, plan, first))
  assert len(again) == plan.steps - first
  for step in range(first, plan.steps):
    together = np.concatenate([parts[h][step].tokens for h in range(num_hosts)])
    np.testing.assert_array_equal(together, again[step - first].tokens)


# --- the order is for ever

# A change here changes the order of every run that is under way. Make it only on purpose, and say so in
# the changelog.
GOLDEN = {
  "packed": "c6fbb666cc52adbe76d0afcee7ebe5c9",
  "unpacked": "3f1d36fdd10b37256399ff00d89dfc80",
  "steps": "e0fd9123733e38467f9939b138eb1c47",
  "groups": "23de98724254020ee0a907798647e953",
  "repeats": "e01b20b72ca96a221e71d487cdd46f8b",
  "disjoint": "85c9e57506e00aea72610d1e964f8c6f",
  "tokens": "da17c1f2eb118bba310158583c06739c",
  "temperature": "4f6d675063bb38e64f021cb935662e95",
  "unimax": "0d95d9ddc45b9ff7ddf8ea42c3966a29",
  "sources": "c66fb5f6dc45f15b4a26408c149afc25",
  "stages": "fe368f90048e11b71a5f395292c46f25",
  "forty random ones": "85b602b2306b2a9ecd45abf72af07b07",
}
GOLDEN_ORDER = "zh fi zh en zh ar fi zh en fi zh zh ar en fi zh"
GOLDEN_ROWS = [
  ["en-15", "en-0", "ar-14", "en-14", "en-73"],
  ["en-74", "en-75"],
  ["fi-16", "en-69", "en-80", "ar-8"],
  ["hi-16", "zh-11", "en-46", "en-77"],
]


def golden_plans():
  parallel = make_encoded(examples_of(ROWS, parallel=True))
  few = make_encoded(examples_of({"en": 20, "sw": 5}))
  two = make_encoded(
    examples_of(ROWS), sources=("lima", "dolly"), source_of=lambda name: int(name[3:]) % 2
  )
  in_tokens = {"shares": {"en": 0.7, "fi": 0.3}, "unit": "trained_tokens", "total": 2500}
  stages = [{"counts": {"en": 31}, "epochs": 1}, {"unimax": {"budget": 70}, "steps": 9}]
  return {
    "packed": plan_of(epochs=2, seed=7),
    "unpacked": plan_of(packing=False),
    "steps": plan_of(steps=30, spec={"pinch": {"percent": 40, "base": "en", "total": 80}}),
    "groups": plan_of(parallel, {"uniform": {"total": 50}}),
    "repeats": plan_of(few, {"counts": {"en": 20, "sw": 12}}, max_repeats=3),
    "disjoint": plan_of(parallel, {"counts": {"en": 40, "*": 30}}, groups="disjoint"),
    "tokens": plan_of(make_encoded(examples_of({"en": 300, "fi": 200})), in_tokens, epochs=2),
    "temperature": plan_of(spec={"temperature": 3.3, "total": 150}),
    "unimax": plan_of(few, {"unimax": {"budget": 45, "max_repeats": 4}}),
    "sources": plan_of(two, {"counts": {"en": {"lima": 10, "dolly": 20}, "*": 9}}),
    "stages": make_plan(
      two, stages, seed=0, rows_per_step=4, max_length=LENGTH, groups="independent"
    ),
  }


def golden_hashes():
  """By name; and one hash over forty plans of random rows and settings."""
  digest = hashlib.blake2b(digest_size=16)
  for seed in range(40):
    digest.update(random_plan(seed).hash.encode())
  found = {name: plan.hash for name, plan in golden_plans().items()}
  return found | {"forty random ones": digest.hexdigest()}


def random_plan(seed):
  rng = random.Random(seed)

  def number(n):  # of all that `random` has, random() alone is the same in every Python
    return 1 + int(rng.random() * n)

  rows = {lang: number(60) for lang in ROWS}
  examples = [
    (lang, f"{lang}-{i}", f"g{i}" if seed % 2 else None, number(LENGTH))
    for lang, n in rows.items()
    for i in range(n)
  ]
  spec = {"counts": {lang: number(2 * n) for lang, n in rows.items()}}
  length = {"steps": number(30)} if seed % 3 else {"epochs": number(3)}
  settings = {"rows_per_step": number(9), "packing": seed % 5 > 0, "max_repeats": 2}
  return plan_of(make_encoded(examples), spec, seed=number(2**31), **settings, **length)


def test_golden_plans():
  plans = golden_plans()
  assert golden_hashes() == GOLDEN
  assert " ".join(interleave({"ar": 2, "en": 3, "fi": 4, "zh": 7})) == GOLDEN_ORDER
  encoded = make_encoded(examples_of(ROWS))
  rows = plans["packed"].rows(0)
  assert [names_of(encoded, row) for row in rows] == GOLDEN_ROWS


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_another_process_makes_the_same_plans(hash_seed):
  code = "import test_plan; print(test_plan.golden_hashes())"
  paths = [str(Path(__file__).parent), *filter(None, sys.path)]
  env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(paths)}
  done = subprocess.run(
    [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.strip() == str(GOLDEN)
