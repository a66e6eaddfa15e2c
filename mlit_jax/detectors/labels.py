"""What detectors call languages, and what we call them."""

import functools

from mlit_jax.data.languages import normalise_tag
from mlit_jax.errors import UserError

PREFIX = "__label__"

# lid.176 has the codes of Wikipedia's editions; these are others in ISO 639.
WIKIPEDIA = {"als": "gsw", "eml": "egl"}


@functools.cache
def language_of_label(label: str) -> str:
  """The language that a label of a detector stands for.

  __label__ru, rus_Cyrl, ru -> ru    zh, zho_Hans, cmn_Hani -> zh    zho_Hant -> zh
  als -> gsw (lid.176)               als_Latn -> sq (GlotLID)

  Without the script, which is read from the text itself. A label that BCP 47 does not know, such as
  zxx_Zzzz for no language, stays itself: no answer is asked for in it.
  """
  label = label.removeprefix(PREFIX)
  if label in WIKIPEDIA:
    return WIKIPEDIA[label]
  try:
    return normalise_tag(label).split("-")[0]
  except UserError:
    return label
