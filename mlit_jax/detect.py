"""Which language is a text in, and is an answer in the language it was asked for?

Detection is lingua's, with the models it ships. It chooses among the languages in play and a few
that models drift to (GUARDS): among Finnish and English alone, a German answer would pass for one
of the two. On the first 300 lines of NTREX-128 in twelve languages the guards cost no language more
than 0.4 points.

Pairs that no detector tells apart in a sentence or two count as right within their group (GROUPS):
Croatian, Bosnian and Serbian; Indonesian and Malay; Norwegian in both forms and Danish; Chinese and
Cantonese. So a Danish answer to a Norwegian prompt passes. Where the tag names a script (sr-Latn),
or the group has more than one, most letters must be of that script. Simplified and traditional
Chinese are not told apart.
"""

import dataclasses
import functools

import langcodes
import lingua
import regex

from mlit_jax.errors import UserError

GUARDS = ("en", "es", "fr", "de", "pt", "ru", "ar", "zh")

GROUPS = (
  ("hr", "bs", "sr", "sh"),
  ("id", "ms"),
  ("no", "nb", "nn", "da"),
  ("zh", "yue"),
)

# Tags that lingua knows by another name, or by several.
ALIASES = {"no": ("nb", "nn"), "fil": ("tl",), "sh": ("hr", "bs", "sr"), "yue": ("zh",)}

# Every other language is written in its likely script, or states the script in its tag.
SCRIPTS_OF_SEVERAL = {"sr": ("Cyrl", "Latn"), "sh": ("Cyrl", "Latn")}
# ISO 15924 names sets of scripts that Unicode's property does not know.
UNICODE_SCRIPTS = {
  "Hans": ("Hani",),
  "Hant": ("Hani",),
  "Jpan": ("Hani", "Hira", "Kana"),
  "Kore": ("Hang", "Hani"),
}

LETTER = regex.compile(r"\p{L}")
# Code and addresses are in no language, and there is often more of them than of prose.
NOT_PROSE = regex.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", regex.DOTALL)


class LanguageDetector:
  """Tells the languages in play apart; the models load once for each set of languages."""

  def __init__(self, languages, *, guards=GUARDS):
    """languages: tags such as en, zh or sr-Latn; UserError for one that cannot be told."""
    in_play = {tag: _describe(tag) for tag in sorted(set(languages))}
    if not in_play:
      raise UserError("Language fidelity: no language was given; name at least one, such as 'en'.")
    # The whole group of each: lingua's Serbian is Cyrillic, in Latin letters it finds Croatian.
    known = set().union(
      *(lang.accepted for lang in in_play.values()), *(_describe(tag).lingua for tag in guards)
    )
    if len(known) == 1:  # lingua needs a choice
      known.add(
        lingua.Language.SPANISH if lingua.Language.ENGLISH in known else lingua.Language.ENGLISH
      )
    others = {tag: _describe(tag) for tag in guards}
    for tag, lang in in_play.items():
      if not lang.lingua:
        _check_script_decides(tag, lang, {**others, **in_play})
    self._in_play = in_play
    self._known = frozenset(known)

  def detect(self, texts: list[str]) -> list[str | None]:
    """The tag of each text's language; None without letters or without a clear winner."""
    return [_tag(found) for found in self._detect(texts)]

  def guess(self, text: str) -> tuple[str | None, float]:
    """(tag, confidence from 0 to 1) of one text; (None, 0.0) without letters."""
    return _most_likely(text, self._known)

  def fidelity(self, responses: list[str], langs: list[str]) -> list[bool]:
    """Whether each answer is in its language; an empty one, or one without letters, is not."""
    unknown = set(langs) - set(self._in_play)
    if unknown:
      raise UserError(
        f"Language fidelity: asked about {sorted(unknown)}, but the detector was made for "
        f"{sorted(self._in_play)}. Make it with every language of the set."
      )
    found = self._detect(responses)
    return [
      self._is_right(_prose(response), language, self._in_play[tag])
      for response, language, tag in zip(responses, found, langs, strict=True)
    ]

  def _detect(self, texts):
    # Without letters lingua says None, and so do we: such a text never counts as right.
    return lingua_detector(self._known).detect_languages_in_parallel_of([_prose(t) for t in texts])

  def _is_right(self, text, found, wanted):
    letters = LETTER.findall(text)
    if not letters:
      return False
    if wanted.scripts:
      fitting = sum(1 for letter in letters if _script_pattern(wanted.scripts).match(letter))
      if 2 * fitting <= len(letters):
        return False
    return found in wanted.accepted if wanted.lingua else True


