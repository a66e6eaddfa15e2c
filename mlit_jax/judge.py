"""Judge two models' saved answers side by side, both orders always; 50 is parity with B.

python -m mlit_jax.judge --a tuned.jsonl --b baseline.jsonl --judge https://api.openai.com/v1#gpt-4.1-mini --yes --out judged
python -m mlit_jax.judge --a tuned.jsonl --b baseline.jsonl --judge model:Qwen/Qwen3-8B --out judged
python -m mlit_jax.judge --a tuned.jsonl --b baseline.jsonl --judge people:sheet.csv --out judged   (writes the sheet, then reads it)
python -m mlit_jax.judge --a tuned.jsonl --b baseline.jsonl --judge recorded:verdicts.jsonl --out judged
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from mlit_jax import runtime
from mlit_jax.data.files import read_objects, shorten
from mlit_jax.detectors import open_detector
from mlit_jax.errors import UserError
from mlit_jax.evals import fidelity
from mlit_jax.evals.decoding import Generator
from mlit_jax.evals.evaluator import buckets
from mlit_jax.evals.judging import people, report, scores
from mlit_jax.evals.judging.costs import Prices, estimate
from mlit_jax.evals.judging.endpoint import Endpoint, Limits
from mlit_jax.evals.judging.judges import (
  Ask,
  EndpointJudge,
  Judge,
  ModelJudge,
  Spec,
  collect,
  make_asks,
  parse_spec,
  recorded_judge,
  unjudged,
)
from mlit_jax.evals.judging.pairs import Pair, fingerprint_prompts, read_pairs
from mlit_jax.evals.judging.prompts import open_templates
from mlit_jax.evals.judging.verdicts import Store, json_line, winner
from mlit_jax.opening import open_model, whole_mesh
from mlit_jax.training.console import Terminal

SET = "judging"  # the name of the set in summary.json
ROWS = 16  # conversations that a local model reads at once


def main() -> int:
  parser = argparse.ArgumentParser(
    "mlit_jax.judge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--a", required=True, help="JSONL of answers (id, lang, prompt, response) that are scored")
  add("--b", required=True, help="JSONL of the baseline's answers to the same prompts")
  add("--judge", required=True, help="http(s)://HOST/v1#MODEL, model:MODEL, recorded:FILE, people:FILE.csv")  # fmt: skip
  add("--out", required=True, help="folder for verdicts.jsonl, scores.jsonl, summary.json, report.md")  # fmt: skip
  add("--languages", default="", help="only these, e.g. sw,fi")
  add(
    "--lid",
    default="",
    help="detector of the gate: lingua (default), or a fastText .bin or .ftz file",
  )
  add("--gate", default="on", choices=("on", "off"), help="score the answers' languages too (default: on)")  # fmt: skip
  add("--agree", default="", help="scores.jsonl of another judge on the same answers, e.g. people")
  add("--seed", type=int, default=0, help="of the intervals and of the people's sheet")
  add("--template", default="", help="a template file, or a folder of <language>.txt")
  add(
    "--rubric_language", default="prompt", help="prompt: the question's (default); en, or another"
  )
  add("--temperature", type=float, default=0.0, help="of an endpoint; a local model is greedy")
  add("--max_new_tokens", type=int, default=512, help="of a judge's reply")
  add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of a local model")
  http = parser.add_argument_group("endpoints")
  add = http.add_argument
  add("--key_env", default="OPENAI_API_KEY", help="environment variable that holds the key; none: no key")  # fmt: skip
  add("--yes", action="store_true", help="go on after the estimate")
  add("--max_cost", type=float, help="go on if the estimate is at most this; stop when it is spent")
  add("--price_in", type=float, help="per million tokens read")
  add("--price_out", type=float, help="per million tokens written")
  add("--concurrency", type=int, default=8, help="calls at once")
  add("--per_minute", type=float, default=0.0, help="calls per minute at most; 0: no limit")
  add("--timeout", type=float, default=120.0, help="seconds for one try")
  add("--retries", type=int, default=6, help="further tries of a call that failed")
  add("--request", default="", help='JSON to add to each request, null to leave out: {"max_tokens": null}')  # fmt: skip
  add("--on_refusal", default="stop", choices=("stop", "invalid"), help="prompts that the endpoint will not take")  # fmt: skip
  add = parser.add_argument_group("people").add_argument
  add("--people_orders", default="both", choices=("both", "one"), help="one: each pair once, in a drawn order")  # fmt: skip
  add("--partial", action="store_true", help="leave out pairs without a verdict")
  parser.add_argument("--debug", action="store_true", help="tracebacks for user errors too")
  args = parser.parse_args()
  return runtime.run_main(lambda: run(args), debug=args.debug)


def run(args) -> None:
  """Match the answers, judge what is not judged yet, score, write."""
  spec, out = parse_spec(args.judge), Path(args.out)
  runtime.check_output(out, "--out", folder=True)
  if spec.kind == "people":
    runtime.check_output(Path(spec.where), "--judge people:")
  pairs, model_a, model_b = read_pairs(
    Path(args.a), Path(args.b), [tag for tag in args.languages.split(",") if tag]
  )
  terminal = Terminal()
  if spec.kind == "people" and not Path(spec.where).exists():
    hand_out(args, Path(spec.where), pairs, terminal)
    return
  # Before anything is paid for.
  faithful = faithful_answers(pairs, args.lid) if args.gate == "on" else {}
  others = read_others(Path(args.agree), pairs) if args.agree else {}
  with runtime.locked(out), saving_on_signals(out):
    prompts = fingerprint_prompts(pairs)
    with Store(out / "verdicts.jsonl", prompts=prompts, num_prompts=len(pairs)) as store:
      judge, asks, left_out = open_judge(args, spec, pairs, terminal)
      if spec.kind == "endpoint":
        agree_to_pay(args, judge, unjudged(asks, store), terminal)
      waiting = len(unjudged(asks, store))
      terminal.line(f"{len(asks) - waiting} of {len(asks)} verdicts are there; {waiting} to judge")
      with terminal.bar(len(asks), len(asks) - waiting, "verdicts") as bar:
        collect(judge, asks, store, bar.update)
      table = tabulate(asks, store, pairs, faithful, others)
      warn_of_unread(asks, store, terminal)
    summary = scores.summarise(table, seed=args.seed)
    about = {
      "a": model_a or args.a,
      "b": model_b or args.b,
      "judge": args.judge,
      "prompts": len(pairs),
      "prompts_fingerprint": prompts,
      "identical": sum(pair.identical for pair in pairs),
      "left_out": left_out,
      "gate": args.gate,
      "orders": "one" if 0 < len(asks) == len({ask.pair for ask in asks}) else "both",
      "seed": args.seed,
    }
    if spec.kind in ("endpoint", "model"):
      about["rubric"] = args.template or f"shipped ({args.rubric_language})"
      about["temperature"] = args.temperature
    write(out, summary, table, about)
  for table in report.tables(summary, title(about)):
    terminal.table(table)
  terminal.line(f"summary.json, scores.jsonl, report.md and verdicts.jsonl are in {out}")


def open_judge(
  args, spec: Spec, pairs: list[Pair], terminal: Terminal
) -> tuple[Judge, list[Ask], int]:
  """(judge, what it is to be asked, pairs left out)."""
  if spec.kind == "recorded":
    judge = recorded_judge(Path(spec.where), pairs)
    return judge, make_asks(pairs, judge.identity), 0
  if spec.kind == "people":
    judge, orders, left_out = people.people_judge(Path(spec.where), pairs, partial=args.partial)
    return judge, make_asks(pairs, judge.identity, orders=orders), left_out
  templates = open_templates(
    {pair.lang for pair in pairs}, rubric_language=args.rubric_language, path=args.template
  )
  if spec.kind == "model":
    judge = ModelJudge(*local_model(args, spec.where, terminal))
  else:
    judge = endpoint_judge(args, spec, terminal)
  return judge, make_asks(pairs, judge.identity, templates=templates), 0


def endpoint_judge(args, spec: Spec, terminal: Terminal) -> EndpointJudge:
  """The judge at an address."""
  if (args.price_in is None) != (args.price_out is None):
    raise UserError("--price_in and --price_out belong together; give both or neither")
  if args.max_cost is not None and args.price_in is None:
    raise UserError("--max_cost needs --price_in and --price_out, per million tokens")
  endpoint = Endpoint(
    spec.where,
    spec.model,
    key_env="" if args.key_env == "none" else args.key_env,
    request=request_fields(args),
    limits=Limits(args.concurrency, args.per_minute, args.timeout, args.retries),
    say=terminal.line,
  )
  prices = Prices(args.price_in, args.price_out) if args.price_in is not None else None
  return EndpointJudge(endpoint, on_refusal=args.on_refusal, prices=prices, max_cost=args.max_cost)


def request_fields(args) -> dict:
  """What each request holds besides model and messages."""
  fields = {"temperature": args.temperature, "max_tokens": args.max_new_tokens}
  try:
    changes = json.loads(args.request or "{}")
    if not isinstance(changes, dict) or changes.keys() & {"model", "messages", "stream"}:
      raise ValueError("an object without model, messages and stream is needed")
  except (ValueError, RecursionError) as e:
    raise UserError(f"--request {shorten(args.request)}: {e}") from e
  return {name: value for name, value in (fields | changes).items() if value is not None}


def agree_to_pay(args, judge: EndpointJudge, asks: list[Ask], terminal: Terminal) -> None:
  """Show what the calls will take, and go on only if the user wants it."""
  if not asks:
    return
  conversations = [ask.messages for ask in asks]
  expected = estimate(conversations, max_new_tokens=args.max_new_tokens, prices=judge.prices)
  terminal.line(expected.text())
  if args.yes and args.max_cost is None:
    return
  if args.max_cost is not None:
    if expected.cost > args.max_cost:
      raise UserError(
        f"the estimate of {expected.cost:.4g} is above --max_cost {args.max_cost:g}. Raise it, shorten "
        "--max_new_tokens, or judge fewer --languages."
      )
    return
  if not sys.stdin.isatty():
    raise UserError(
      "nobody is there to agree to the estimate; give --yes, or --max_cost with prices"
    )
  if input("go on? [y/N] ").strip().lower() not in ("y", "yes"):
    raise UserError("not judged; what was judged before is kept")


def local_model(args, name: str, terminal: Terminal):
  """(a function from conversations to replies, what identifies the model): all that knows our engine."""
  if args.temperature:
    raise UserError(
      f"--temperature is {args.temperature}; a local judge is greedy, so that a run that was stopped "
      "goes on as if it had not been"
    )
  runtime.start()
  if jax.process_count() > 1:
    raise UserError("judging runs in one process; start it without the variables of a cluster")
  mesh = whole_mesh()
  model = open_model(name, mesh, terminal)
  positions = model.positions
  generators: dict[int, Generator] = {}

  def answer(conversations: list[list[dict]]) -> list[str]:
    prompts = [
      list(model.tokenizer.encode_text(model.tokenizer.template.prompt(messages)))
      for messages in conversations
    ]
    longest = max(map(len, prompts))
    if positions and longest + args.max_new_tokens > positions:
      raise UserError(
        f"a question to the judge has {longest} tokens and its reply may have {args.max_new_tokens}, but "
        f"{name} has {positions} positions. Take another judge, a shorter --template or a smaller "
        "--max_new_tokens."
      )
    sizes = buckets(longest)
    if sizes[-1] not in generators:
      generators[sizes[-1]] = Generator(
        model.cfg,
        mesh,
        max_new_tokens=args.max_new_tokens,
        prompt_buckets=sizes,
        rows=ROWS,
        dtype=jnp.dtype(args.dtype),
      )
    completions = generators[sizes[-1]].generate(
      model.params,
      prompts,
      stop_ids=model.tokenizer.stop_ids,
    )
    return [model.tokenizer.decode(done.tokens) for done in completions]

  identity = (weights_fingerprint(model.params), model.tokenizer.fingerprint)
  return answer, (*identity, args.max_new_tokens, args.dtype)


def weights_fingerprint(params) -> str:
  """Of every bit of the parameters, the same on any mesh: a folder's name does not tell what is in it."""

  @jax.jit
  def digest(x):
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    weight = jnp.ones((1,) * x.ndim, jnp.uint32)
    for axis in range(x.ndim):
      # Odd factors lose no bit, and sums that wrap are the same in any order.
      place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(2654435761)
      weight = (weight * jnp.uint32(31) + place) | jnp.uint32(1)
    mixed = (bits ^ (bits >> 15)) * weight
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)

  sums = jax.tree.map(lambda x: f"{int(jax.device_get(digest(x))):08x}", params)
  return "".join(jax.tree.leaves(sums))


