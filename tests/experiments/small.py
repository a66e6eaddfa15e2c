"""The smallest sweep: three languages of the bundled rows and one held out, a model 32 wide, four steps."""

from pathlib import Path

import mlit_jax

ASSETS = Path(mlit_jax.__file__).parent / "assets"
ROWS = str(ASSETS / "instructions12" / "train" / "{lang}.jsonl")
HELD_OUT = str(ASSETS / "instructions12" / "eval" / "{lang}.jsonl")

_FILE = '''"""The smallest sweep."""
from configs import sweep
from mlit_jax.experiments import designs


def get_config():
  c = sweep.get_config()
  c.title = "The smallest sweep"
  c.trained = {trained!r}
  c.rows = {rows!r}
  c.eval_rows = {held_out!r}
  c.languages = ["en", "fi", "sw"]
  c.held_out = ["zh"]
  c.budget.total = 60
  c.curves = [{{"key": "percent", "label": "P, %"}}, {{"key": "languages", "label": "languages"}}]
  c.at = "last"
  r = c.run
  r.steps = 4
  r.model.sizes = dict(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64)
  r.model.dtype = "float32"
  r.tokenizer.path = {tokenizer!r}
  r.batch.rows = 4
  r.batch.max_length = 128
  r.data.over_long = "truncate_answer"
  r.optimizer.learning_rate = 2e-3
  r.eval.generate_rows = 2
  r.eval.max_new_tokens = 8
  r.checkpoint.every_steps = 1
{lines}
  return c


def get_arms(c):
  return {arms}
'''
ARMS = "[*designs.pinch(c.languages, c.base, [0, 10], c.budget.total), *designs.nested([c.languages], [1, 3], c.budget.total)]"


def write_sweep(folder, *lines: str, arms: str = ARMS, trained=None) -> Path:
  """Its file, with further lines such as "c.seeds = [0, 1]"."""
  path = Path(folder) / "small.py"
  text = _FILE.format(
    trained=str(trained or Path(folder) / "trained"),
    rows=ROWS,
    held_out=HELD_OUT,
    tokenizer=str(ASSETS / "tokenizer12"),
    lines="\n".join(f"  {line}" for line in lines),
    arms=arms,
  )
  path.write_text(text, encoding="utf-8")
  return path
