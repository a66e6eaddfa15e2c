"""More languages and more rows: every language adds its own budget (Ji and Chen 2024, "Lucky 52").

  python -m mlit_jax.sweep --config configs/paper/ji2024.py --workdir runs/ji2024 \
    --config.model=MODEL --config.rows='rows/{lang}.jsonl' \
    --config.dev_rows='dev/{lang}.jsonl' --config.eval_rows='held_out/{lang}.jsonl'

The languages join one after the other; with six of them also all but one. Theirs were 52 of Bactrian-X: give your own
as --config.languages, in the order in which they join.
"""

from configs.paper import protocol
from mlit_jax.experiments import designs

LEFT_OUT_OF = 6


def get_config():
  c = protocol.get_config()
  c.title = "A budget that grows with the languages"
  c.about = "Every language adds rows of its own; then six languages but one."
  c.languages = ["en", "zh", "ar", "es", "ru", "fi", "it", "sw", "hi", "cs", "et", "he"]
  c.budget.design = designs.AUGMENT
  c.curves = [{"key": "languages", "label": "languages in tuning"}]
  return c


def get_arms(c):
  sizes = range(1, len(c.languages) + 1)
  arms = designs.nested([c.languages], sizes, c.budget.total, c.budget.design)
  six = dict.fromkeys(c.languages[:LEFT_OUT_OF], c.budget.total)
  return [*arms, *designs.leave_one_out(six)]
