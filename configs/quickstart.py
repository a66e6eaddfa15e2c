"""The quick start: English plus 40 others, a small decoder from scratch, twelve languages watched.

  python -m mlit_jax.train --config configs/quickstart.py --workdir runs/quickstart
"""

from pathlib import Path

import mlit_jax
from configs import base

ASSETS = Path(mlit_jax.__file__).parent / "assets"
ROWS = ASSETS / "instructions12"
LANGUAGES = "ar cs en es et fi he hi it ru sw zh".split()


def get_config():
  c = base.get_config()
  c.workdir = "runs/quickstart"
  c.epochs = 12
  c.model.sizes = dict(d_model=192, num_layers=4, num_heads=6, num_kv_heads=3, d_ff=512)
  c.model.dtype = "float32"  # on CPU bfloat16 is slower
  c.model.remat = "none"
  c.tokenizer.path = str(ASSETS / "tokenizer12")
  c.data.train = {lang: [str(ROWS / "train" / f"{lang}.jsonl")] for lang in LANGUAGES}
  c.data.mixture = {"counts": {"en": 120, "*": 40}}
  c.batch.rows = 8
  c.batch.max_length = 320
  c.optimizer.learning_rate = 2e-3
  c.optimizer.warmup_steps = 10
  c.eval.sets = {"heldout": {lang: [str(ROWS / "eval" / f"{lang}.jsonl")] for lang in LANGUAGES}}
  c.eval.every_steps = 50
  c.eval.generate_rows = 5
  c.eval.max_new_tokens = 40
  c.checkpoint.every_steps = 50
  return c
