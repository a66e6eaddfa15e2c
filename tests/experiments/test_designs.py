"""What each preset tunes on, against tables made by hand."""

import pytest

from configs.paper import (
  fig1_monolingual,
  fig3_pinch,
  fig4_unseen,
  fig5_languages,
  fig6_pairs,
  fig7_similarity,
  fig8_pretraining_share,
  ji2024,
  kew2023,
  protocol,
)
from mlit_jax.errors import UserError
from mlit_jax.experiments import designs

TWELVE = ["ar", "cs", "en", "es", "et", "fi", "he", "hi", "it", "ru", "sw", "zh"]


def arms_of(preset):
  found = preset.get_arms(preset.get_config())
  designs.check_names(found)
  return {arm.name: dict(arm.amounts) for arm in found}


def test_figure_1():
  assert arms_of(fig1_monolingual) == {lang: {lang: 4390} for lang in TWELVE}
  assert fig8_pretraining_share.get_arms is fig1_monolingual.get_arms


def test_figure_3():
  """4,390 * P/100 * 11/12, spread over eleven; what is left over goes to the first by name."""
  arms = arms_of(fig3_pinch)
  assert list(arms) == ["P=0", "P=1", *(f"P={p}" for p in range(10, 101, 10))]
  assert arms["P=0"] == {"en": 4390}
  assert arms["P=1"] == {"en": 4350} | dict.fromkeys(["ar", "cs", "es", "et", "fi", "he", "hi"], 4) | dict.fromkeys(["it", "ru", "sw", "zh"], 3)  # fmt: skip
  # 402.4, 804.8, 1207.25, 1609.7, 2012.1, 2414.5, 2816.9, 3219.3, 3621.75, 4024.2
  others = [402, 805, 1207, 1610, 2012, 2414, 2817, 3219, 3622, 4024]
  for percent, n in zip(range(10, 101, 10), others, strict=True):
    amounts = arms[f"P={percent}"]
    assert sum(amounts.values()) == 4390 and amounts["en"] == 4390 - n and len(amounts) == 12
    assert max(x for k, x in amounts.items() if k != "en") - min(amounts.values()) <= 1
  assert arms["P=100"]["en"] == 366  # a twelfth of 4,390


def test_figure_4():
  arms = arms_of(fig4_unseen)
  assert arms["P=1"] == {"en": 4353, "ar": 8, "fi": 8, "it": 7, "ru": 7, "sw": 7}  # 37
  assert arms["P=100"] == {"en": 732, "ar": 732, "fi": 732, "it": 732, "ru": 731, "sw": 731}
  c = fig4_unseen.get_config()
  assert sorted([*c.languages, *c.held_out]) == TWELVE


def test_figure_5():
  """A constant budget; three orders that begin with English and nest."""
  arms = arms_of(fig5_languages)
  assert len(arms) == 18 and {sum(a.values()) for a in arms.values()} == {4390}
  assert arms["2 languages, order 1"] == {"en": 2195, "ar": 2195}
  assert arms["2 languages, order 2"] == {"en": 2195, "fi": 2195}
  assert arms["2 languages, order 3"] == {"en": 2195, "it": 2195}
  assert arms["3 languages, order 1"] == {"en": 1463, "ar": 1464, "fi": 1463}
  for order in (1, 2, 3):
    inner: set = set()
    for n in range(1, 7):
      outer = arms[f"{n} language{'s' * (n > 1)}, order {order}"].keys()
      assert len(outer) == n and inner < outer
      inner = outer
    assert inner == set(protocol.SEEN)


def test_figure_6():
  arms = arms_of(fig6_pairs)
  pairs = {name: a for name, a in arms.items() if "+" in name}
  assert len(pairs) == 6 and len(arms) == 18
  assert sorted(lang for a in pairs.values() for lang in a) == TWELVE  # each language once
  assert pairs["cs+ru"] == {"cs": 2195, "ru": 2195}
  assert arms["zh"] == {"zh": 4390}


