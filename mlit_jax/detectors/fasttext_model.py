"""fastText models for language identification, such as lid.176 and GlotLID, given as a file."""

import hashlib
from pathlib import Path

from mlit_jax.detect import accepted_in, accepted_languages
from mlit_jax.detectors.labels import language_of_label
from mlit_jax.errors import UserError

# What is asked of a model with 2,102 labels; the others of a text have less than a tenth.
MOST_LIKELY = 10


class FastTextDetector:
  """Chooses among all languages of the model, whichever are in play."""

  def __init__(self, path, languages, *, where: str = "--lid"):
    """languages: those that may be asked for; UserError for one that cannot be told."""
    self.languages = tuple(sorted(set(languages)))
    self._model = _load(path, where)
    with open(path, "rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
    self.name = f"{Path(path).name} {digest[:8]}"  # files of many models have the same name
    labels, _ = self._model.predict("a", k=-1, threshold=-1.0)
    self.known = frozenset(map(language_of_label, labels))
    self._accepted = accepted_languages(self.languages, self.known)

  def probabilities(self, texts: list[str]) -> list[list[tuple[str, float]]]:
    """(language, probability), best first; labels of one language, as of its scripts, added up."""
    return [self._of_one(text) for text in texts]

  def accepted(self, tag: str) -> frozenset[str]:
    return accepted_in(self._accepted, tag)

  def _of_one(self, text: str) -> list[tuple[str, float]]:
    line = " ".join(text.split())  # fastText reads one line
    if not line:
      return []
    sums: dict[str, float] = {}
    for label, value in zip(
      *self._model.predict(line, k=MOST_LIKELY, on_unicode_error="replace"), strict=True
    ):
      language = language_of_label(label)
      sums[language] = sums.get(language, 0.0) + float(value)
    # Its softmax goes a few millionths beyond 1.
    return sorted(((lang, min(p, 1.0)) for lang, p in sums.items()), key=lambda pair: -pair[1])


def _load(path, where: str):
  try:
    import fasttext
  except ImportError as e:
    raise UserError(
      f"{where} {path}: fastText models need the package fasttext-predict; "
      "pip install 'mlit_jax[fasttext]'."
    ) from e
  try:
    return fasttext.load_model(str(path))
  except ValueError as e:
    raise UserError(f"{where} {path}: fastText cannot read the file as a model: {e}.") from e
