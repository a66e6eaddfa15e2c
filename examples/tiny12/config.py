"""The small base model of the quick start and of configs/study: twelve languages of public text, equally.

  python examples/tiny12/make_rows.py --data ../shared/data --out runs/tiny12/rows
  mkdir -p runs/tiny12/tokenizer
  python examples/train_tokenizer.py --rows 'runs/tiny12/rows/train/*.jsonl' \
    'mlit_jax/assets/instructions12/train/*.jsonl' --vocab_size 8192 --coverage 0.9995 --bytes 450_000 \
    --out runs/tiny12/tokenizer/tokenizer.model
  python -m mlit_jax.train --config examples/tiny12/config.py --workdir runs/tiny12/run

It takes about an hour on two CPU cores.
"""

from pathlib import Path

from configs import base

LANGUAGES = ["ar", "cs", "en", "es", "et", "fi", "he", "hi", "it", "ru", "sw", "zh"]
ROWS = Path("runs/tiny12/rows")


def get_config():
  c = base.get_config()
  c.steps = 3000
  c.model.sizes = {"d_model": 192, "num_layers": 6, "num_heads": 6, "num_kv_heads": 3, "d_ff": 512}
  c.model.dtype = "float32"
  c.tokenizer.path = "runs/tiny12/tokenizer"
  c.tokenizer.chat_template = str(Path(__file__).parent / "text.jinja")
  c.data.train = {lang: [str(ROWS / "train" / f"{lang}.jsonl")] for lang in LANGUAGES}
  c.data.mixture = {"uniform": {"total": 48_000}}
  c.data.max_repeats = 4
  c.data.over_long = "truncate_answer"
  c.batch.rows = 16
  c.batch.max_length = 256
  c.optimizer.learning_rate = 2e-3
  c.optimizer.warmup_steps = 50
  c.optimizer.final_learning_rate = 1e-4
  c.optimizer.weight_decay = 0.05
  c.eval.sets = {"text": {lang: [str(ROWS / "eval" / f"{lang}.jsonl")] for lang in LANGUAGES}}
  c.eval.generate_rows = 0
  c.eval.every_steps = 500
  c.checkpoint.every_steps = 250
  c.checkpoint.keep_best = 0
  c.log.every_steps = 50
  return c
