"""From verdicts to scores: pure functions of one table, a row for each prompt.

A prompt that both orders give to A scores 1, one that both give to B 0, every other 0.5: a tie, or
orders that disagree. The IF score is the mean over prompts in percent; 50 is parity with B. A prompt
with an unreadable verdict has no score and is counted.

With the gate on, the languages of the answers come first: an answer in the prompt's language beats
one in another, and two in other languages draw; only then do the verdicts count.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mlit_jax.evals.agreement import cohen_kappa
from mlit_jax.evals.judging.bias import (
  VerdictPair,
  attenuation,
  length_controlled_score,
  score_of,
)
from mlit_jax.evals.statistics import Figure, macro_figure, mean_figure, proportion_figure
from mlit_jax.metrics import MEAN, WORST

UNREAD = None  # in place of a winner


@dataclasses.dataclass(frozen=True)
class Judged:
  """All that is known of one prompt.

  winners: "a", "b", "tie" or None (unreadable) by order of showing, ("ab", winner) first; none at
  all where the answers are the same. faithful_a, faithful_b: None where the gate is off. other: the
  score that another judge gave, to compare with.
  """

  id: str
  lang: str
  group: str
  winners: tuple[tuple[str, str | None], ...]
  length_a: int
  length_b: int
  faithful_a: bool | None = None
  faithful_b: bool | None = None
  other: float | None = None
  pair: str = ""  # fingerprint of prompt and answers

  @property
  def score(self) -> float | None:
    return score_of([winner for _, winner in self.winners])

  @property
  def score_gated(self) -> float | None:
    if self.faithful_a is None or self.faithful_b is None:
      return None
    return gated(self.score, self.faithful_a, self.faithful_b)

  def row(self) -> dict:
    """A line of scores.jsonl."""
    return {
      "id": self.id,
      "lang": self.lang,
      "group_id": self.group,
      "score": self.score,
      "score_gated": self.score_gated,
      "winner_ab": dict(self.winners).get("ab"),
      "winner_ba": dict(self.winners).get("ba"),
      "faithful_a": self.faithful_a,
      "faithful_b": self.faithful_b,
      "length_a": self.length_a,
      "length_b": self.length_b,
      "pair": self.pair,
    }


def gated(score: float | None, faithful_a: bool, faithful_b: bool) -> float | None:
  """The score where answers in another language than the prompt's cannot win."""
  if faithful_a and faithful_b:
    return score
  return 0.5 if faithful_a == faithful_b else float(faithful_a)


def agreement_of(score: float, other: float) -> float:
  """1 for the same outcome, 0.5 if just one of the two is a tie, 0 for opposite ones."""
  return 1.0 - abs(score - other)


def length(text: str) -> int:
  """Characters, however they are composed."""
  return len(unicodedata.normalize("NFC", text.strip()))


def length_difference(a: int, b: int) -> float:
  """(a - b) / (a + b): from -1 (A is empty) over 0 to 1, in any script."""
  return (a - b) / (a + b) if a + b else 0.0


@dataclasses.dataclass(frozen=True)
class Metric:
  """A ratio of sums over prompts; `parts` gives (numerator, denominator) of one, or None: no part in it.

  bounds: the ends that the ratio of a prompt cannot leave, before it is scaled. worst: which end is bad, if one is.
  """

  parts: Callable[[Judged], tuple[float, float] | None]
  scale: float = 1.0
  bounds: tuple[float, float] = (0, 1)
  worst: Callable | None = None


def _score(x):
  return None if x.score is None else (x.score, 1)


def _score_gated(x):
  return None if x.score_gated is None else (x.score_gated, 1)


def _decided(x):
  return None if x.score in (None, 0.5) else (x.score, 1)


def _tie(x):
  return None if x.score is None else (x.score == 0.5, 1)


def _consistent(x):
  winners = [winner for _, winner in x.winners]
  if len(winners) < 2 or UNREAD in winners:
    return None
  return winners[0] == winners[1], 1


def _first_slot(x):
  chosen = [(order, winner) for order, winner in x.winners if winner in ("a", "b")]
  if not chosen:
    return None
  return sum(winner == order[0] for order, winner in chosen), len(chosen)


def _invalid(x):
  return (x.score is None, 1) if x.winners else None


def _agreement(x):
  if x.score is None or x.other is None:
    return None
  return agreement_of(x.score, x.other), 1


