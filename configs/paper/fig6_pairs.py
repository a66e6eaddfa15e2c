"""Six bilingual models against their monolingual ones, asked in the other ten languages (figure 6).

  python -m mlit_jax.sweep --config configs/paper/fig6_pairs.py --workdir runs/fig6 \
    --config.model=MODEL --config.rows='rows/{lang}.jsonl' \
    --config.dev_rows='dev/{lang}.jsonl' --config.eval_rows='held_out/{lang}.jsonl' --config.judge=JUDGE

The paper drew its pairs at random; these are drawn once, with Python's random.Random(0).
"""

from configs.paper import protocol
from mlit_jax.experiments import designs

PAIRS = [("cs", "ru"), ("it", "fi"), ("sw", "en"), ("es", "hi"), ("et", "ar"), ("zh", "he")]


def get_config():
  c = protocol.get_config()
  c.title = "Two languages or one"
  c.about = "Models of two languages, half and half, beside models of one, at the same budget."
  c.matrix = True
  return c


def get_arms(c):
  return [
    *designs.pairs(PAIRS, c.budget.total),
    *designs.monolingual(c.languages, c.budget.total),
  ]
