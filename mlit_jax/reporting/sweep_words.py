"""Numbers and verdicts of a sweep in words: plain text, not yet escaped."""

from __future__ import annotations

from mlit_jax.evals.statistics import Figure
from mlit_jax.experiments import smallest
from mlit_jax.experiments.cells import BASE, MACRO, UNTESTED
from mlit_jax.experiments.curves import Drawn, Line
from mlit_jax.experiments.outcomes import TIES, WIN, WIN_GATED
from mlit_jax.experiments.replicates import Tested, Variance
from mlit_jax.experiments.sweep_files import SEEN, UNSEEN, Sweep
from mlit_jax.metrics import LOWER_IS_BETTER, WORST
from mlit_jax.training import report
from mlit_jax.training.card import METRIC_FORMAT

NAMES = {
  WIN: "win score", WIN_GATED: "win score after the language gate",
  "chrf_gated": "chrF after the language gate", "exact_gated": "exact after the language gate",
}  # fmt: skip
EXPLAINED = {
  WIN: "share of prompts on which a judge prefers the model to the baseline of the language, in percent; ties count half, 50 is parity",
  WIN_GATED: "the same, where an answer in another language than the prompt's cannot win; 50 is parity",
  TIES: "share of prompts that end in a tie, or with orders that disagree; it draws win scores to 50",
  "chrf": "overlap of an answer with the reference in character sequences, 0 to 100",
  "fidelity": "share of answers in the language of the prompt",
  "bits_per_byte": "how badly the model predicts the reference answers, per byte",
  "loss": "how badly the model predicts the reference answers, in nats per token",
  "exact": "share of answers equal to the reference",
  "coverage": "share of answers with enough text to tell their language",
  "line_pass": "share of these without a sentence in another language",
  "word_pass": "share of these, where Latin letters are foreign, without a stray Latin word",
  "stopped": "share of answers that ended by themselves",
}


def metric_name(metric: str) -> str:
  return NAMES.get(metric) or report.metric_name(metric)


def better(metric: str) -> str:
  if metric in UNTESTED:
    return "neither more nor less is better"
  return "lower is better" if metric in LOWER_IS_BETTER else "higher is better"


def group_name(group: str, sweep: Sweep) -> str:
  names = {
    MACRO: "all languages", SEEN: "seen languages", UNSEEN: "unseen languages",
    BASE: f"{sweep.base} (base)", WORST: "worst language",
  }  # fmt: skip
  return names[group]


def value_text(metric: str, value: float | None) -> str:
  if value is None:
    return "–"
  if metric.startswith((WIN, "chrf")):
    return f"{value:.1f}"
  form = METRIC_FORMAT.get(metric.removesuffix("_gated"), ".3f")
  return f"{value:.1%}" if form == ".0%" else f"{value:{form}}"


def tick_text(metric: str, value: float) -> str:
  """Of an axis: as short as it may be."""
  is_share = METRIC_FORMAT.get(metric) == ".0%"
  return f"{100 * value:g} %" if is_share else f"{value:g}"


def difference_text(metric: str, value: float | None) -> str:
  """With its sign; differences of shares are points."""
  if value is None:
    return "–"
  if METRIC_FORMAT.get(metric.removesuffix("_gated")) == ".0%":
    return f"{100 * value:+.1f} points"
  return f"{value:+.1f}" if metric.startswith((WIN, "chrf")) else f"{value:+.3f}"


def interval_text(show, figure: Figure | Tested, metric: str) -> str:
  if figure.low is None or figure.high is None:
    return ""
  return f"{show(metric, figure.low)} to {show(metric, figure.high)}"


def p_text(p: float | None) -> str:
  if p is None:
    return "–"
  return "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}" if p < 0.1 else f"p = {p:.2f}"


def x_text(x) -> str:
  return f"{x:g}" if isinstance(x, int | float) and not isinstance(x, bool) else str(x)


def test_name(test: Tested) -> str:
  if test.over == smallest.PROMPTS:
    return f"permutation test over {test.units} prompts"
  return f"paired t test over {test.units} {test.over}"


def verdict_text(line: Line, drawn: Drawn, *, is_headline: bool) -> tuple[str, str]:
  """(What the tests of a line say, the numbers behind it), in sentences."""
  v, label = line.verdict, drawn.curve.label
  if v is None:
    return "", ""
  if v.moves is None:
    return "Not tested, so no claim is made.", f"Why: {v.why}."
  over_prompts = v.over == smallest.PROMPTS
  what = "These models differ" if over_prompts else "There is an effect"
  too_many = not is_headline and not line.adjusted.rejected
  if v.says == smallest.NONE:
    claim = "No effect found."
  elif too_many:
    claim = f"No effect that stands among the many tests of this curve (with Holm's adjustment {p_text(line.adjusted.adjusted)})."
  elif v.says == smallest.FALLS:
    claim = f"{what}, for the worse: the other points lie below {x_text(v.first)}."
  elif v.says == smallest.RISES:
    claim = f"{what}. The smallest point not significantly below the best: {label} = {x_text(v.smallest)}."
  else:
    claim = f"{what}, but no single point is significantly above {x_text(v.first)}, so none is named as the smallest."
  beside = [] if too_many else _beside_texts(line, v)
  return claim, " ".join([_moves_text(line, v), *beside, *_limits(v, over_prompts)])


def _moves_text(line: Line, v: smallest.Verdict) -> str:
  ends = interval_text(difference_text, v.moves, line.metric)
  interval = f" (95 % interval of the difference {ends})" if ends else ""
  amount = difference_text(line.metric, v.moves.value)
  how = "worse" if v.moves.value < 0 else "better"
  return (
    f"Against {x_text(v.first)} the other points together are {how} by {amount.lstrip('+-')}"
    f"{interval}: {test_name(v.moves)}, {p_text(v.moves.p_two_sided)}."
  )


def _beside_texts(line: Line, v: smallest.Verdict) -> list[str]:
  """The points before the smallest one, each with what it lies below; and where the best mean is."""
  if v.smallest is None:
    return []
  out = []
  for beside in v.beside:
    if beside.x == v.smallest:
      break
    gap = difference_text(line.metric, beside.difference.value).lstrip("+-")
    p_value = p_text(beside.adjusted)
    out.append(
      f"At {x_text(beside.x)} it is {gap} worse than at {x_text(beside.above)} ({p_value})."
    )
  if v.best != v.smallest:
    out.append(
      f"The best mean is at {x_text(v.best)}; it is not significantly better than {x_text(v.smallest)}."
    )
  return out


def _limits(v: smallest.Verdict, over_prompts: bool) -> list[str]:
  out = []
  if v.left_out:
    out.append(
      f"Not tested, for want of three independent replicates that vary: {', '.join(map(x_text, v.left_out))}."
    )
  if over_prompts:
    out.append(
      "This speaks of these trained models on other prompts. It cannot tell an effect from what one training"
      " differs from the next: that takes three or more draws or seeds at every point."
    )
  return out


def variance_text(found: Variance) -> str:
  if found.share is None:
    return f"not told apart: {found.why}"
  interval = "" if found.low is None else f" (95 % interval {found.low:.0%} to {found.high:.0%})"
  more = f"; {found.why}" if found.why else ""
  return (
    f"{found.share:.0%} from the draw of examples{interval}, the rest from the training seed{more}"
  )
