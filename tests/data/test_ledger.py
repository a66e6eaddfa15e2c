import dataclasses

import numpy as np
import pytest
from made_up import make_encoded

from mlit_jax.data.ledger import TRAINED, differences, make_ledger, planned_sums, with_trained
from mlit_jax.data.loader import load_batches
from mlit_jax.data.plan import make_plan

MIXTURE = {"counts": {"en": 6, "fi": 3}}


@pytest.fixture(scope="module")
def run():
  """9 examples of each of two epochs; Finnish has 2 rows, of which one stands twice; Swahili is read only.

  English comes from two sources.
  """
  examples = [("en", f"en-{i}", None, 3 + i) for i in range(8)]
  examples += [("fi", "fi-0", None, 7), ("fi", "fi-1", None, 4), ("sw", "sw-0", None, 5)]
  encoded = make_encoded(
    examples, sources=("rows", "more"), source_of=lambda name: int(name in ("en-1", "en-6"))
  )
  encoded = dataclasses.replace(
    encoded,
    rows_read={
      "en": {"rows": 6, "more": 2}, "fi": {"rows": 8}, "sw": {"rows": 1}, "zh": {"rows": 1},
      "?": {"rows": 4},
    },
    dropped={
      "fi": {"over_long": 3, "duplicate": 3}, "zh": {"over_long": 1}, "?": {"broken JSON": 4},
    },
    flagged={"fi": {"wrong script": 1}},
    language_judged={"en": 3, "fi": 2},
    language_judged_every=2,
  )  # fmt: skip
  plan = make_plan(
    encoded, MIXTURE, seed=5, rows_per_step=2, max_length=16, epochs=2, max_repeats=2
  )
  ledger = make_ledger(encoded, plan, mixture=MIXTURE, seed=5, made_from={"a.jsonl": "12"})
  return encoded, plan, ledger


def test_the_head(run):
  encoded, plan, ledger = run
  assert {k: v for k, v in ledger.items() if k not in ("languages", "padding", "stages")} == {
    "hash": plan.hash, "made_from": {"a.jsonl": "12"}, "seed": 5, "mixture": MIXTURE, "steps": plan.steps,
    "epochs": 2, "rows_per_step": 2, "max_length": 16, "language_judged_every": 2,
  }  # fmt: skip
  assert ledger["stages"] == [
    {
      "mixture": MIXTURE, "first_step": 0, "steps": plan.steps, "epochs": 2, "unit": "examples",
      "asked": {"en": 6, "fi": 3}, "per_epoch": {"en": 6, "fi": 3},
    }
  ]  # fmt: skip
  tokens = encoded.lengths[plan.examples].sum()
  assert ledger["padding"] == pytest.approx(1 - tokens / (plan.steps * 2 * 16))


def test_the_columns_of_every_language(run):
  encoded, plan, ledger = run
  languages = ledger["languages"]
  assert list(languages) == ["?", "en", "fi", "sw", "zh"]
  counted = {lang: (e["rows_read"], e["dropped"]) for lang, e in languages.items()}
  assert counted == {
    "?": (4, {"broken JSON": 4}),
    "en": (8, {}),
    "fi": (8, {"duplicate": 3, "over_long": 3}),
    "sw": (1, {}),
    "zh": (1, {"over_long": 1}),
  }
  planned = {
    lang: [e[k] for k in ("per_epoch", "chosen", "examples", "repeats")]
    for lang, e in languages.items()
  }
  assert planned == {
    "?": [0, 0, 0, 0],
    "en": [6, 6, 12, 6],
    "fi": [3, 2, 6, 4],
    "sw": [0, 0, 0, 0],
    "zh": [0, 0, 0, 0],
  }

  # Token by token for the rest.
  wanted = {lang: dict(tokens=0, trained_tokens=0, truncated=0) for lang in languages}
  for i in plan.examples:
    mine = wanted[encoded.languages[encoded.language[i]]]
    mine["tokens"] += len(encoded.tokens_of(i))
    mine["trained_tokens"] += int(encoded.trained_of(i).sum())
    mine["truncated"] += int(encoded.truncated[i])
  assert {lang: {k: e[k] for k in wanted[lang]} for lang, e in languages.items()} == wanted
  assert languages["fi"]["truncated"] > 0 < languages["en"]["truncated"]
  total = sum(e["trained_tokens"] for e in wanted.values())
  for lang, e in languages.items():
    assert e["share_of_trained_tokens"] == pytest.approx(wanted[lang]["trained_tokens"] / total)
    assert e["bytes_per_token"] == (3.0 if e["tokens"] else None)


