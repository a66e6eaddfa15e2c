"""Random data, mixtures, batch sizes, hosts and kill points: what has to hold whatever they are."""

import collections
import dataclasses
import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
from made_up import language_of, make_encoded

from mlit_jax.data import mixture as mixtures
from mlit_jax.data.choice import take_stock
from mlit_jax.data.encoded import COLUMNS
from mlit_jax.data.ledger import planned_sums
from mlit_jax.data.loader import load_batches
from mlit_jax.data.plan import make_plan

LANGUAGES = ("ar", "cs", "en", "fi", "he", "hi", "sr-Latn", "sw", "th", "yue", "zh", "zu")
LENGTH = 24
SOURCES = ("lima", "dolly")

settings = hypothesis.settings(
  deadline=None, max_examples=80, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)  # fmt: skip


@st.composite
def made_data(draw):
  """Encoded rows of some languages: their numbers, lengths, parallel groups and sources are random."""
  languages = draw(st.lists(st.sampled_from(LANGUAGES), min_size=1, max_size=6, unique=True))
  rows = {lang: draw(st.integers(1, 25)) for lang in languages}
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  longest = draw(st.sampled_from([2, 7, LENGTH]))
  of_group = draw(st.sampled_from([0, 1, 2]))  # rows of one parallel group in each language
  examples = [
    (
      lang,
      f"{lang}-{i}",
      f"g{i // of_group}" if of_group else None,
      int(rng.integers(1, longest + 1)),
    )
    for lang, number in rows.items()
    for i in range(number)
  ]
  order = rng.permutation(len(examples))  # files need not be sorted by language
  of = {name: int(rng.integers(2)) for _, name, *_ in examples}
  return make_encoded([examples[i] for i in order], sources=SOURCES, source_of=of.__getitem__), rows


@st.composite
def made_mixture(draw, encoded, rows: dict[str, int], repeats: int):
  """A mixture of any kind that these rows can meet, with so many repeats of each at most."""
  languages, most = sorted(rows), {lang: n * repeats for lang, n in rows.items()}
  base = draw(st.sampled_from(languages))
  others = [lang for lang in languages if lang != base]
  few = min((most[lang] for lang in others), default=0) * len(others)
  kinds = ["counts", "sources", "uniform", "temperature", "unimax", "shares"]
  kind = draw(st.sampled_from(kinds + (["star", "pinch", "replace", "augment"] if few else [])))
  some = {lang: draw(st.integers(0, n)) for lang, n in most.items()}
  if not any(some.values()):
    some[base] = 1
  if kind == "counts":
    return {"counts": some}
  if kind == "sources":
    stock = take_stock(encoded).amounts["examples"]
    parts = {s: stock.get((base, s), 0) for s in SOURCES if stock.get((base, s))}
    split = {s: draw(st.integers(1, n * repeats)) for s, n in parts.items()}
    return {"counts": some | {base: split}}
  if kind == "star":
    return {"counts": {base: draw(st.integers(1, most[base])), "*": draw(st.integers(1, few))}}
  if kind == "uniform":
    return {"uniform": {"total": draw(st.integers(1, min(most.values()) * len(languages)))}}
  if kind == "pinch":  # of all languages, the base included, as many as the smallest can give
    total = draw(st.integers(1, min(most.values())))
    return {"pinch": {"percent": draw(st.integers(0, 100)), "base": base, "total": total}}
  if kind in ("replace", "augment"):
    added = draw(st.integers(1, few))
    total = draw(st.integers(1, most[base])) + (added if kind == "replace" else 0)
    return {kind: {"base": base, "total": total, "with": {"*": added}}}
  if kind == "temperature":
    hot = draw(st.sampled_from([0.5, 1, 3.3, 100]))
    return {"temperature": hot, "total": draw(st.integers(1, sum(most.values())))}
  if kind == "unimax":
    budget = draw(st.integers(1, sum(most.values())))
    return {"unimax": {"budget": budget, "max_repeats": repeats}}
  return {"shares": {base: 0.5, **{lang: 0.5 / len(others) for lang in others}} if others else {base: 1.0}}  # fmt: skip


