"""Steps whose numbers go wrong: those that are not finite, and those whose loss jumps. Said and written down.

nonfinite.jsonl   {"step": 58, "action": "skipped", "loss": "nan", "grad_norm": "nan", "languages": {"sw": "nan"},
                   "rows": [{"row": 3, "loss": "nan", "examples": [{"place": "sw.jsonl:17", "lang": "sw"}]}, ...]}
spikes.jsonl      {"step": 90, "loss": {"value": 5.1, "usual": 2.0, ...}, "languages": {"sw": {...}}, "rows": [...]}

All that is decided here comes from figures that every process has alike, as `row_losses` must be called by all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from mlit_jax.batch import Batch
from mlit_jax.errors import UserError
from mlit_jax.training import safety
from mlit_jax.training.events import Events
from mlit_jax.training.spikes import Figure, Spike, Spikes, language_losses
from mlit_jax.training.step import StepMetrics

POLICIES = ("stop", "skip")
NONFINITE, SPIKES = "nonfinite.jsonl", "spikes.jsonl"
STOPPED = "stopped"  # the action whose lines outlive a restart
SHOWN = 3  # places named in a line
NO_COUNTS = {"examples": {}, "tokens": {}, "trained_tokens": {}}


@dataclasses.dataclass(frozen=True)
class Example:
  """One example of a batch."""

  place: str  # file:row
  lang: str
  trained: int  # tokens


@dataclasses.dataclass
class Watch:
  """Called with what each step tells, before anything is made of it."""

  languages: Sequence[str]  # of each number in Sums
  policy: str
  max_skipped: int
  skipped: dict  # {"steps": [58], "examples": {...}, ...} so far; `steps` grows here
  spikes: Spikes | None
  examples: Callable[[int], list[list[Example]]]  # step from 0 -> those of each row
  row_losses: Callable  # (params, batch on the mesh) -> (nll_B, trained_B)
  nonfinite_file: Events
  spikes_file: Events
  log: Callable[[int, dict], None]
  warn: Callable[[str], None]

  def __call__(self, step: int, told: StepMetrics, batch: Batch, params) -> None:
    """Step `step` (from 0), its metrics on the host, its batch, and the parameters at hand, which may be newer.

    Raises UserError where the run must end.
    """
    if not told.finite:
      self._nonfinite(step, told, batch, params)
    elif self.spikes is not None:
      nll, trained = told.sums.nll.astype(np.float64), told.sums.trained
      spike = self.spikes.see(step, nll, trained, float(told.grad_norm))
      if spike is not None:
        self._spike(step, spike, batch, params)

  def _nonfinite(self, step: int, told: StepMetrics, batch: Batch, params) -> None:
    nll, trained = told.sums.nll.astype(np.float64), told.sums.trained
    losses = language_losses(self.languages, nll, trained)
    loss, norm = nll.sum() / max(1, trained.sum()), float(told.grad_norm)
    bad = {lang: _number(value) for lang, value in losses.items() if not math.isfinite(value)}
    rows, why_not = self._rows(step, batch, params, {})
    found = [row for row in rows if isinstance(row.get("loss"), str)]
    skips = self.policy == "skip"
    if skips:
      self.skipped["steps"].append(step + 1)
    count = len(self.skipped["steps"])
    ends = not skips or count > self.max_skipped
    self.nonfinite_file.log(
      step + 1,
      {
        "action": STOPPED if ends else "skipped",
        "loss": _number(loss),
        "grad_norm": _number(norm),
        "languages": bad,
        "rows": rows,
      },
    )
    text = (
      f"step {step + 1}: the loss is {_number(loss, 3)} and the gradient norm {_number(norm, 3)}"
    )
    text += f"; not finite in {', '.join(bad)}" if bad else ""
    text += f"; {_said_of_rows(found, len(rows), why_not)}. Its examples are in {self.nonfinite_file.path}. "
    if not skips:
      raise UserError(f"{text}Nothing of this step is saved. {_REMEDY}")
    if ends:
      raise UserError(
        f"{text}It is the {count}th that would be skipped (steps {_steps(self.skipped['steps'])}), and "
        f"optimizer.max_skipped is {self.max_skipped}. Nothing of this step is saved. Mend the rows if they are named, "
        "or begin another --workdir with a lower optimizer.learning_rate, a longer optimizer.warmup_steps, or "
        "model.dtype=float32; to go on here from the last checkpoint, raise --config.optimizer.max_skipped."
      )
    self.log(step + 1, {"train/skipped": count})
    self.warn(f"{text}Skipped, {count} of at most {self.max_skipped}.")

  def _spike(self, step: int, spike: Spike, batch: Batch, params) -> None:
    usual = self.spikes.usual()
    rows, why_not = self._rows(step, batch, params, usual)
    height = max(spike.loss.height, spike.grad_norm.height)
    self.spikes_file.log(
      step + 1,
      {
        "loss": spike.loss._asdict(),
        "grad_norm": spike.grad_norm._asdict(),
        "languages": {lang: figure._asdict() for lang, figure in spike.by_language.items()},
        "rows": rows,
      },
    )
    self.log(step + 1, {"train/spike": height})
    parts = [
      f"step {step + 1}: loss {_beside(spike.loss)}, gradient norm {_beside(spike.grad_norm)}"
    ]
    lang, figure = next(iter(spike.by_language.items()), ("", None))
    if figure is not None:
      parts.append(f"most unusual is {lang}, {_beside(figure)}")
    first = rows[0]
    if why_not:
      parts.append(f"rows were not scored: {why_not}")
    elif "loss" in first:
      parts.append(
        f"most above the usual is row {first['row']} at {first['loss']} ({_places(first)})"
      )
    self.warn(f"{'; '.join(parts)}. All rows are in {self.spikes_file.path}.")

  def _rows(self, step: int, batch: Batch, params, usual: Mapping) -> tuple[list[dict], str]:
    """The rows of a step, those first that add most to what is above the usual loss; and why they have no losses.

    Their losses are by the parameters at hand: those of the step itself are gone, as its memory was given away.
    """
    named = self.examples(step)
    try:
      with jax.transfer_guard("allow"):
        nll_B, trained_B = jax.device_get(self.row_losses(params, batch))
    except jax.errors.JaxRuntimeError as e:  # no memory left for it: a report must not end a run
      return [_row(i, of) for i, of in enumerate(named)], safety.in_one_line(e)
    out = []
    for i, of in enumerate(named):
      if not trained_B[i]:
        continue
      expected = sum(usual.get(e.lang, usual.get("", 0.0)) * e.trained for e in of)
      above = float(nll_B[i]) - expected
      row = _row(i, of, _number(float(nll_B[i]) / int(trained_B[i])))
      if usual:
        row["usual"] = round(expected / int(trained_B[i]), 4)
      out.append((-above if math.isfinite(above) else -math.inf, i, row))
    return [row for *_, row in sorted(out, key=lambda x: x[:2])], ""


_REMEDY = (
  "To leave such steps out, go on here with --config.optimizer.nonfinite=skip; or begin another --workdir with a lower "
  "optimizer.learning_rate, a longer optimizer.warmup_steps, or model.dtype=float32."
)


def _row(number: int, examples: Sequence[Example], loss=None) -> dict:
  told = [{"place": e.place, "lang": e.lang} for e in examples]
  return {"row": number} | ({} if loss is None else {"loss": loss}) | {"examples": told}


def _number(value: float, digits: int = 4) -> float | str:
  """Rounded; "nan", "inf" and "-inf" as words, as JSON has no numbers for them."""
  return round(float(value), digits) if math.isfinite(value) else str(float(value))


def _said_of_rows(bad: list[dict], of: int, why_not: str) -> str:
  if why_not:
    return f"its rows were not scored: {why_not}"
  if not bad:
    return "computed again, no row's loss is so: it is in the gradient alone, or was a fault of the machine"
  if len(bad) == of:
    return f"computed again, the loss of all {of} rows is not finite"
  first = f"row {bad[0]['row']} ({_places(bad[0])})"
  return f"computed again, the loss of {len(bad)} of {of} rows is not finite: {first}" + (
    "" if len(bad) == 1 else " and others"
  )


def _places(row: dict) -> str:
  places = [e["place"] for e in row["examples"]]
  more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
  return ", ".join(places[:SHOWN]) + more


def _steps(steps: Sequence[int]) -> str:
  return ", ".join(map(str, steps[-10:])) if len(steps) <= 10 else f"..., {_steps(steps[-10:])}"


def _beside(figure: Figure) -> str:
  return f"{figure.value:.3g} (usually {figure.usual:.3g}, {figure.height:.0f} scatters above)"