def test_figure_7():
  assert arms_of(fig7_similarity) == {x: {x: 4390} for x in ("ru", "sr", "hr", "sl", "pl", "sk", "cs")}  # fmt: skip
  script, subfamily = fig7_similarity.get_covariates(fig7_similarity.get_config())
  assert script["values"]["ru"] == {"sr": 1, "hr": 0, "sl": 0, "pl": 0, "sk": 0, "cs": 0}
  assert subfamily["values"]["sr"] == {"ru": 0, "hr": 1, "sl": 1, "pl": 0, "sk": 0, "cs": 0}


def test_kew_2023():
  """3,200 in all; 200 of another language at a time, then all but one."""
  arms = arms_of(kew2023)
  assert arms["en + 0 languages"] == {"en": 3200}
  assert arms["en + 1 language"] == {"en": 3000, "es": 200}
  assert arms["en + 3 languages"] == {"en": 2600, "es": 200, "ru": 200, "de": 200}
  everything = {"en": 2200, "es": 200, "ru": 200, "de": 200, "zh": 200, "fr": 200}
  assert arms["en + 5 languages"] == everything
  assert arms["without de"] == {k: v for k, v in everything.items() if k != "de"} | {"en": 2400}
  assert len(arms) == 11 and {sum(a.values()) for a in arms.values()} == {3200}


def test_ji_2024():
  """Every language adds its own."""
  arms = arms_of(ji2024)
  assert arms["1 language"] == {"en": 4390} and arms["2 languages"] == {"en": 4390, "zh": 4390}
  assert sum(arms["12 languages"].values()) == 12 * 4390
  assert sum(arms["without zh"].values()) == 5 * 4390 and "zh" not in arms["without zh"]
  assert len(arms) == 18


def test_augment_leaves_the_base_whole():
  arms = designs.pinch(["ar", "en", "fi"], "en", [0, 1, 100], 300, designs.AUGMENT)
  assert [dict(a.amounts) for a in arms] == [
    {"en": 300},
    {"en": 300, "ar": 1, "fi": 1},
    {"en": 300, "ar": 100, "fi": 100},
  ]


def test_baselines_are_added_where_they_lack():
  arms = designs.pinch(["ar", "en"], "en", [0, 10], 100)
  found = designs.with_baselines(arms, ["ar", "en", "fi"], 100)
  assert [(a.name, dict(a.amounts)) for a in found if a.is_baseline] == [
    ("only ar", {"ar": 100}),
    ("only fi", {"fi": 100}),
  ]


def test_mixtures_of_a_budget():
  assert designs.mixture({"en": 9, "fi": 0, "ar": 1}, "examples") == {"counts": {"ar": 1, "en": 9}}
  assert designs.mixture({"en": 900, "fi": 100}, "trained_tokens") == {
    "shares": {"en": 0.9, "fi": 0.1},
    "unit": "trained_tokens",
    "total": 1000,
  }


@pytest.mark.parametrize(
  "make, words",
  [
    (lambda: designs.pinch(["ar"], "en", [1], 10), "base language 'en'"),
    (lambda: designs.pinch(["en", "ar"], "en", [101], 10), "percent is 101"),
    (lambda: designs.pinch(["en", "ar"], "en", [1], 10, "swap"), "budget.design is 'swap'"),
    (lambda: designs.nested([["en", "ar"]], [3], 10), "3 languages are asked for"),
    (lambda: designs.nested([["en", "en"]], [1], 10), "names a language twice"),
    (lambda: designs.pairs([("en",)], 10), "a pair has two languages"),
    (lambda: designs.stepwise("en", ["fi", "ar"], 6, 10), "more than the total of 10"),
    (lambda: designs.check_names([designs.Arm("a", {}), designs.Arm("a", {})]), "two arms are named 'a'"),
  ],
)  # fmt: skip
def test_what_cannot_be_is_refused(make, words):
  with pytest.raises(UserError, match=words.replace("(", r"\(")):
    make()
