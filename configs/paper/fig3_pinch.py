"""P percent of the rows spread over 12 languages, the rest English (figure 3).

  python -m mlit_jax.sweep --config configs/paper/fig3_pinch.py --workdir runs/fig3 \
    --config.model=MODEL --config.rows='rows/{lang}.jsonl' \
    --config.dev_rows='dev/{lang}.jsonl' --config.eval_rows='held_out/{lang}.jsonl' --config.judge=JUDGE
"""

from configs.paper import protocol
from mlit_jax.experiments import designs

PERCENTS = [0, 1, *range(10, 101, 10)]


def get_config():
  c = protocol.get_config()
  c.title = "A pinch of multilinguality"
  c.about = "P percent of the rows are spread evenly over all languages, English among them; the rest is English."
  c.curves = [{"key": "percent", "label": "P, percent spread over all languages"}]
  return c


def get_arms(c):
  return designs.pinch(c.languages, c.base, PERCENTS, c.budget.total, c.budget.design)
