"""Train a SentencePiece tokenizer on rows files; this made mlit_jax/assets/tokenizer12 and tiny12's.

  python examples/train_tokenizer.py --rows 'mlit_jax/assets/instructions12/train/*.jsonl' \
    --vocab_size 6144 --out mlit_jax/assets/tokenizer12/tokenizer.model
  python examples/train_tokenizer.py --rows 'runs/tiny12/rows/train/*.jsonl' \
    'mlit_jax/assets/instructions12/train/*.jsonl' --vocab_size 8192 --coverage 0.9995 --bytes 450_000 \
    --out runs/tiny12/tokenizer.model
"""

import argparse
import collections
import glob
import io
import json
from pathlib import Path

import sentencepiece

MARKERS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
    "--rows", nargs="+", required=True, help="globs of JSONL files with prompt and completion"
  )
  parser.add_argument(
    "--coverage", type=float, default=1.0, help="of characters; bytes do the rest"
  )
  parser.add_argument("--bytes", type=int, default=0, help="of each language at most; 0: all")
  parser.add_argument("--vocab_size", type=int, default=6144)
  parser.add_argument("--out", required=True)
  args = parser.parse_args()
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts(args.rows, args.bytes or float("inf"))),
    model_writer=model,
    model_type="bpe",
    vocab_size=args.vocab_size,
    byte_fallback=True,  # what the vocabulary cannot write, bytes can: nothing is unknown
    character_coverage=args.coverage,  # 1: every Chinese character of the rows
    normalization_rule_name="identity",  # the model reads the text as it is
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    split_digits=True,
    bos_id=1,
    eos_id=2,
    pad_id=3,
    unk_id=0,
    control_symbols=MARKERS,
    num_threads=1,  # the same model every time
    minloglevel=1,
  )
  Path(args.out).write_bytes(model.getvalue())


def texts(patterns: list[str], most_bytes: float):
  """Prompts and answers; a language with longer words gets no more weight than its rows."""
  left = collections.defaultdict(lambda: most_bytes)
  for file in sorted(file for pattern in patterns for file in glob.glob(pattern)):
    for line in Path(file).read_text(encoding="utf-8").splitlines():
      row = json.loads(line)
      text = f"{row['prompt']}\n{row['completion']}"
      left[row["lang"]] -= len(text.encode())
      if left[row["lang"]] >= 0:
        yield from text.split("\n")


if __name__ == "__main__":
  main()