def hand_out(args, path: Path, pairs: list[Pair], terminal: Terminal) -> None:
  """Write the sheet for people."""
  rows, cut = people.write_sheet(path, pairs, orders=args.people_orders, seed=args.seed)
  if cut:
    terminal.warning(
      f"{cut} texts are cut at {people.MOST_CHARACTERS:,} characters, which a cell can hold"
    )
  terminal.line(
    f"{rows} rows in {path}: write 1 (the first answer is better), 2, or 0 (a tie) into the column "
    "`verdict`, save as CSV, and run the same command again"
  )


def faithful_answers(pairs: list[Pair], lid: str) -> dict[Pair, tuple[bool, bool]]:
  """Whether A's and B's answers are in the language of the prompt, by the strict score."""
  langs, prompts = [pair.lang for pair in pairs], [pair.prompt for pair in pairs]
  try:
    detector = open_detector(lid, sorted(set(langs)))
  except UserError as e:
    raise UserError(f"{e} Or judge without the language gate: --gate off.") from None
  found = [
    [v.right for v in fidelity.judge([getattr(p, side) for p in pairs], langs, detector, prompts)]
    for side in "ab"
  ]
  return {pair: (a, b) for pair, a, b in zip(pairs, *found, strict=True)}


def read_others(path: Path, pairs: list[Pair]) -> dict[str, float]:
  """{fingerprint of the pair: score} of another judging, which must be of the same answers."""
  found = {
    row["pair"]: row["score"]
    for _, row in read_objects(path)
    if isinstance(row.get("pair"), str) and isinstance(row.get("score"), (int, float))
  }
  common = found.keys() & {pair.fingerprint for pair in pairs}
  if not common:
    raise UserError(
      f"--agree {path}: none of its {len(found)} scored prompts is one of these {len(pairs)} pairs; give "
      "the scores.jsonl of a judging of the same two files, in the same order."
    )
  return {pair: found[pair] for pair in common}


