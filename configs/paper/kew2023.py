"""English-centric models turned multilingual: each further language replaces 200 English rows (Kew et al. 2023).

  python -m mlit_jax.sweep --config configs/paper/kew2023.py --workdir runs/kew2023 \
    --config.model=MODEL --config.rows='rows/{lang}.jsonl' \
    --config.dev_rows='dev/{lang}.jsonl' --config.eval_rows='held_out/{lang}.jsonl' --config.judge=JUDGE

3,200 rows; Spanish, Russian, German, Chinese and French join in this order; then all of them but one.
"""

from configs.paper import protocol
from mlit_jax.experiments import designs

ADDED = ["es", "ru", "de", "zh", "fr"]
EACH = 200


def get_config():
  c = protocol.get_config()
  c.title = "How many languages it takes"
  c.about = "Each further language takes 200 of 3,200 English rows; then all languages but one."
  c.languages = ["en", *ADDED]
  c.budget.total = 3200
  c.curves = [{"key": "languages", "label": "languages in tuning"}]
  return c


def get_arms(c):
  arms = designs.stepwise(c.base, ADDED, EACH, c.budget.total)
  return [*arms, *designs.leave_one_out(arms[-1].amounts, base=c.base)]
