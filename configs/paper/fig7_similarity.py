"""Seven Slavic languages: does script, sub-family or distance tell who learns from whom? (figure 7, table 1)

  python -m mlit_jax.sweep --config configs/paper/fig7_similarity.py --workdir runs/fig7 \
    --config.model=MODEL --config.rows='rows/{lang}.jsonl' \
    --config.dev_rows='dev/{lang}.jsonl' --config.eval_rows='held_out/{lang}.jsonl' --config.judge=JUDGE \
    --config.covariates='[{"name": "syntactic distance", "kind": "pair", "file": "distances.csv"}]'

distances.csv has the columns tuned, evaluated, value: such as lang2vec's (Littell et al. 2017). What is given
so joins script and sub-family, which are here.
"""

from configs.paper import protocol
from mlit_jax.experiments import designs

SUBFAMILY = {"ru": "east", "sr": "south", "hr": "south", "sl": "south", "pl": "west", "sk": "west", "cs": "west"}  # fmt: skip
CYRILLIC = ("ru", "sr")  # Serbian as in the table of the paper; use rows in that script


def get_config():
  c = protocol.get_config()
  c.title = "Similarity and transfer in one family"
  c.about = "One model for each of seven Slavic languages, asked in all of them."
  c.languages = list(SUBFAMILY)
  c.base = "ru"
  c.matrix = True
  return c


def get_arms(c):
  return designs.monolingual(c.languages, c.budget.total)


def get_covariates(c):
  def both(name, alike):
    values = {a: {b: int(alike(a, b)) for b in SUBFAMILY if b != a} for a in SUBFAMILY}
    return {"name": name, "kind": "pair", "values": values}

  return [
    both("same script", lambda a, b: (a in CYRILLIC) == (b in CYRILLIC)),
    both("same sub-family", lambda a, b: SUBFAMILY[a] == SUBFAMILY[b]),
  ]