def guess_language(text: str) -> tuple[str | None, float]:
  """(tag, confidence from 0 to 1) among all languages that lingua knows; (None, 0.0) without letters.

  The models of all of them take 0.9 GB: where the languages are known, LanguageDetector(them).guess is smaller and surer.
  """
  return _most_likely(text, frozenset(lingua.Language.all()))


def lingua_names(tag: str) -> frozenset:
  """What lingua calls the language and those of its group, which count as it; empty where it knows none."""
  return _describe(tag).accepted


@functools.cache
def lingua_detector(languages: frozenset, low_accuracy: bool = False):
  """The detector among lingua's `languages`; with `low_accuracy`, by its short models alone."""
  # Models load at first use and are shared by all detectors of the process: 1 s and 0.5 GB for 20
  # languages.
  builder = lingua.LanguageDetectorBuilder.from_languages(
    *sorted(languages, key=lambda language: language.name)
  )
  return (builder.with_low_accuracy_mode() if low_accuracy else builder).build()


def _most_likely(text: str, known: frozenset) -> tuple[str | None, float]:
  prose = _prose(text)
  if not LETTER.search(prose):
    return None, 0.0
  best = lingua_detector(known).compute_language_confidence_values(prose)[0]
  return (_tag(best.language), best.value) if best.value else (None, 0.0)


@dataclasses.dataclass(frozen=True)
class _Wanted:
  """What an answer must be: `lingua` are its names for the language; none: the script decides.

  accepted: those and the ones of its group. scripts: what most letters must be of, if checked.
  """

  lingua: frozenset
  accepted: frozenset
  scripts: tuple[str, ...]
  all_scripts: tuple[str, ...]


@functools.cache
def _describe(tag: str) -> _Wanted:
  try:
    parsed = langcodes.Language.get(tag)
    parsed_macro = parsed.prefer_macrolanguage()
  except langcodes.tag_parser.LanguageTagError as e:
    raise UserError(
      f"Language fidelity: {tag!r} is not a language tag; write one such as 'en' or 'sr-Latn'."
    ) from e
  code = parsed.language or "und"
  if not _by_code(code):  # arb is ar and swh is sw, but nb stays nb
    code = parsed_macro.language or "und"
  names = _by_code(code)
  group = next((group for group in GROUPS if code in group), ())
  accepted = names.union(*(_by_code(member) for member in group))
  written = (parsed.script,) if parsed.script else SCRIPTS_OF_SEVERAL.get(code)
  written = written or tuple(filter(None, [parsed.maximize().script]))
  all_scripts = tuple(name for script in written for name in UNICODE_SCRIPTS.get(script, (script,)))
  # Elsewhere lingua alone decides: a Chinese answer about programs may hold more Latin letters than
  # Han.
  check = bool(parsed.script or group or not names)
  return _Wanted(names, accepted, all_scripts if check else (), all_scripts)


def _by_code(code: str) -> frozenset:
  codes = ALIASES.get(code, (code,))
  return frozenset(_lingua_languages()[c] for c in codes if c in _lingua_languages())


@functools.cache
def _lingua_languages() -> dict:
  return {language.iso_code_639_1.name.lower(): language for language in lingua.Language.all()}


def _tag(language) -> str | None:
  return None if language is None else language.iso_code_639_1.name.lower()


def _check_script_decides(tag, lang, others):
  sharing = [
    t for t, other in others.items() if t != tag and set(other.all_scripts) & set(lang.all_scripts)
  ]
  if not lang.all_scripts or sharing:
    shared = (
      f"its script is also that of {', '.join(sharing)}"
      if sharing
      else "it has no script of its own"
    )
    raise UserError(
      f"Language fidelity: the detector does not know {tag!r}, and {shared}, so the script cannot "
      f"decide. Leave {tag!r} out of the languages whose fidelity is measured."
    )


@functools.cache
def _script_pattern(scripts: tuple[str, ...]):
  return regex.compile("[" + "".join(rf"\p{{Script={script}}}" for script in scripts) + "]")


def _prose(text: str) -> str:
  """The text without code and addresses, unless nothing else has letters."""
  prose = NOT_PROSE.sub(" ", text)
  return prose if LETTER.search(prose) else text
