"""What a sweep will take, before it is begun: runs, trained tokens, judge calls, time and money."""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict
from rich.table import Table

from mlit_jax import checksums
from mlit_jax.config import assign, base_config
from mlit_jax.errors import UserError
from mlit_jax.evals.judging.costs import Estimate, Prices, tokens_of
from mlit_jax.experiments.planning import Plan
from mlit_jax.experiments.runs import Run
from mlit_jax.experiments.tasks import Comparison, is_trained
from mlit_jax.opening import open_data, open_tokenizer
from mlit_jax.weights.source import model_folder

ORDERS = 2  # every pair is judged twice
RUBRIC_TOKENS = 400  # about what a rubric adds to a question
HOUR = 3600


@dataclasses.dataclass(frozen=True)
class Size:
  """What one run trains on, as its plan has it: in all, and of each language."""

  steps: int
  tokens: int
  trained_tokens: int
  examples: dict[str, int]


def show(plan: Plan, terminal, *, tokens_per_second: float = 0.0) -> None:
  """Print the runs and what all of them take; nothing is written but a token cache that goes again."""
  runs = plan.distinct
  sizes = measure(list(runs.values()), terminal)
  left = [number for number, run in runs.items() if not is_trained(run.workdir)]
  terminal.table(table(plan, sizes))
  trained, tokens = (
    sum(getattr(sizes[n], of) for n in left) for of in ("trained_tokens", "tokens")
  )
  terminal.line(
    f"{len(plan.runs)} runs, {len(runs)} of them different, {len(runs) - len(left)} trained already in {plan.config.trained}; "
    f"to train: {trained:,} trained tokens ({tokens:,} tokens)"
  )
  terminal.line(time_line(plan.config, tokens, tokens_per_second))
  if plan.comparisons:
    terminal.line(judging(plan).text())


def measure(runs: Sequence[Run], terminal) -> dict[str, Size]:
  """{id: size}; rows are tokenised into a temporary folder, once for each set of languages."""
  tokenizers: dict[str, object] = {}
  out = {}
  with tempfile.TemporaryDirectory(prefix="mlit_sweep_") as folder:
    for run in runs:
      config = config_of(run)
      config.data.cache_dir = folder
      key = f"{config.model.path} {config.tokenizer}"
      if key not in tokenizers:
        base = model_folder(config.model.path, weights=False) if config.model.path else None
        tokenizers[key] = open_tokenizer(config, base)
      encoded, plan, _ = open_data(config, tokenizers[key], (), Path(folder), terminal)
      examples = plan.examples
      out[run.id] = Size(
        plan.steps,
        int(encoded.lengths[examples].sum()),
        int(encoded.trained_counts[examples].sum()),
        {lang: n for stage in plan.stages for lang, n in stage.counts.items()},
      )
  return out


def config_of(run: Run) -> ConfigDict:
  """The training config of a run."""
  config = base_config()
  for key, value in run.changes.items():
    assign(config, key, value)
  return config


def table(plan: Plan, sizes: Mapping[str, Size]) -> Table:
  """A line for each arm and seed."""
  out = Table(title="runs", title_justify="left")
  for column in (
    "arm",
    "draw",
    "seed",
    "run",
    "steps",
    "trained tokens",
    "examples of an epoch",
    "",
  ):
    out.add_column(
      column, justify="right" if column in ("draw", "seed", "steps", "trained tokens") else "left"
    )
  seen: set[str] = set()
  for run in plan.runs:
    size = sizes[run.id]
    examples = ", ".join(
      f"{lang} {n:,}" for lang, n in sorted(size.examples.items(), key=lambda x: (-x[1], x[0]))
    )
    state = "shared" if run.id in seen else "trained" if is_trained(run.workdir) else ""
    seen.add(run.id)
    name = run.arm.name + (" (baseline)" if run.arm.is_baseline else "")
    figures = (f"{size.steps:,}", f"{size.trained_tokens:,}")
    out.add_row(name, str(run.draw), str(run.seed), run.id, *figures, examples, state)
  return out


def time_line(c, tokens: int, tokens_per_second: float) -> str:
  """Hours of one run after the other, if a speed is known."""
  whence = "as given"
  if not tokens_per_second:
    tokens_per_second, whence = measured_speed(Path(c.trained))
  if not tokens_per_second:
    return "time: unknown; give --tokens_per_second, or look again once a run has been trained"
  seconds = tokens / tokens_per_second
  return f"time: about {seconds / HOUR:,.1f} h, one run after the other, at {tokens_per_second:,.0f} tokens/s ({whence})"


def measured_speed(trained: Path) -> tuple[float, str]:
  """Tokens per second of the runs that are there, with their evaluations and saving; 0 without any."""
  found = []
  for folder in sorted(trained.glob("*")) if trained.is_dir() else ():
    if is_trained(folder):
      ledger = checksums.read_sealed(folder / "data_plan.json")
      lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
      times = [json.loads(line)["time"] for line in lines]
      if len(times) > 1 and times[-1] > times[0]:
        tokens = sum(of["tokens"] for of in ledger["languages"].values())
        found.append(tokens / (times[-1] - times[0]))
  if not found:
    return 0.0, ""
  return statistics.median(
    found
  ), f"the median of {len(found)} runs in {trained}, evaluation included"


def check_agreed(plan: Plan) -> None:
  """Before anything is trained: whether somebody agrees to pay the judge, for all comparisons together."""
  options = plan.config.judge_options
  if not plan.comparisons or not plan.config.judge.startswith("http"):
    return
  if "max_cost" not in options:
    if not options.get("yes"):
      raise UserError(
        "the judge is an endpoint, and nobody is there to agree to its cost; give judge_options={'yes': True}, or "
        "max_cost with price_in and price_out. --dry-run estimates it."
      )
    return
  expected = judging(plan)
  if expected.cost is None:
    raise UserError("judge_options: max_cost needs price_in and price_out, per million tokens")
  if expected.cost > options["max_cost"]:
    raise UserError(
      f"judging all {len(plan.comparisons)} comparisons may cost {expected.cost:.4g}, above judge_options' max_cost "
      f"{options['max_cost']:g}. Raise it, or take fewer arms, seeds or prompts."
    )


def judging(plan: Plan) -> Estimate:
  """Of all comparisons, if every answer were as long as it may be."""
  c = plan.config
  options = dict(c.judge_options)
  if ("price_in" in options) != ("price_out" in options):
    raise UserError("judge_options: price_in and price_out belong together; give both or neither")
  by_lang: dict[str, list[int]] = {}
  for row in plan.prompts:
    by_lang.setdefault(row["lang"], []).append(tokens_of(m["content"] for m in row["messages"]))
  answer = int(c.generate_options.get("max_new_tokens", 256))
  each = RUBRIC_TOKENS + 2 * answer
  asked = [n + each for pair in plan.comparisons for n in _prompts_of(pair, by_lang)]
  calls, tokens_in = ORDERS * len(asked), ORDERS * sum(asked)
  tokens_out = calls * int(options.get("max_new_tokens", 512))
  prices = Prices(options["price_in"], options["price_out"]) if "price_in" in options else None
  return Estimate(
    calls, tokens_in, tokens_out, prices.of(tokens_in, tokens_out) if prices else None
  )


def _prompts_of(pair: Comparison, by_lang: Mapping[str, Sequence[int]]) -> list[int]:
  return [n for lang in pair.languages for n in by_lang.get(lang, ())]