def tabulate(asks, store: Store, pairs, faithful, others) -> list[scores.Judged]:
  """A row for each pair that was judged, or needs no judge."""
  winners: dict[Pair, list] = {pair: [] for pair in pairs if pair.identical}
  for ask in asks:
    choice = store.by_key[ask.key]["choice"]
    winners.setdefault(ask.pair, []).append((ask.order, winner(ask.order, choice)))
  return [
    scores.Judged(
      id=pair.id,
      lang=pair.lang,
      group=pair.group,
      winners=tuple(winners[pair]),
      length_a=scores.length(pair.a),
      length_b=scores.length(pair.b),
      faithful_a=faithful[pair][0] if faithful else None,
      faithful_b=faithful[pair][1] if faithful else None,
      # What needs no judge says nothing about how judges agree.
      other=None if pair.identical else others.get(pair.fingerprint),
      pair=pair.fingerprint,
    )
    for pair in pairs
    if pair in winners
  ]


def warn_of_unread(asks: list[Ask], store: Store, terminal: Terminal) -> None:
  """How many verdicts nobody can read, and what such a reply looks like."""
  unread = [row for ask in asks if (row := store.by_key[ask.key])["choice"] is None]
  if unread:
    replies = [reply for row in unread for reply in row.get("replies", ())]
    shown = f"; one reply: {shorten(replies[-1])}" if replies else ""
    terminal.warning(
      f"{len(unread)} of {len(asks)} verdicts could not be read and leave their prompts without a score{shown}. A verdict "
      "is [[A]], [[B]] or [[C]], alone on the last line; --template asks for it in other words"
    )


