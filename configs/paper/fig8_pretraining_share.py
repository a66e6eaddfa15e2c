"""Does a language that the base read more of transfer better? (figure 8)

  python -m mlit_jax.sweep --config configs/paper/fig8_pretraining_share.py --workdir runs/fig8 \
    --config.model=MODEL --config.rows='rows/{lang}.jsonl' \
    --config.dev_rows='dev/{lang}.jsonl' --config.eval_rows='held_out/{lang}.jsonl' --config.judge=JUDGE \
    --config.covariates='[{"name": "pre-training share", "kind": "language", "file": "shares.csv"}]'

shares.csv has the columns tuned, value; leave English out of it, as the paper does. The runs are those of figure 1.
"""

from configs.paper import fig1_monolingual

get_arms = fig1_monolingual.get_arms


def get_config():
  c = fig1_monolingual.get_config()
  c.title = "Pre-training share and transfer"
  c.about += " How a language transfers, beside its share of the base's pre-training documents."
  return c
