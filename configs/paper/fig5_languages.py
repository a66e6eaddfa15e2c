"""One to six languages at a constant budget, three nested orders, asked in six others (figure 5).

  python -m mlit_jax.sweep --config configs/paper/fig5_languages.py --workdir runs/fig5 \
    --config.model=MODEL --config.rows='rows/{lang}.jsonl' \
    --config.dev_rows='dev/{lang}.jsonl' --config.eval_rows='held_out/{lang}.jsonl' --config.judge=JUDGE

The paper's three permutations (its table 4) are not known to us; these begin with English and rotate the others.
"""

from configs.paper import protocol
from mlit_jax.experiments import designs


def get_config():
  c = protocol.get_config()
  c.title = "More languages at the same budget"
  c.about = "The budget is split evenly over 1 to 6 languages, added in three orders; six others are only asked."
  c.languages, c.held_out = protocol.SEEN, protocol.UNSEEN
  c.evaluated = protocol.UNSEEN
  c.curves = [{"key": "languages", "label": "languages in tuning"}]
  return c


def get_arms(c):
  orders = designs.rotations(c.languages, c.base, 3)
  sizes = range(1, len(c.languages) + 1)
  return designs.nested(orders, sizes, c.budget.total, c.budget.design)
