"""Languages of a mixture by any of their names: the tags that the rows have, whatever the config calls them."""

from __future__ import annotations

from collections.abc import Mapping

from mlit_jax.data.languages import normalise_tag
from mlit_jax.errors import UserError

_BY_LANGUAGE = ("counts", "shares", "max_repeats", "with")  # mappings from language
_LISTS = ("languages", "leave_out")
_BODIES = ("uniform", "pinch", "replace", "augment", "unimax")


def with_tags(spec, where: str = "data.mixture"):
  """The spec with every language under its tag: {"counts": {"swa": 40, "English": 5}} -> {"sw": 40, "en": 5}.

  What is no language, or no mapping, stays: an error that knows the rows or the kind tells of it.
  """
  if not isinstance(spec, Mapping):
    return spec
  out = dict(spec)
  for key, body in spec.items():
    place = f"{where}.{key}"
    if key in _BY_LANGUAGE:
      out[key] = by_tag(body, place)
    elif key in _LISTS and isinstance(body, (list, tuple)):
      out[key] = [_tag(lang) for lang in body]
    elif key == "base":
      out[key] = _tag(body)
    elif key in _BODIES:
      out[key] = with_tags(body, place)
  return out


def by_tag(values, where: str):
  """A mapping from languages, by their tags; two names of one language are an error. What is none stays."""
  if not isinstance(values, Mapping):
    return values
  out: dict = {}
  names: dict = {}
  for name, value in values.items():
    tag = _tag(name)
    if tag in names:
      raise UserError(
        f"{where} has {names[tag]!r} and {name!r}, which are one language ({tag}); keep one of them"
      )
    names[tag], out[tag] = name, value
  return out


def _tag(name):
  if not isinstance(name, str):
    return name
  try:
    return normalise_tag(name)
  except UserError:  # "*", or a misspelt one
    return name
