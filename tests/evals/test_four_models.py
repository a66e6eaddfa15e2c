"""Four models whose order is known, by every headline score: perfect, always English, silent, an echo."""

import pytest
from test_evaluator import ASSETS

from mlit_jax.data.rows import read_sources
from mlit_jax.detectors import open_detector
from mlit_jax.evals import fidelity
from mlit_jax.evals.judging.scores import Judged
from mlit_jax.evals.judging.scores import summarise as summarise_judging
from mlit_jax.evals.summary import Record, score_responses, summarise

LANGUAGES = ("ar", "cs", "en", "he", "hi", "ru", "zh")
MODELS = ("perfect", "english", "silent", "echo")


@pytest.fixture(scope="module")
def rows():
  """{group: {language: (question, answer)}} of the bundled held-out rows."""
  out = {}
  for lang in LANGUAGES:
    for c in read_sources(
      {lang: [str(ASSETS / "instructions12" / "eval" / f"{lang}.jsonl")]}
    ).conversations:
      out.setdefault(c.group_id, {})[lang] = (c.messages[-2].content, c.messages[-1].content)
  return out


def says(model: str, of_group: dict, lang: str) -> str:
  question, answer = of_group[lang]
  return {"perfect": answer, "english": of_group["en"][1], "silent": "", "echo": question}[model]


@pytest.fixture(scope="module")
def figures(rows):
  detector = open_detector("", LANGUAGES)
  out = {}
  for model in MODELS:
    records = [
      Record(
        "held", lang, f"{group}-{lang}", group, prompt=of[lang][0], response=says(model, of, lang),
        reference=of[lang][1], stopped=model != "silent",
      )
      for group, of in rows.items()
      for lang in LANGUAGES
    ]  # fmt: skip
    out[model] = summarise(score_responses(records, detector))["held"]
  return out


@pytest.mark.parametrize("metric", ["fidelity", "chrf", "exact"])
def test_the_perfect_one_is_first_and_the_silent_one_last(figures, metric):
  values = {model: figures[model]["mean"][metric]["value"] for model in MODELS}
  assert values["perfect"] == max(values.values()) >= (100 if metric == "chrf" else 0.98)
  assert values["silent"] == min(values.values()) == 0
  assert values["perfect"] > 1.5 * max(v for m, v in values.items() if m != "perfect")
  assert figures["perfect"]["worst"][metric]["value"] > figures["english"]["worst"][metric]["value"]


def test_always_english_is_right_in_english_alone(figures):
  assert (
    figures["english"]["en"]["fidelity"]["value"] == figures["perfect"]["en"]["fidelity"]["value"]
  )
  assert all(
    figures["english"][lang]["fidelity"]["value"] == 0 for lang in LANGUAGES if lang != "en"
  )
  assert figures["echo"]["mean"]["fidelity"]["value"] == 0
  assert figures["silent"]["mean"]["coverage"]["value"] == 0


def test_the_win_score_ranks_them_with_the_gate_under_a_judge_that_loves_length(rows):
  """Against the English one, by whoever says more: without the gate a long answer in any language wins."""
  detector = open_detector("", LANGUAGES)
  scores, ungated = {}, {}
  for model in MODELS:
    keys = [(group, lang) for group in rows for lang in LANGUAGES]
    a = [says(model, rows[g], lang) for g, lang in keys]
    b = [says("english", rows[g], lang) for g, lang in keys]
    langs, prompts = [lang for _, lang in keys], [rows[g][lang][0] for g, lang in keys]
    right = [[v.right for v in fidelity.judge(texts, langs, detector, prompts)] for texts in (a, b)]
    table = []
    for i, (group, lang) in enumerate(keys):
      winner = "a" if len(a[i]) > len(b[i]) else "b" if len(a[i]) < len(b[i]) else "tie"
      winners = () if a[i] == b[i] else (("ab", winner), ("ba", winner))
      table.append(
        Judged(group, lang, group, winners, len(a[i]), len(b[i]), right[0][i], right[1][i])
      )
    found = summarise_judging(table)["mean"]
    scores[model], ungated[model] = found["win_score_gated"]["value"], found["win_score"]["value"]
  assert scores["perfect"] > 90 > scores["english"] == 50 > scores["echo"] > scores["silent"] - 1e-9
  assert ungated["english"] == 50 and ungated["perfect"] < scores["perfect"]
