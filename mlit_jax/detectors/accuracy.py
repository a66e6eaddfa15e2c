"""How often a detector is right itself: measured by benchmarks/detectors.py, shown beside the score."""

import functools
import importlib.resources
import json

MEASURED = "detector_accuracy.json"


def accuracy_note(detector_name: str, lang: str) -> str:
  """What a perfect model would score in the language, or that nobody measured it.

  Of another version of the detector if this one was not measured; the note names which.
  """
  version, measured = _nearest(detector_name)
  entry = measured.get(lang)
  if not entry:
    return f"{detector_name} was not measured on this language"
  return (
    f"{version}'s own accuracy on sentences of the language: {entry['right']:.1%}, n {entry['n']:,}, "
    f"{entry['source']}"
  )


@functools.cache
def measurements() -> dict:
  """{detector: {"date", "among", "languages": {lang: {"right", "n", "source", ...}}}}"""
  file = importlib.resources.files("mlit_jax") / "assets" / MEASURED
  return json.loads(file.read_text(encoding="utf-8"))


def _nearest(name: str) -> tuple[str, dict]:
  found = measurements()
  if name not in found and name.startswith("lingua "):
    name = max((n for n in found if n.startswith("lingua ")), default=name)
  return name, found.get(name, {}).get("languages", {})
