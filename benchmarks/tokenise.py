"""Rendering, tokenising and marking rows, beside the tokenizer's own speed on the rendered texts.

  python benchmarks/tokenise.py --data ../shared/data

One thread. A byte-level BPE tokenizer of 16,000 is trained on the rows (benchmarks/real.py). Three sets of rows:
those of examples/real_rows.py, the short ones among them, and passages of 400 to 1,000 tokens. The least of several
rounds in turn, in CPU seconds of the process, since other work on the machine shows less in them, of

  encode_batch   `Tokenizer.encode_batch` of the texts, already rendered: nothing else
  encode_chunk   ours, from conversations to flat arrays: rendered, tokenised, trained tokens marked
  encode_rows    ours as the workers of the cache run it, from lines of JSON: read and checked as well
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import real
import tokenizers

from mlit_jax.data.encode import CHUNK, encode_chunk
from mlit_jax.data.hygiene import DEFAULTS, make_hygiene
from mlit_jax.data.parts import Recipe, encode_rows
from mlit_jax.data.rows import parse_row
from mlit_jax.data.sources import open_sources
from mlit_jax.data.tokenizer import Tokenizer

MAX_LENGTH = 2048
SETTINGS = {"max_length": MAX_LENGTH, "over_long": "drop"}


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data", type=Path, default=real.DATA)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--most", type=int, default=2000, help="rows of a set, chosen at even steps")
  args = parser.parse_args()
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  with tempfile.TemporaryDirectory() as folder:
    files = real.write_rows(Path(folder), args.data)
    # A list, not by language: a chunk here holds several.
    sources = open_sources([path for paths in files.values() for path in paths])
    rows = [(source, number, raw) for source in sources for number, raw in source.rows()]
    conversations = [parse_row(raw, source, number) for source, number, raw in rows]
    tokenizer = train(Path(folder), conversations)
    lengths = [len(tokenizer.encode_text(render(tokenizer, c))) for c in conversations]
    is_passage = ["Translate into" in c.messages[0].content for c in conversations]
    sets = {
      "commands": [i for i, n in enumerate(lengths) if not is_passage[i] and n < 100],
      "real rows": [i for i, n in enumerate(lengths) if not is_passage[i] and n <= MAX_LENGTH],
      "passages": [i for i, n in enumerate(lengths) if is_passage[i] and 400 <= n <= 1000],
    }
    for name, chosen in sets.items():
      chosen = chosen[:: -(-len(chosen) // args.most)]
      compare(name, tokenizer, [rows[i] for i in chosen], [conversations[i] for i in chosen], args)


def compare(name: str, tokenizer: Tokenizer, rows: list, conversations: list, args) -> None:
  texts = [render(tokenizer, c) for c in conversations]
  recipe = Recipe(
    tokenizer, drop_bad=False, hygiene=make_hygiene(dict.fromkeys(DEFAULTS, "off")), **SETTINGS
  )
  own = tokenizer.engine._tokenizer
  ways = {
    "encode_batch": lambda: [
      own.encode_batch(texts[k : k + CHUNK], add_special_tokens=False)
      for k in range(0, len(texts), CHUNK)
    ],
    "encode_chunk": lambda: [
      encode_chunk(conversations[k : k + CHUNK], tokenizer, **SETTINGS)
      for k in range(0, len(texts), CHUNK)
    ],
    "encode_rows": lambda: [
      encode_rows(recipe, rows[k][0], [(number, row) for _, number, row in rows[k : k + CHUNK]])
      for k in range(0, len(rows), CHUNK)
    ],
  }
  seconds: dict[str, list[float]] = {way: [] for way in ways}
  for _ in range(args.rounds):
    for way, run in ways.items():
      began = time.process_time()
      run()
      seconds[way].append(time.process_time() - began)
  tokens = sum(len(e) for batch in ways["encode_batch"]() for e in batch)
  best = {way: min(values) for way, values in seconds.items()}
  print(f"{name}: {len(texts):,} rows of {tokens / len(texts):.0f} tokens on average")
  for way, value in best.items():
    ratios = [a / b for a, b in zip(seconds["encode_batch"], seconds[way], strict=True)]
    print(
      f"  {way:13} {value:.3f} s, {value / len(texts) * 1e6:.0f} µs a row, {tokens / value / 1e6:.2f} million tokens/s, {best['encode_batch'] / value:.0%} of "
      f"encode_batch (median of rounds {statistics.median(ratios):.0%})"
    )


def render(tokenizer: Tokenizer, conversation) -> str:
  return tokenizer.template.render(conversation.messages).text


def train(folder: Path, conversations) -> Tokenizer:
  """A byte-level BPE tokenizer of 16,000 with ChatML markers, loaded as a run loads it."""
  own = tokenizers.Tokenizer(tokenizers.models.BPE())
  own.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  own.decoder = tokenizers.decoders.ByteLevel()
  markers = ["<|im_start|>", "<|im_end|>"]
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=16_000,
    special_tokens=markers,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  own.train_from_iterator((m.content for c in conversations for m in c.messages), trainer)
  own.save(str(folder / "tokenizer.json"))
  config = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
  (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
  return Tokenizer.load(str(folder))


if __name__ == "__main__":
  main()