def test_sums_of_the_first_steps_are_those_of_the_batches(run):
  """What the device counts: `trained` after each step."""
  encoded, plan, _ = run
  counted = {name: {} for name in TRAINED}
  for step, batch in enumerate(load_batches(encoded, plan, 0), start=1):
    for number, (lang, source) in enumerate(encoded.strata):
      here = (batch.language == number) & (batch.segments > 0)
      for name, value in (
        ("examples", (here & (batch.positions == 0)).sum()),
        ("tokens", here.sum()),
        ("trained_tokens", batch.weights[here].sum()),
      ):
        if value:
          key = f"{lang}/{source}"
          counted[name][key] = counted[name].get(key, 0) + int(value)
    assert planned_sums(encoded, plan, step) == counted
  assert planned_sums(encoded, plan) == counted
  assert planned_sums(encoded, plan, 0) == {name: {} for name in TRAINED}


def test_differences_name_language_column_and_both_numbers(run):
  encoded, plan, ledger = run
  sums = planned_sums(encoded, plan)
  done = with_trained(ledger, sums)
  assert differences(done) == []
  english = done["languages"]["en"]
  for name in TRAINED:
    parts = {source: of["trained"][name] for source, of in english["sources"].items()}
    assert parts == {"rows": sums[name]["en/rows"], "more": sums[name]["en/more"]}
    assert sum(parts.values()) == english["trained"][name] == english[name]
  assert done["languages"]["sw"]["trained"] == dict.fromkeys(TRAINED, 0)
  assert "trained" not in ledger["languages"]["fi"]  # the planned one is left as it was

  short = {name: dict(by_stratum) for name, by_stratum in sums.items()}
  short["examples"]["fi/rows"] -= 1
  short["tokens"].pop("en/more")
  short["trained_tokens"]["sw/rows"] = 2
  short["examples"]["zh/more"] = 1  # which the ledger does not have at all
  assert differences(with_trained(ledger, short)) == [
    f"en from more: tokens planned {sums['tokens']['en/more']}, trained 0",
    "fi from rows: examples planned 6, trained 5",
    "sw from rows: trained_tokens planned 0, trained 2",
    "zh from more: examples planned 0, trained 1",
  ]


def test_sources_that_share_a_language_stand_beside_one_another(run):
  *_, ledger = run
  sources = ledger["languages"]["en"]["sources"]
  assert {name: of["rows_read"] for name, of in sources.items()} == {"rows": 6, "more": 2}
  assert sum(of["examples"] for of in sources.values()) == 12 and sources["more"]["examples"] > 0
  assert ledger["languages"]["fi"]["sources"].keys() == {"rows"}
  assert ledger["languages"]["fi"]["flagged"] == {"wrong script": 1}
  judged = {lang: (e["language_judged"], e["available"]) for lang, e in ledger["languages"].items()}
  assert judged == {"?": (0, 0), "en": (3, 8), "fi": (2, 2), "sw": (0, 1), "zh": (0, 0)}


def test_the_ledger_is_plain_json(run):
  import json

  *_, ledger = run
  assert json.loads(json.dumps(ledger)) == ledger
  assert not any(
    isinstance(v, np.generic) for e in ledger["languages"].values() for v in e.values()
  )
