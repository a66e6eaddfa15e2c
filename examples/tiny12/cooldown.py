"""The end of tiny12's training: from the first part's model, the rate goes down to nothing.

python -m mlit_jax.export --workdir runs/tiny12/run --step 1192 --out runs/tiny12/part1
python -m mlit_jax.train --config examples/tiny12/cooldown.py --workdir runs/tiny12/cooldown
"""

import importlib.util
from pathlib import Path

HERE = Path(__file__).parent
STEPS = 600


def get_config():
  spec = importlib.util.spec_from_file_location("tiny12_config", HERE / "config.py")
  first = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(first)
  c = first.get_config()
  c.steps = STEPS
  c.seed = 1  # another order of the rows
  c.model.path, c.model.sizes = "runs/tiny12/part1", {}
  c.tokenizer.path = ""
  c.optimizer.learning_rate = 1.4e-3  # about where the first part stopped
  c.optimizer.schedule = "linear"
  c.optimizer.warmup_steps = 20  # the moments begin anew
  c.optimizer.final_learning_rate = 0.0
  c.eval.every_steps = 300
  return c