# The one list of what is reported, in this order; FITS stand among them.
METRICS = {
  "win_score": Metric(_score, scale=100.0, worst=min),
  "win_score_gated": Metric(_score_gated, scale=100.0, worst=min),
  "decided_win_rate": Metric(_decided, worst=min),
  "tie_rate": Metric(_tie),
  "order_consistency": Metric(_consistent, worst=min),
  "first_slot_rate": Metric(_first_slot),
  "invalid_rate": Metric(_invalid, worst=max),
  "length_difference": Metric(
    lambda x: (length_difference(x.length_a, x.length_b), 1), bounds=(-1, 1)
  ),
  "fidelity_a": Metric(lambda x: None if x.faithful_a is None else (x.faithful_a, 1), worst=min),
  "fidelity_b": Metric(lambda x: None if x.faithful_b is None else (x.faithful_b, 1), worst=min),
  "agreement": Metric(_agreement, worst=min),
}
# What needs all prompts of a language at once. The mean of these is that of the languages, without an interval.
FITS = ("win_score_length_controlled", "follows_position", "win_score_without_position", "kappa")
ORDER = (
  "win_score", "win_score_gated", FITS[0], "decided_win_rate", "tie_rate", "order_consistency", "first_slot_rate",
  *FITS[1:3], "invalid_rate", "length_difference", "fidelity_a", "fidelity_b", "agreement", FITS[3],
)  # fmt: skip


def summarise(table: Iterable[Judged], *, seed: int = 0) -> dict:
  """{lang: {metric: {"value", "n", "low", "high"}}}, and "mean" and "worst" among the langs.

  "mean" weighs languages equally and draws parallel prompts together; "worst" names its language.
  A metric that no prompt has a part in is left out.
  """
  table = sorted(table, key=lambda x: (x.lang, x.id))
  languages = sorted({x.lang for x in table})
  out: dict = {lang: {} for lang in [*languages, MEAN, WORST]}
  for name, metric in METRICS.items():
    rows = [(x, metric.parts(x)) for x in table]
    rows = [(x, parts) for x, parts in rows if parts is not None]
    if not rows:
      continue
    figures = {
      lang: _figure([p for x, p in rows if x.lang == lang], metric, seed) for lang in languages
    }
    for lang, figure in figures.items():
      out[lang][name] = dataclasses.asdict(figure)
    out[MEAN][name] = dataclasses.asdict(_mean(rows, languages, metric, seed))
    known = {lang: figure.value for lang, figure in figures.items() if figure.value is not None}
    if metric.worst and known:
      lang = metric.worst(known, key=lambda lang: (known[lang], lang))
      out[WORST][name] = {**dataclasses.asdict(figures[lang]), "lang": lang}
  fits = {lang: _fits([x for x in table if x.lang == lang], seed) for lang in languages}
  for name in FITS:
    figures = {lang: fits[lang][name] for lang in languages}
    if all(figure.value is None for figure in figures.values()):
      continue
    for lang, figure in figures.items():
      out[lang][name] = dataclasses.asdict(figure)
    values = [figure.value for figure in figures.values()]
    mean = None if None in values else float(np.mean(values))
    out[MEAN][name] = dataclasses.asdict(Figure(mean, sum(f.n for f in figures.values())))
  return {
    lang: {name: by_metric[name] for name in ORDER if name in by_metric}
    for lang, by_metric in out.items()
  }


def _fits(rows: Sequence[Judged], seed: int) -> dict[str, Figure]:
  """FITS of one language's prompts, over those that a judge was asked about and could be read."""
  asked = [x for x in rows if len(x.winners) == 2 and x.score is not None]
  pairs = [VerdictPair(x.id, x.lang, dict(x.winners)["ab"], dict(x.winners)["ba"]) for x in asked]
  bias = attenuation(pairs, seed=seed)
  scored = [x for x in rows if x.score is not None]
  controlled = length_controlled_score(
    [x.score for x in scored], [x.length_a - x.length_b for x in scored], seed=seed
  )
  both = [x for x in scored if x.other is not None]
  return {
    FITS[0]: _scaled(controlled, 100.0),
    FITS[1]: bias.follows_position,
    FITS[2]: _scaled(bias.without, 100.0),
    FITS[3]: cohen_kappa([x.score for x in both], [x.other for x in both], seed=seed),
  }


def _figure(parts, metric: Metric, seed: int) -> Figure:
  numerators, denominators = np.array(parts, np.float64).reshape(-1, 2).T
  if metric.bounds == (0, 1):
    figure = proportion_figure(numerators, denominators)
  else:
    figure = mean_figure(numerators / denominators, bounds=metric.bounds, seed=seed)
  return _scaled(figure, metric.scale)


def _scaled(figure: Figure, scale: float) -> Figure:
  ends = (None if x is None else scale * x for x in (figure.value, figure.low, figure.high))
  value, low, high = ends
  return Figure(value, figure.n, low, high)


def _mean(rows, languages, metric: Metric, seed: int) -> Figure:
  """None where a language has nothing to say: a mean of the others would be of other languages."""
  groups = {group: i for i, group in enumerate(dict.fromkeys(x.group for x, _ in rows))}
  num_GL = np.zeros((len(groups), len(languages)))
  den_GL = np.full((len(groups), len(languages)), np.nan)
  for x, (numerator, denominator) in rows:
    cell = groups[x.group], languages.index(x.lang)
    num_GL[cell] += numerator
    den_GL[cell] = np.nan_to_num(den_GL[cell]) + denominator
  figure = macro_figure(num_GL, den_GL, seed=seed, bounds=metric.bounds)
  return dataclasses.replace(_scaled(figure, metric.scale), n=len(rows))
