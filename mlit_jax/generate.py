"""Let a model answer: one prompt, a file of prompts, or a chat.

python -m mlit_jax.generate --model runs/quickstart
python -m mlit_jax.generate --model runs/quickstart@best --prompt "Kwa nini anga ni la bluu?"
python -m mlit_jax.generate --model runs/quickstart --prompts prompts.jsonl --out answers.jsonl

Without a prompt it is a chat, in which /help lists commands. A sampled answer to a row of --prompts depends
on its prompt, lang, id and --seed, not on the other rows.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp

from mlit_jax import runtime
from mlit_jax.checks import check_prompt
from mlit_jax.conversation import chat
from mlit_jax.data.files import read_objects
from mlit_jax.data.hashing import stable_hash
from mlit_jax.errors import UserError
from mlit_jax.evals.decoding import Generator
from mlit_jax.evals.evaluator import buckets
from mlit_jax.evals.sampling import Sampling
from mlit_jax.evals.stopping import GrowingText, check_stop_texts
from mlit_jax.opening import Opened, open_model, whole_mesh
from mlit_jax.training.console import Terminal

ROWS = 32
PROMPT_ROLES = ("system", "user", "assistant")


def main() -> int:
  parser = argparse.ArgumentParser(
    "mlit_jax.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--model", required=True, help="Hugging Face folder, hub id, or workdir[@step]"
  )
  parser.add_argument("--prompt", default="", help="one prompt; without it and --prompts: a chat")
  parser.add_argument("--prompts", default="", help="JSONL with id, lang and prompt (or messages)")
  parser.add_argument("--out", default="", help="JSONL for the answers to --prompts")
  parser.add_argument("--max_new_tokens", type=int, default=256)
  parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
  parser.add_argument("--top_p", type=float, default=1.0, help="1 keeps all tokens (default)")
  parser.add_argument("--top_k", type=int, default=0, help="0 keeps all tokens (default)")
  parser.add_argument(
    "--min_p", type=float, default=0.0, help="least probability, as a share of the largest"
  )
  parser.add_argument(
    "--stop",
    action="append",
    default=[],
    metavar="TEXT",
    help="a text that ends an answer and is not part of it; may be given several times",
  )
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--system", default="", help="system text")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--debug", action="store_true", help="tracebacks for user errors too")
  args = parser.parse_args()
  return runtime.run_main(lambda: run(args), debug=args.debug)


def run(args) -> None:
  """Open the model and answer."""
  if args.prompts and not args.out:
    raise UserError("--prompts needs --out, a JSONL file for the answers")
  if args.out:
    runtime.check_output(Path(args.out), "--out")
  rows = list(read_prompts(Path(args.prompts))) if args.prompts else []
  if args.prompts and not rows:
    raise UserError(f"--prompts {args.prompts} holds no prompt; write one JSON object a line")
  check_stop_texts(args.stop)
  Sampling(
    args.temperature, args.top_p, args.top_k, args.min_p, args.seed
  )  # checked before the wait
  runtime.start()
  # On stderr: stdout is the answer's.
  terminal = Terminal(shown=runtime.is_main(), stderr=True)
  model = open_model(args.model, whole_mesh(), terminal)
  if args.prompts:
    answers = answer(model, rows, args, terminal)
    if runtime.is_main():
      lines = [json.dumps(a, ensure_ascii=False) for a in answers]
      runtime.write_atomic(Path(args.out), "\n".join(lines) + "\n")
      print(f"{len(answers)} answers in {args.out}")
  elif args.prompt:
    for piece in stream(model, _history(args, args.prompt), args):
      print(piece, end="", flush=True)
    print()
  else:
    print(f"{model.name}: write a line; /help lists commands, ctrl-d ends")
    chat(lambda messages: stream(model, messages, args), system=args.system)


def read_prompts(path: Path) -> Iterator[dict]:
  """Rows with id, lang and messages; UserError for a line that is not such a row."""
  for number, row in read_objects(path):
    try:
      messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
      if not all(isinstance(m["content"], str) and m["role"] in PROMPT_ROLES for m in messages):
        raise ValueError(f"each message needs a role of {', '.join(PROMPT_ROLES)}, and text")
    except (ValueError, KeyError, AttributeError, TypeError) as e:
      raise UserError(
        f"{path}:{number}: expected a JSON object with `prompt` or `messages` ({type(e).__name__}: {e})"
      ) from e
    yield {"id": row.get("id", str(number)), "lang": row.get("lang", ""), "messages": messages}


def answer(model: Opened, rows: list[dict], args, terminal: Terminal) -> list[dict]:
  """One generation row (INTERFACE: Generations) for each prompt row, in their order."""
  prompts = [_tokens(model, _with_system(args, row["messages"])) for row in rows]
  for row, prompt in zip(rows, prompts, strict=True):
    check_prompt(len(prompt), model.positions, f"the prompt {row['id']!r}")
  generator = _generator(model, max(map(len, prompts), default=1), min(ROWS, len(rows)), args)
  with terminal.bar(len(rows), what="answers") as bar:
    completions = generator.generate(
      model.params,
      prompts,
      stop_texts=args.stop,
      decode=model.tokenizer.decode,
      ids=[stable_hash(row["lang"], row["id"]) for row in rows],
      progress=bar.update,
      **_sampling(model, args),
    )
  ends = [len(p) + len(done.tokens) for p, done in zip(prompts, completions, strict=True)]
  if past := past_the_end(ends, model.positions):
    terminal.warning(past)
  return [
    {
      "id": row["id"],
      "lang": row["lang"],
      "prompt": row["messages"][-1]["content"],
      "response": done.written(model.tokenizer.decode),
      "stopped": done.stopped,
      "tokens": len(done.tokens),
      "model": model.name,
    }
    for row, done in zip(rows, completions, strict=True)
  ]


def stream(model: Opened, messages: list[dict], args) -> Iterator[str]:
  """The answer in pieces of whole characters: a character may span several tokens."""
  prompt = _tokens(model, messages)
  check_prompt(len(prompt), model.positions, "the conversation")
  generator = _generator(model, len(prompt), 1, args)
  text = GrowingText(model.tokenizer.decode, args.stop)
  end = len(prompt)
  for token in generator.stream(model.params, prompt, **_sampling(model, args)):
    end += 1
    if piece := text.add(token):
      yield piece
    if text.stopped:
      break
  else:
    if piece := text.rest():
      yield piece
  if past := past_the_end([end], model.positions):
    print(f"\nwarning: {past}", file=sys.stderr)


def past_the_end(ends: list[int], positions: int | None) -> str:
  """What to say of answers that go on where the model knows no place; "" if there are none."""
  past = sum(end > positions for end in ends) if positions else 0
  if not past:
    return ""
  return (
    f"{past:,} of {len(ends):,} answers go past the {positions} positions of the model, where nothing it says can be "
    "relied on. Give a shorter prompt or a smaller --max_new_tokens."
  )


def _sampling(model: Opened, args) -> dict:
  """How tokens are drawn, and which of them end an answer."""
  return {
    "stop_ids": model.tokenizer.stop_ids,
    "temperature": args.temperature,
    "top_p": args.top_p,
    "top_k": args.top_k,
    "min_p": args.min_p,
    "seed": args.seed,
  }


def _generator(model: Opened, longest: int, rows: int, args) -> Generator:
  return _made(model.cfg, args.max_new_tokens, tuple(buckets(longest)), rows, args.dtype)


@functools.lru_cache
def _made(cfg, max_new_tokens: int, prompt_buckets: tuple, rows: int, dtype: str) -> Generator:
  """One for each shape: a new one at each turn of a chat would compile everything again."""
  return Generator(
    cfg,
    whole_mesh(),
    max_new_tokens=max_new_tokens,
    prompt_buckets=prompt_buckets,
    rows=rows,
    dtype=jnp.dtype(dtype),
  )


def _tokens(model: Opened, messages: list[dict]) -> list[int]:
  return list(model.tokenizer.encode_text(model.tokenizer.template.prompt(messages)))


def _history(args, prompt: str) -> list[dict]:
  return _with_system(args, [{"role": "user", "content": prompt}])


def _with_system(args, messages: list[dict]) -> list[dict]:
  system = [{"role": "system", "content": args.system}] if args.system else []
  return system + messages


if __name__ == "__main__":
  sys.exit(main())
