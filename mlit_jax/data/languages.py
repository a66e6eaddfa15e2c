"""Language tags: one spelling for each language, whatever the source of the data calls it."""

import difflib
import functools
import re

import langcodes
from langcodes.registry_parser import parse_registry
from langcodes.tag_parser import LanguageTagError

from mlit_jax.errors import UserError

# Names that data sets use and the IANA registry spells otherwise.
NAMES = {
  "azerbaijani": "az",
  "burmese": "my",
  "dari": "prs",
  "farsi": "fa",
  "filipino": "fil",
  "flemish": "nl",
  "greek": "el",
  "kurdish": "ku",
  "malay": "ms",
  "mandarin": "zh",
  "mandarin chinese": "zh",
  "nepali": "ne",
  "norwegian bokmal": "nb",
  "occitan": "oc",
  "oriya": "or",
  "persian": "fa",
  "punjabi": "pa",
  "pushto": "ps",
  "simplified chinese": "zh",
  "traditional chinese": "zh-Hant",
  "slovene": "sl",
  "standard arabic": "ar",
  "modern standard arabic": "ar",
  "modern greek": "el",
}
UNDETERMINED = ("und", "mul", "mis", "zxx")


@functools.lru_cache(maxsize=4096)
def normalise_tag(tag: str) -> str:
  """The BCP-47 tag of a language, from a code, a FLORES code or an English name.

  eng, eng_Latn, english -> en    arb -> ar    zh-cn, zho-CN, zh-Hans -> zh    zh-TW -> zh-Hant
  sr_Latn -> sr-Latn              pt-BR -> pt-BR
  """
  if not isinstance(tag, str) or not tag.strip():
    raise UserError(f"{tag!r} is not a language tag. Write a code such as 'en', 'sw' or 'sr-Latn'.")
  text = tag.strip().replace("_", "-")
  if re.fullmatch(r"[A-Za-z]{2,3}(-.+)?", text):
    normal = _from_code(text)
  else:
    name = re.sub(r"\s+", " ", tag.strip().replace("_", " ")).casefold()
    normal = _names().get(name) or _names().get(text.casefold())
  if normal is None:
    raise UserError(f"{tag!r} is not a language that BCP 47 knows. Did you mean {_nearest(text)}?")
  return normal


def _from_code(text: str) -> str | None:
  try:
    if not langcodes.tag_is_valid(text):
      return None
    language = langcodes.Language.get(langcodes.standardize_tag(text, macro=True))
  except LanguageTagError:
    return None
  if language.language is None or language.language in UNDETERMINED:
    return None
  if language.language == "zh" and language.territory and not language.script:
    # For Chinese a region is how people write the script: zh-CN is zh, zh-TW is zh-Hant.
    language = language.update_dict({"script": language.maximize().script})
  if language.language == "zh" and language.territory:
    likely = langcodes.Language.make(language="zh", script=language.script).maximize()
    if language.territory == likely.territory:
      language = _without(language, territory=True)
  default = langcodes.Language.make(language=language.language).maximize()
  if language.script and language.script == default.script:
    language = _without(language, script=True)
  return language.to_tag()


def _without(language, *, script=False, territory=False):
  return langcodes.Language.make(
    language=language.language,
    script=None if script else language.script,
    territory=None if territory else language.territory,
    variants=language.variants,
    extensions=language.extensions,
    private=language.private,
  )


@functools.cache
def _names() -> dict[str, str]:
  """English name -> tag. Macrolanguages win over their members; deprecated codes are out."""
  names = {}
  for entry in parse_registry():
    code = entry.get("Subtag", "")
    if (
      entry.get("Type") != "language"
      or "Deprecated" in entry
      or code in UNDETERMINED
      or ".." in code
    ):
      continue
    for description in entry["Description"]:
      plain = re.sub(r"\s*\(.*?\)", "", description).casefold()
      member = "individual language" in description
      if plain not in names or (names[plain][1] and not member):
        names[plain] = (code, member)
  tags = {name: _from_code(code) for name, (code, _) in names.items()}
  return {name: tag for name, tag in (tags | NAMES).items() if tag}


def _nearest(text: str) -> str:
  first = text.split("-")[0]
  if "-" in text and len(first) in (2, 3) and _from_code(first):
    return repr(_from_code(first))  # the language is known, the rest of the tag is not
  spelt = {tag: tag for tag in _names().values() if len(tag) == 2} | _names()
  common = [name for name, tag in spelt.items() if len(tag) == 2]  # `engl` is English, not Gengle
  close = difflib.get_close_matches(text.casefold(), common, n=1, cutoff=0.7)
  close = (close or difflib.get_close_matches(text.casefold(), list(spelt), n=1, cutoff=0.0))[0]
  return repr(spelt[close]) + (f" ({close})" if close != spelt[close] else "")
