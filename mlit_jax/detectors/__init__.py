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
  check_detector(spec, where=where)
  if spec in ("", BUNDLED):
    return LanguageDetector(languages)
  return FastTextDetector(spec, languages, where=where)


def check_detector(spec: str, *, where: str = "--lid") -> None:
  """Refuse a spec that names neither a detector nor a file that is there."""
  if spec in ("", BUNDLED):
    return
  if Path(spec).suffix not in (".bin", ".ftz"):
    raise UserError(
      f"{where} is {spec!r}; write {BUNDLED!r}, or name the .bin or .ftz file of a fastText model "
      "such as lid.176.ftz."
    )
  if not Path(spec).is_file():
    raise UserError(f"{where}: there is no file {spec}. Name the .bin or .ftz file of the model.")
