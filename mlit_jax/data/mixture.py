"""A mixture spec becomes integers: how much of each language, and of each of its sources, one epoch holds."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from fractions import Fraction

from mlit_jax.data.encoded import UNITS
from mlit_jax.data.mixture_names import by_tag, with_tags
from mlit_jax.errors import UserError

# What may stand beside each kind.
OPTIONS = {
  "counts": (),
  "uniform": (),
  "pinch": (),
  "replace": (),
  "augment": (),
  "shares": ("unit", "total"),
  "temperature": ("unit", "total"),
  "unimax": ("unit",),
}
EVERYWHERE = ("max_repeats", "leave_out")
LENGTHS = ("epochs", "steps")  # of a stage

Key = tuple[str, str]  # (language, source); the source is "" where a language is taken as one


@dataclasses.dataclass(frozen=True)
class Stock:
  """What the rows offer: {unit: {(language, source): amount}}, each row once.

  Every language has the key (language, "") for all of its rows, a source one for its own.
  """

  amounts: Mapping[str, Mapping[Key, int]]

  @classmethod
  def of_examples(cls, available: Mapping[str, int]) -> Stock:
    return cls({"examples": {(lang, ""): n for lang, n in available.items()}})

  def of_languages(self, unit: str) -> dict[str, int]:
    return {lang: n for (lang, source), n in self.amounts[unit].items() if not source}

  def sources(self, lang: str) -> list[str]:
    return sorted(source for of, source in self.amounts["examples"] if of == lang and source)


@dataclasses.dataclass(frozen=True)
class Amounts:
  """What one epoch is to hold: whole numbers of `unit`, and how often a row may stand in it."""

  unit: str
  of: dict[Key, int]
  max_repeats: dict[str, int]  # of every language in `of`


def resolve(spec: Mapping, stock: Stock, *, max_repeats: int = 1) -> Amounts:
  """The amounts that a spec asks for, exactly; what the rows cannot meet is a UserError.

      counts       {"en": 4350, "*": 40}: "*" is spread evenly over all languages not named. A language may be
                   split by source: {"en": {"lima": 1000, "dolly": 3350}}
      uniform      {"languages": ["en", "fi"], "total": 4640}: languages default to all
      pinch        {"percent": 1, "base": "en", "total": 4390}: Shaham et al. 2024, section 4: P percent of N
                   spread evenly over all L languages, the base among them, the rest is base; so the others
                   get N * P/100 * (L-1)/L together
      replace      {"base": "en", "total": 4390, "with": {"*": 40}}: the base gives way, the total stays
      augment      {"base": "en", "total": 4350, "with": {"*": 40}}: the others come on top
      shares       {"en": .9, "sw": .1} of "unit"; "total" defaults to the most that the rows allow
      temperature  T: language l gets a share ~ n_l^(1/T) of "total" (Arivazhagan et al. 2019), no more than
                   its rows allow; the others share what is left over in the same proportions
      unimax       {"budget": B, "max_repeats": N}: Chung et al. 2023, algorithm 1: as even as N passes
                   over the small languages allow

  `leave_out` takes languages away before anything is spread.
  """
  try:
    return _resolve(with_tags(spec), stock, by_tag(max_repeats, "data.max_repeats"))
  except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
    raise UserError(
      f"data.mixture: {spec!r} holds a value that cannot be ({type(error).__name__}: {error}). See docs/mixtures.md."
    ) from error


def _resolve(spec: Mapping, stock: Stock, max_repeats: int) -> Amounts:
  kind, body = _kind(spec)
  unit = spec.get("unit", "examples")
  if unit not in UNITS:
    raise UserError(f"data.mixture.unit is {unit!r}; it must be one of {', '.join(UNITS)}")
  stock = _without(stock, spec.get("leave_out", ()), body)
  repeats = spec.get("max_repeats", max_repeats)
  if kind == "unimax" and isinstance(body, Mapping):
    repeats = body.get("max_repeats", repeats)
  repeats = _repeats(repeats, stock.of_languages("examples"))
  most = {lang: n * repeats[lang] for lang, n in stock.of_languages(unit).items()}
  if kind == "shares":
    of = _shares(body, spec.get("total"), unit, most, stock, repeats)
  elif kind == "temperature":
    of = _temperature(body, spec.get("total"), unit, most, stock)
  elif kind == "unimax":
    of = _unimax(body, unit, most)
  else:
    of = _COUNTED[kind](body, stock)
  _check(of, kind, unit, stock, repeats)
  kept = {key: n for key, n in sorted(of.items()) if n}
  return Amounts(unit, kept, {lang: repeats[lang] for lang, _ in kept})


def stages(
  mixture: Mapping | Sequence, *, epochs: int, steps: int
) -> list[tuple[Mapping, int, int]]:
  """[(spec, epochs, steps)] of a mixture, or of a list of them with a length each: a curriculum.

  [{"counts": {"en": 400}, "epochs": 1}, {"pinch": {...}, "steps": 200}]
  """
  if isinstance(mixture, Mapping):
    return [(mixture, epochs, steps)]
  out = []
  for i, stage in enumerate(mixture):
    where = f"data.mixture[{i}]"
    if not isinstance(stage, Mapping):
      raise UserError(
        f"{where} is {stage!r}; a stage is a mapping: a mixture with `epochs` or `steps`"
      )
    given = [name for name in LENGTHS if name in stage]
    if len(given) != 1:
      raise UserError(
        f"{where} = {dict(stage)!r} must have exactly one of epochs and steps, the stage's length"
      )
    _whole(f"{where}.{given[0]}", stage[given[0]], least=1)
    spec = {k: v for k, v in stage.items() if k not in LENGTHS}
    out.append((spec, stage.get("epochs", 0), stage.get("steps", 0)))
  if not out:
    raise UserError("data.mixture is an empty list; give at least one stage")
  if epochs or steps:
    raise UserError(
      f"data.mixture is a list of stages, each with its own length, but epochs = {epochs} and steps = {steps}: "
      "set both to 0"
    )
  return out


def spread(total: int, languages: Sequence[str]) -> dict[str, int]:
  """`total` in equal parts; what is left over goes to the first in alphabetical order.

  A larger total gives no language fewer, hence nested subsets stay nested.
  """
  languages = sorted(languages)
  each, over = divmod(total, len(languages))
  return {lang: each + (i < over) for i, lang in enumerate(languages)}


def by_largest_remainder(total: int, weights: Mapping) -> dict:
  """`total` in whole parts proportional to the weights (Hamilton's method); ties go by the key.

  by_largest_remainder(10, {"en": 2, "fi": 1}) -> {"en": 7, "fi": 3}
  """
  exact = {key: Fraction(weight) for key, weight in weights.items()}
  whole = sum(exact.values())
  quotas = {key: total * weight / whole for key, weight in exact.items()}
  out = {key: int(quota) for key, quota in quotas.items()}
  by_rest = sorted(quotas, key=lambda key: (out[key] - quotas[key], key))
  for key in by_rest[: total - sum(out.values())]:
    out[key] += 1
  return out


# --- kinds in examples


def _counts(body: Mapping, stock: Stock) -> dict[Key, int]:
  return _named(body, stock, "data.mixture.counts")


def _named(body, stock: Stock, where: str, besides: Sequence[str] = ()) -> dict[Key, int]:
  """Counts as they are written, "*" spread over the languages that are not named."""
  _mapping(where, body)
  of = {}
  for lang, count in body.items():
    if isinstance(count, Mapping):
      _known_sources(f"{where}[{lang!r}]", count, lang, stock)
      for source, part in count.items():
        _whole(f"{where}[{lang!r}][{source!r}]", part)
        of[lang, source] = part
    else:
      _whole(f"{where}[{lang!r}]", count)
      if lang != "*":
        of[lang, ""] = count
  if "*" not in body:
    return of
  others = [x for x in stock.of_languages("examples") if x not in body and x not in besides]
  if not others:
    raise UserError(
      f"{where} has '*': {body['*']}, but every language with rows is named already. Remove '*'."
    )
  return of | {(lang, ""): n for lang, n in spread(body["*"], others).items()}


def _uniform(body: Mapping, stock: Stock) -> dict[Key, int]:
  _keys("uniform", body, {"total"}, {"languages"})
  _whole("data.mixture.uniform.total", body["total"])
  languages = _languages("uniform", body, stock)
  if not languages:
    raise UserError(
      "data.mixture.uniform spreads over all languages, but data.train has no rows of any"
    )
  return {(lang, ""): n for lang, n in spread(body["total"], languages).items()}


def _pinch(body: Mapping, stock: Stock) -> dict[Key, int]:
  _keys("pinch", body, {"percent", "base", "total"}, {"languages"})
  _whole("data.mixture.pinch.total", body["total"])
  total, percent, base = body["total"], body["percent"], _base("pinch", body)
  if isinstance(percent, bool) or not isinstance(percent, (int, float)) or not 0 <= percent <= 100:
    raise UserError(f"data.mixture.pinch.percent is {percent!r}; it must lie between 0 and 100")
  languages = sorted({base, *_languages("pinch", body, stock)})
  others = [lang for lang in languages if lang != base]
  if not others:
    return {(base, ""): total}
  pinch = round(total * percent * len(others) / (100 * len(languages)))
  of = {base: total - pinch} | spread(pinch, others)
  return {(lang, ""): n for lang, n in of.items()}


def _replace(body: Mapping, stock: Stock) -> dict[Key, int]:
  base, total, others = _base_and_others("replace", body, stock)
  added = sum(others.values())
  if added > total:
    raise UserError(
      f"data.mixture.replace puts {added} examples in the place of {total} of {base!r}. Ask for fewer, or "
      "raise `total`."
    )
  return {(base, ""): total - added} | others


def _augment(body: Mapping, stock: Stock) -> dict[Key, int]:
  base, total, others = _base_and_others("augment", body, stock)
  return {(base, ""): total} | others


def _base_and_others(kind: str, body: Mapping, stock: Stock):
  _keys(kind, body, {"base", "total", "with"}, set())
  _whole(f"data.mixture.{kind}.total", body["total"])
  base = _base(kind, body)
  others = _named(body["with"], stock, f"data.mixture.{kind}.with", besides=(base,))
  if any(lang == base for lang, _ in others):
    raise UserError(f"data.mixture.{kind}.with names {base!r}, which is the base. Remove it there.")
  return base, body["total"], others


_COUNTED = {
  "counts": _counts,
  "uniform": _uniform,
  "pinch": _pinch,
  "replace": _replace,
  "augment": _augment,
}


# --- kinds in shares of a unit


def _shares(body, total, unit: str, most, stock: Stock, repeats) -> dict[Key, int]:
  where = "data.mixture.shares"
  _mapping(where, body)
  shares: dict[Key, Fraction] = {}
  for lang, share in body.items():
    if isinstance(share, Mapping):
      _known_sources(f"{where}[{lang!r}]", share, lang, stock)
      for source, part in share.items():
        shares[lang, source] = _share(f"{where}[{lang!r}][{source!r}]", part)
    else:
      shares[lang, ""] = _share(f"{where}[{lang!r}]", share)
  if ("*", "") in shares:
    whole = shares.pop(("*", ""))
    others = sorted(lang for lang in most if lang not in body)
    if not others:
      raise UserError(f"{where} has '*', but every language with rows is named already. Remove it.")
    shares |= {(lang, ""): whole / len(others) for lang in others}
  if abs(sum(shares.values()) - 1) > Fraction(1, 10**6):
    raise UserError(f"{where} sum to {float(sum(shares.values())):g}; they must sum to 1")
  shares = {key: share for key, share in shares.items() if share}
  if total is None:
    total = min(
      int(stock.amounts[unit].get(key, 0) * repeats.get(key[0], 1) / share)
      for key, share in shares.items()
    )
  _whole("data.mixture.total", total)
  return by_largest_remainder(total, shares)


def _temperature(temperature, total, unit: str, most, stock: Stock) -> dict[Key, int]:
  if not _is_number(temperature) or temperature <= 0:
    raise UserError(
      f"data.mixture.temperature is {temperature!r}; it must be above 0. 1 keeps the proportions of the rows, "
      "a high one makes them even."
    )
  sizes = {lang: n for lang, n in stock.of_languages(unit).items() if n}
  if total is None:
    raise UserError(
      f"data.mixture.temperature needs `total`, in {unit}; all rows together have {sum(sizes.values())}"
    )
  _whole("data.mixture.total", total)
  if total > sum(most.values()):
    raise _too_much("temperature", total, unit, sum(most.values()))
  # To twelve digits: the last ones of a power differ between machines.
  largest = max(sizes.values(), default=1)
  weights = {k: Fraction(f"{(n / largest) ** (1 / temperature):.12e}") for k, n in sizes.items()}
  out, open_ = {}, dict(weights)
  while open_:
    left = total - sum(out.values())
    quotas = by_largest_remainder(left, open_)
    full = [lang for lang in open_ if quotas[lang] > most[lang]]
    if not full:
      out |= quotas
      break
    for lang in full:  # what a language cannot hold is shared by the others
      out[lang] = most[lang]
      del open_[lang]
  return {(lang, ""): n for lang, n in out.items()}


def _unimax(body: Mapping, unit: str, most) -> dict[Key, int]:
  _keys("unimax", body, {"budget"}, {"max_repeats"})
  _whole("data.mixture.unimax.budget", body["budget"])
  left = body["budget"]
  if left > sum(most.values()):
    raise _too_much("unimax", left, unit, sum(most.values()))
  out = {}
  by_size = sorted((n, lang) for lang, n in most.items() if n)
  for i, (n, lang) in enumerate(by_size):
    out[lang, ""] = min(n, left // (len(by_size) - i))
    left -= out[lang, ""]
  return out


def _too_much(kind: str, asked: int, unit: str, most: int) -> UserError:
  return UserError(
    f"data.mixture.{kind} asks for {asked} {unit}, but all rows together allow {most} with their max_repeats. "
    "Ask for fewer, add rows, or raise data.max_repeats."
  )


# --- checks


def _kind(spec) -> tuple[str, object]:
  if not isinstance(spec, Mapping):
    raise UserError(
      f"data.mixture is {spec!r}; it must be a mapping, such as {{'counts': {{'en': 100}}}}"
    )
  known = {*EVERYWHERE, "unit", "total"}
  kinds = [k for k in spec if k in OPTIONS]
  names = [*OPTIONS, *known]
  strange = [k for k in spec if k not in names]
  if len(kinds) != 1 or strange:
    of = f"; {strange[0]!r} is none{_nearest(strange[0], names)}" if strange else ""
    length = next((k for k in strange if k in LENGTHS), None)
    hint = f" {length!r} belongs in a list of stages." if length else ""
    raise UserError(
      f"data.mixture = {dict(spec)!r} must have exactly one of {', '.join(OPTIONS)}"
      f" (and may have {', '.join(sorted(known))}){of}.{hint}"
    )
  kind, body = kinds[0], spec[kinds[0]]
  wrong = [k for k in spec if k in ("unit", "total") and k not in OPTIONS[kind]]
  if wrong:
    raise UserError(f"data.mixture.{wrong[0]} does not go with {kind}, whose numbers are examples")
  if kind != "temperature":
    _mapping(f"data.mixture.{kind}", body)
  return kind, body


def _without(stock: Stock, left_out, body) -> Stock:
  if isinstance(left_out, str) or not isinstance(left_out, Sequence):
    raise UserError(f"data.mixture.leave_out is {left_out!r}; it must be a list of languages")
  languages = stock.of_languages("examples")
  named = body.get("with", body) if isinstance(body, Mapping) else {}
  for lang in left_out:
    if lang not in languages:
      raise UserError(
        f"data.mixture.leave_out names {lang!r}, which data.train does not have{_nearest(lang, languages)}"
      )
    asked = lang in named or body.get("base") == lang or lang in (body.get("languages") or ())
    if asked:
      raise UserError(f"data.mixture asks for {lang!r} and leaves it out. Remove one of the two.")
  return Stock(
    {
      unit: {key: n for key, n in of.items() if key[0] not in left_out}
      for unit, of in stock.amounts.items()
    }
  )


def _repeats(repeats, languages) -> dict[str, int]:
  where = "data.mixture.max_repeats"
  if not isinstance(repeats, Mapping):
    _whole(where, repeats, least=1)
    return dict.fromkeys(languages, repeats)
  for lang, n in repeats.items():
    _whole(f"{where}[{lang!r}]", n, least=1)
    if lang != "*" and lang not in languages:
      raise UserError(
        f"{where} names {lang!r}, which data.train does not have{_nearest(lang, languages)}"
      )
  return {lang: repeats.get(lang, repeats.get("*", 1)) for lang in languages}


def _check(of: Mapping[Key, int], kind: str, unit: str, stock: Stock, repeats) -> None:
  """Whether the rows can meet what is asked for."""
  have = stock.amounts[unit]
  for (lang, source), amount in of.items():
    rows = have.get((lang, source), 0)
    what = f"{lang!r}" + (f" from {source!r}" if source else "")
    if amount and not rows:
      languages = stock.of_languages("examples")
      raise UserError(
        f"data.mixture asks for {amount} {unit} of {what}, which has no rows in data.train"
        + (
          " that can be used (too long for batch.max_length, or dropped)"
          if lang in languages
          else _nearest(lang, languages)
        )
        + f". Languages with rows: {', '.join(sorted(k for k in languages if languages[k])) or 'none'}."
      )
    if amount > rows * repeats.get(lang, 1):
      usable = f"{rows} usable rows" if unit == "examples" else f"{rows} {unit}"
      raise UserError(
        f"data.mixture asks for {amount} {unit} of {what}, but data.train has {usable} "
        f"and data.max_repeats is {repeats[lang]}. Ask for fewer, add rows, or raise data.max_repeats."
      )
  if not any(of.values()):
    raise UserError(f"data.mixture.{kind} asks for no example at all")


def _known_sources(where: str, parts: Mapping, lang: str, stock: Stock) -> None:
  if lang == "*":
    raise UserError(f"{where}: '*' stands for languages; it cannot be split by source")
  if not parts:
    raise UserError(f"{where} names no source")
  known = stock.sources(lang)
  for source in parts:
    if source not in known:
      raise UserError(
        f"{where} names the source {source!r}, which {lang!r} does not have{_nearest(source, known)}. "
        f"Its sources: {', '.join(known) or 'none'}."
      )


def _languages(kind: str, body: Mapping, stock: Stock) -> list[str]:
  languages = list(body.get("languages") or stock.of_languages("examples"))
  twice = [lang for lang in languages if languages.count(lang) > 1]
  if twice:
    raise UserError(
      f"data.mixture.{kind}.languages names {twice[0]!r} twice; name each language once"
    )
  return languages


def _base(kind: str, body: Mapping) -> str:
  if not isinstance(body["base"], str):
    raise UserError(
      f"data.mixture.{kind}.base is {body['base']!r}; it must be a language, such as 'en'"
    )
  return body["base"]


def _keys(kind, body, required: set, optional: set):
  unknown, missing = set(body) - required - optional, required - set(body)
  if unknown or missing:
    raise UserError(
      f"data.mixture.{kind} = {dict(body)!r}: "
      + (f"lacks {sorted(missing)}. " if missing else "")
      + (f"does not know {sorted(unknown)}. " if unknown else "")
      + f"It takes {sorted(required)}"
      + (f" and may take {sorted(optional)}." if optional else ".")
    )


def _mapping(where: str, value) -> None:
  if not isinstance(value, Mapping):
    raise UserError(f"{where} is {value!r}; it must be a mapping")


def _share(where: str, value) -> Fraction:
  if not _is_number(value) or not 0 <= value <= 1:
    raise UserError(f"{where} is {value!r}; a share lies between 0 and 1")
  return Fraction(repr(value))  # .1 as it is written, not as binary rounds it


def _is_number(value) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _whole(place: str, value, least: int = 0) -> None:
  if isinstance(value, bool) or not isinstance(value, int) or value < least:
    raise UserError(f"{place} is {value!r}; it must be a whole number, {least} or more")


def _nearest(name, known) -> str:
  near = difflib.get_close_matches(str(name), list(known), n=1)
  return f" (did you mean {near[0]!r}?)" if near else ""
