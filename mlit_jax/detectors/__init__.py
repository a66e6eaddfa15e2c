"""Detectors of languages behind one function: lingua, or a fastText model given as a file."""

from pathlib import Path

from mlit_jax.detect import Detector, LanguageDetector
from mlit_jax.detectors.fasttext_model import FastTextDetector
from mlit_jax.errors import UserError

BUNDLED = "lingua"


def open_detector(spec: str, languages, *, where: str = "--lid") -> Detector:
  """The detector for these languages: "" or "lingua", or the .bin or .ftz file of a fastText model.

  lid.176 and GlotLID are such models. `where` is what an error message says of the spec.
  """
  if spec in ("", BUNDLED):
    return LanguageDetector(languages)
  if Path(spec).suffix not in (".bin", ".ftz"):
    raise UserError(
      f"{where} is {spec!r}; write {BUNDLED!r}, or name the .bin or .ftz file of a fastText model "
      "such as lid.176.ftz."
    )
  return FastTextDetector(spec, languages, where=where)
