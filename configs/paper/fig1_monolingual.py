"""One model per language, every model on every language, against each language's own (figure 1).

  python -m mlit_jax.sweep --config configs/paper/fig1_monolingual.py --workdir runs/fig1 \
    --config.model=MODEL --config.rows='rows/{lang}.jsonl' \
    --config.dev_rows='dev/{lang}.jsonl' --config.eval_rows='held_out/{lang}.jsonl' --config.judge=JUDGE
"""

from configs.paper import protocol
from mlit_jax.experiments import designs


def get_config():
  c = protocol.get_config()
  c.title = "Monolingual tuning, every language asked"
  c.about = (
    "One model for each language, tuned on that language's rows alone and asked in all of them."
  )
  c.matrix = True
  return c


def get_arms(c):
  return designs.monolingual(c.languages, c.budget.total)
