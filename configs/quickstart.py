"""The quick start: a small base model tuned on English plus 40 others, twelve languages watched.

  python -m mlit_jax.train --config configs/quickstart.py

English only, for comparison:

  python -m mlit_jax.train --config configs/quickstart.py --workdir runs/english \
    --config.data.mixture='{"counts": {"en": 120}}'
"""

from pathlib import Path

import mlit_jax
from configs import base

ASSETS = Path(mlit_jax.__file__).parent / "assets"
ROWS = ASSETS / "instructions12"
LANGUAGES = ["ar", "cs", "en", "es", "et", "fi", "he", "hi", "it", "ru", "sw", "zh"]


def get_config():
  c = base.get_config()
  c.workdir = "runs/quickstart"
  c.epochs = 12
  c.model.path = str(ASSETS / "tiny12")
  c.model.dtype = "float32"  # on CPU bfloat16 is slower
  c.model.remat = "none"  # so small that all can be kept for the backward pass
  c.data.train = {lang: [str(ROWS / "train" / f"{lang}.jsonl")] for lang in LANGUAGES}
  c.data.mixture = {"counts": {"en": 120, "*": 40}}
  c.batch.rows = 8
  c.batch.max_length = 256
  c.optimizer.learning_rate = 1e-3  # of so small a model; a large one wants 1e-5
  c.optimizer.warmup_steps = 5
  c.eval.sets = {"heldout": {lang: [str(ROWS / "eval" / f"{lang}.jsonl")] for lang in LANGUAGES}}
  c.eval.every_steps = 44
  c.eval.generate_rows = 10
  c.eval.max_new_tokens = 64
  c.checkpoint.every_steps = 44
  return c