@st.composite
def made_plan(draw, packing=None):
  encoded, rows = draw(made_data())
  repeats = draw(st.sampled_from([1, 1, 3]))
  spec = draw(made_mixture(encoded, rows, repeats))
  kwargs = dict(
    seed=draw(st.integers(0, 2**31)),
    rows_per_step=draw(st.sampled_from([4, 8, 12])),
    max_length=LENGTH,
    epochs=draw(st.integers(1, 3)),
    packing=draw(st.booleans()) if packing is None else packing,
    groups=draw(st.sampled_from(["together", "independent"])),
    max_repeats=repeats,
  )
  plan = make_plan(encoded, spec, **kwargs)
  hypothesis.note((rows, spec, kwargs))
  return encoded, spec, repeats, kwargs, plan


def as_asked(spec, encoded, repeats) -> dict[str, int]:
  """Examples of each language, by the words of the spec where they say it, else as the mixture resolves."""
  amounts = mixtures.resolve(spec, take_stock(encoded), max_repeats=repeats)
  counts = collections.Counter()
  for (lang, _), n in amounts.of.items():
    counts[lang] += n
  kind, body = next(iter(spec.items()))
  if kind == "counts":
    body = {lang: sum(n.values()) if isinstance(n, dict) else n for lang, n in body.items()}
    stated = {lang: n for lang, n in body.items() if lang != "*" and n}
    assert {lang: counts[lang] for lang in stated} == stated
    assert sum(counts.values()) == sum(body.values())
  elif kind == "unimax":
    assert sum(counts.values()) == body["budget"]
  elif kind in ("uniform", "pinch", "replace"):
    assert sum(counts.values()) == body["total"]
  elif kind == "augment":
    assert sum(counts.values()) == body["total"] + body["with"]["*"]
  elif kind == "temperature":
    assert sum(counts.values()) == spec["total"]
  return counts


@hypothesis.given(made_plan())
@settings
def test_exact_counts_and_each_example_once_an_epoch(made):
  """As often as it must where an example repeats; and in no row more than fits, in none of two epochs."""
  encoded, spec, repeats, kwargs, plan = made
  asked = as_asked(spec, encoded, repeats)
  epochs = plan.examples.reshape(kwargs["epochs"], -1)
  ends = set(plan.row_starts.tolist())
  for number, epoch in enumerate(epochs, start=1):
    assert collections.Counter(language_of(encoded, i) for i in epoch) == asked
    assert number * len(epoch) in ends
    times = collections.Counter(epoch.tolist())
    for lang, count in asked.items():
      if not isinstance(spec.get("counts", {}).get(lang), dict):
        check_repeats(encoded, times, encoded.language == encoded.languages.index(lang), count)
    for (lang, source), count in split_by_source(spec).items():
      here = encoded.language == encoded.languages.index(lang)
      check_repeats(encoded, times, here & (encoded.source == SOURCES.index(source)), count)
    assert times.keys() == set(epochs[0].tolist())
  rows = [row for step in range(plan.steps) for row in plan.rows(step)]
  assert max(int(encoded.lengths[row].sum()) for row in rows) <= LENGTH
  np.testing.assert_array_equal(np.concatenate(rows), plan.examples)


def split_by_source(spec) -> dict[tuple[str, str], int]:
  return {
    (lang, source): n
    for lang, of in spec.get("counts", {}).items()
    if isinstance(of, dict)
    for source, n in of.items()
  }