def title(about: dict) -> str:
  return f"{about['a']} against {about['b']} (50 is parity)"


def write(out: Path, summary: dict, table: list[scores.Judged], about: dict) -> None:
  """All results, each file whole or not at all."""
  notes = [
    f"Judge: `{about['judge']}`, {about['orders']} order{'s' * (about['orders'] == 'both')}"
    + (f", rubric: {about['rubric']}." if "rubric" in about else "."),
    f"{about['prompts']} prompts; {about['identical']} with the same answer twice (ties that need no "
    f"judge), {about['left_out']} left out. Win 1, tie 0.5 (also where the orders disagree), loss 0; "
    "95 % intervals over prompts. Ties by orders that disagree draw a score towards 50.",
  ]
  runtime.write_json(out / "summary.json", {SET: summary})
  runtime.write_json(out / "judging.json", about)
  runtime.write_atomic(out / "scores.jsonl", "".join(json_line(row.row()) for row in table))
  runtime.write_atomic(out / "report.md", report.markdown(summary, title(about), notes))


@contextlib.contextmanager
def saving_on_signals(out: Path):
  """SIGTERM, SIGINT and SIGUSR1 end the run with 75: every verdict is on the disk already."""

  def stop(number, _frame):
    for s, handler in before.items():
      signal.signal(s, handler)
    raise runtime.Stopped(
      f"stopped on {signal.Signals(number).name}; the verdicts so far are in {out / 'verdicts.jsonl'}, "
      "and the same command goes on from there"
    )

  before = {}
  for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    before[s] = signal.signal(s, stop)
  try:
    yield
  finally:
    for s, handler in before.items():
      signal.signal(s, handler)


if __name__ == "__main__":
  sys.exit(main())
