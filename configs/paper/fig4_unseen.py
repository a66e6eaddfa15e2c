"""As figure 3, with six languages in tuning and six that are only asked (figure 4).

  python -m mlit_jax.sweep --config configs/paper/fig4_unseen.py --workdir runs/fig4 \
    --config.model=MODEL --config.rows='rows/{lang}.jsonl' \
    --config.dev_rows='dev/{lang}.jsonl' --config.eval_rows='held_out/{lang}.jsonl' --config.judge=JUDGE
"""

from configs.paper import protocol
from configs.paper.fig3_pinch import PERCENTS
from mlit_jax.experiments import designs


def get_config():
  c = protocol.get_config()
  c.title = "A pinch of multilinguality, languages seen and unseen"
  c.about = "P percent of the rows are spread over six languages, the rest is English; six others are only asked."
  c.languages, c.held_out = protocol.SEEN, protocol.UNSEEN
  c.curves = [{"key": "percent", "label": "P, percent spread over the six languages"}]
  return c


def get_arms(c):
  return designs.pinch(c.languages, c.base, PERCENTS, c.budget.total, c.budget.design)