def check_repeats(encoded, times, here, count):
  """Of the rows `here`, `count` in all: every one stands before one stands again."""
  numbers = [times[i] for i in np.flatnonzero(here) if times[i]]
  rows = int(here.sum())
  assert sum(numbers) == count and len(numbers) == min(count, rows)
  assert max(numbers) <= -(-count // rows) and (count < rows or min(numbers) >= count // rows)


@hypothesis.given(made_plan(packing=False))
@settings
def test_every_prefix_is_within_one_example_of_the_shares(made):
  """Of languages in the epoch, and of the sources in their language."""
  encoded, spec, _, kwargs, plan = made
  for epoch in plan.examples.reshape(kwargs["epochs"], -1):
    for lang in {language_of(encoded, i) for i in epoch}:
      check_prefixes(encoded.language[epoch] == encoded.languages.index(lang))
    for lang, source in split_by_source(spec):
      of_language = epoch[encoded.language[epoch] == encoded.languages.index(lang)]
      check_prefixes(encoded.source[of_language] == SOURCES.index(source))


def check_prefixes(mine):
  """|seen - t * count / total| < 1 after every t, in whole numbers."""
  total, places = len(mine), np.arange(1, len(mine) + 1)
  assert (np.abs(np.cumsum(mine) * total - places * mine.sum()) < total).all()


@st.composite
def made_lives(draw):
  """How a run is started and killed: [(rows of each process, steps that it takes, steps since it was saved)]."""
  made = draw(made_plan())
  rows = made[-1].rows_per_step
  lives = []
  for _ in range(draw(st.integers(1, 4))):
    hosts = draw(st.sampled_from([n for n in (1, 2, 3, 4, rows) if rows % n == 0]))
    order = np.arange(rows)
    if draw(st.booleans()):  # as on a slice of a torus, where a host's rows lie apart
      order = np.random.default_rng(draw(st.integers(0, 99))).permutation(rows)
    parts = [np.sort(part) for part in np.split(order, hosts)]
    lives.append((parts, draw(st.integers(0, 12)), draw(st.integers(0, 3))))
  return made, lives


@hypothesis.given(made_lives())
@settings
def test_killed_anywhere_and_gone_on_with_on_any_hosts_it_is_the_run(made):
  """Each life begins at the last checkpoint of the one before, on another number of hosts; the last one ends.

  What the processes are given together is the plan's batch, token by token; what counts in the end, steps
  taken twice but once, is each example as often as the plan has it.
  """
  (encoded, _, _, _, plan), lives = made
  taken: dict[int, collections.Counter] = {}  # step -> examples, of the life that took it last
  step = 0
  for number, (parts, steps, since_saved) in enumerate(lives):
    left = plan.steps - step if number == len(lives) - 1 else min(steps, plan.steps - step)
    loaders = [load_batches(encoded, plan, step, rows) for rows in parts]
    for now in range(step, step + left):
      whole = np.zeros((plan.rows_per_step, LENGTH), np.int64)
      for rows, loader in zip(parts, loaders, strict=True):
        whole[rows] = next(loader).tokens
      taken[now] = examples_in(encoded, whole)
      for row, examples in zip(whole, plan.rows(now), strict=True):
        tokens = np.concatenate([encoded.tokens_of(i) for i in examples] or [np.zeros(0, int)])
        np.testing.assert_array_equal(row, np.pad(tokens, (0, LENGTH - len(tokens))))
    if number == len(lives) - 1:
      assert all(next(loader, None) is None for loader in loaders)  # and no step more
    step = max(0, step + left - since_saved)
  assert sorted(taken) == list(range(plan.steps))
  total = sum(taken.values(), collections.Counter())
  assert total == collections.Counter(plan.examples.tolist())
  sums = collections.Counter()
  for i, n in total.items():
    sums[f"{language_of(encoded, i)}/{SOURCES[encoded.source[i]]}"] += n
  assert planned_sums(encoded, plan)["examples"] == sums


def examples_in(encoded, tokens) -> collections.Counter:
  """Which examples begin in a batch: every token of made-up data is a number of its own."""
  first = {int(encoded.tokens[start]): i for i, start in enumerate(encoded.starts)}
  return collections.Counter(first[t] for t in tokens.flat if t in first)


@hypothesis.given(made_plan(), st.integers(0, 2**32 - 1))
@settings
def test_the_plan_is_that_of_its_arguments_in_any_order_of_rows(made, shuffle):
  """Made again it is the same to the last number; of the same rows in another order, the same by name."""
  encoded, spec, _, kwargs, plan = made
  again = make_plan(encoded, spec, **kwargs)
  np.testing.assert_array_equal(plan.examples, again.examples)
  np.testing.assert_array_equal(plan.row_starts, again.row_starts)
  assert plan.hash == again.hash
  order = np.random.default_rng(shuffle).permutation(len(encoded))
  other = make_plan(reordered(encoded, order), spec, **kwargs)
  np.testing.assert_array_equal(order[other.examples], plan.examples)
  assert other.hash == plan.hash  # the fingerprint of the files apart, which is the same here


def reordered(encoded, order):
  columns = ("ids", *COLUMNS)
  return dataclasses.replace(encoded, **{name: getattr(encoded, name)[order] for name in columns})


@hypothesis.given(made_plan(), st.integers(1, 40))
@settings
def test_steps_are_the_beginning_of_epochs(made, steps):
  encoded, spec, _, kwargs, whole = made
  cut = make_plan(encoded, spec, **kwargs | {"epochs": 0, "steps": steps})
  assert cut.steps == steps
  rows = [cut.rows(step) for step in range(min(steps, whole.steps - 1))]
  for step, mine in enumerate(rows):
    for a, b in itertools.zip_longest(mine, whole.rows(step)):
      np.testing.assert_array_equal(a, b)
