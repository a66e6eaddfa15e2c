import dataclasses

import numpy as np
import pytest
from made_up import make_encoded

from mlit_jax.data.ledger import TRAINED, differences, make_ledger, planned_sums, with_trained
from mlit_jax.data.loader import load_batches
from mlit_jax.data.plan import make_plan
from mlit_jax.data.rows import Conversation, Message, RowSet

MIXTURE = {"counts": {"en": 6, "fi": 3}}


@pytest.fixture(scope="module")
def run():
  """9 examples of each of two epochs; Finnish has 2 rows, of which one stands twice; Swahili is read only."""
  examples = [("en", f"en-{i}", None, 3 + i) for i in range(8)]
  examples += [("fi", "fi-0", None, 7), ("fi", "fi-1", None, 4), ("sw", "sw-0", None, 5)]
  encoded = make_encoded(examples)
  encoded = dataclasses.replace(encoded, dropped={"fi": {"over_long": 2}, "zh": {"over_long": 1}})
  read = [lang for lang, *_ in examples] + ["fi", "fi", "zh"]
  rows = RowSet(
    [
      Conversation((Message("user", "?"),), lang, f"{i}", None, "f", f"f:{i}")
      for i, lang in enumerate(read)
    ],
    {("fi", "duplicate"): 3, ("?", "broken JSON"): 4, ("fi", "over_long"): 1},
  )
  plan = make_plan(
    encoded, MIXTURE, seed=5, rows_per_step=2, max_length=16, epochs=2, max_repeats=2
  )
  return rows, encoded, plan, make_ledger(rows, encoded, plan, mixture=MIXTURE, seed=5)


def test_the_head(run):
  _, encoded, plan, ledger = run
  assert {k: v for k, v in ledger.items() if k not in ("languages", "padding")} == {
    "hash": plan.hash, "seed": 5, "mixture": MIXTURE, "steps": plan.steps, "epochs": 2, "rows_per_step": 2,
    "max_length": 16,
  }  # fmt: skip
  tokens = encoded.lengths[plan.examples].sum()
  assert ledger["padding"] == pytest.approx(1 - tokens / (plan.steps * 2 * 16))


def test_the_columns_of_every_language(run):
  _, encoded, plan, ledger = run
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
    mine["tokens"] += int(encoded.offsets[i + 1] - encoded.offsets[i])
    mine["trained_tokens"] += int(
      encoded.trained[encoded.offsets[i] : encoded.offsets[i + 1]].sum()
    )
    mine["truncated"] += int(encoded.truncated[i])
  assert {lang: {k: e[k] for k in wanted[lang]} for lang, e in languages.items()} == wanted
  assert languages["fi"]["truncated"] > 0 < languages["en"]["truncated"]
  total = sum(e["trained_tokens"] for e in wanted.values())
  for lang, e in languages.items():
    assert e["share_of_trained_tokens"] == pytest.approx(wanted[lang]["trained_tokens"] / total)
    assert e["bytes_per_token"] == (3.0 if e["tokens"] else None)


def test_sums_of_the_first_steps_are_those_of_the_batches(run):
  """What the device counts: `trained` after each step."""
  _, encoded, plan, _ = run
  counted = {name: {} for name in TRAINED}
  for step, batch in enumerate(load_batches(encoded, plan, 0), start=1):
    for number, lang in enumerate(encoded.languages):
      here = (batch.language == number) & (batch.segments > 0)
      for name, value in (
        ("examples", (here & (batch.positions == 0)).sum()),
        ("tokens", here.sum()),
        ("trained_tokens", batch.weights[here].sum()),
      ):
        if value:
          counted[name][lang] = counted[name].get(lang, 0) + int(value)
    assert planned_sums(encoded, plan, step) == counted
  assert planned_sums(encoded, plan) == counted
  assert planned_sums(encoded, plan, 0) == {name: {} for name in TRAINED}


def test_differences_name_language_column_and_both_numbers(run):
  _, encoded, plan, ledger = run
  sums = planned_sums(encoded, plan)
  done = with_trained(ledger, sums)
  assert differences(done) == []
  assert done["languages"]["fi"]["trained"] == {name: sums[name]["fi"] for name in TRAINED}
  assert done["languages"]["sw"]["trained"] == dict.fromkeys(TRAINED, 0)
  assert "trained" not in ledger["languages"]["fi"]  # the planned one is left as it was

  short = {name: dict(by_lang) for name, by_lang in sums.items()}
  short["examples"]["fi"] -= 1
  short["tokens"].pop("en")
  short["trained_tokens"]["sw"] = 2
  assert differences(with_trained(ledger, short)) == [
    f"en: tokens planned {sums['tokens']['en']}, trained 0",
    "fi: examples planned 6, trained 5",
    "sw: trained_tokens planned 0, trained 2",
  ]


def test_the_ledger_is_plain_json(run):
  import json

  *_, ledger = run
  assert json.loads(json.dumps(ledger)) == ledger
  assert not any(
    isinstance(v, np.generic) for e in ledger["languages"].values() for v in e.values()
  )
