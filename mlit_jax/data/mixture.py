"""A mixture spec becomes integers: how many examples of each language, and which ones."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence

from mlit_jax.errors import UserError

KINDS = ("counts", "uniform", "pinch")
OPTIONS = {"max_repeats"}


def resolve_counts(
  spec: Mapping, available: Mapping[str, int], *, max_repeats: int = 1
) -> dict[str, int]:
  """Examples of each language per epoch, exactly.

      counts   {"en": 4350, "*": 40}: "*" is spread evenly over all languages not named
      uniform  {"languages": ["en", "fi"], "total": 4640}: languages default to all
      pinch    {"percent": 1, "base": "en", "total": 4390}: Shaham et al. 2024, section 4: P percent of
               N spread evenly over all L languages, the base among them, the rest is base; so
               the others get N * P/100 * (L-1)/L together

  `available` is the number of usable rows of each language. Asking for more than `max_repeats`
  times as many, or for a language without rows, is a UserError. Languages with 0 are left out.
  """
  kind, body = _kind(spec)
  max_repeats = spec.get("max_repeats", max_repeats)
  counts = {"counts": _counts, "uniform": _uniform, "pinch": _pinch}[kind](body, available)
  for lang, count in counts.items():
    if count and not available.get(lang):
      raise UserError(
        f"data.mixture asks for {count} examples of {lang!r}, which has no rows in data.train"
        + (" that fit in batch.max_length" if lang in available else _nearest(lang, available))
        + f". Languages with rows: {', '.join(sorted(k for k in available if available[k])) or 'none'}."
      )
    if count > available.get(lang, 0) * max_repeats:
      raise UserError(
        f"data.mixture asks for {count} examples of {lang!r}, but data.train has {available[lang]} usable "
        f"rows and data.max_repeats is {max_repeats}. Ask for fewer, add rows, or raise data.max_repeats."
      )
  if not any(counts.values()):
    raise UserError(f"data.mixture {dict(spec)} asks for no example at all")
  return {lang: count for lang, count in sorted(counts.items()) if count}


def choose(keys: Mapping[str, Sequence[str]], counts: Mapping[str, int], seed: int) -> dict:
  """Which rows stand in each epoch: language -> list of (row, repeat).

  `keys[lang][i]` names row i (its parallel group, or its own id). Rows are ranked by a hash of seed and
  key, so that a smaller subset is contained in a larger one, whatever else is in the data, and parallel
  rows are chosen together. A count above the number of rows takes whole passes first.
  """
  chosen = {}
  for lang, count in counts.items():
    ranked = sorted(
      range(len(keys[lang])), key=lambda i, k=keys[lang]: (stable_hash(seed, k[i]), i)
    )
    chosen[lang] = [(ranked[j % len(ranked)], j // len(ranked)) for j in range(count)]
  return chosen


def stable_hash(*parts) -> int:
  """64 bits of blake2b over the parts' text: the same on every machine and in every release."""
  text = "\x1f".join(map(str, parts)).encode()
  return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def spread(total: int, languages: Sequence[str]) -> dict[str, int]:
  """`total` in equal parts; what is left over goes to the first in alphabetical order.

  A larger total gives no language fewer, hence nested subsets stay nested.
  """
  languages = sorted(languages)
  each, over = divmod(total, len(languages))
  return {lang: each + (i < over) for i, lang in enumerate(languages)}


def _kind(spec) -> tuple[str, object]:
  kinds = [k for k in spec if k not in OPTIONS]
  if len(kinds) != 1 or kinds[0] not in KINDS:
    raise UserError(
      f"data.mixture = {dict(spec)!r} must have exactly one of {', '.join(KINDS)}"
      f" (and may have {', '.join(sorted(OPTIONS))}){_nearest(kinds[0], KINDS) if kinds else ''}."
    )
  kind, body = kinds[0], spec[kinds[0]]
  if not isinstance(body, Mapping):
    raise UserError(f"data.mixture.{kind} is {body!r}; it must be a mapping")
  _whole("data.mixture.max_repeats", spec.get("max_repeats", 1))
  return kind, body


def _counts(body: Mapping, available) -> dict[str, int]:
  for lang, count in body.items():
    _whole(f"data.mixture.counts[{lang!r}]", count)
  named = {lang: count for lang, count in body.items() if lang != "*"}
  if "*" not in body:
    return named
  others = [lang for lang in available if lang not in named]
  if not others:
    raise UserError(
      f"data.mixture.counts has '*': {body['*']}, but every language with rows is named already. Remove '*'."
    )
  return named | spread(body["*"], others)


def _uniform(body: Mapping, available) -> dict[str, int]:
  _keys("uniform", body, {"total"}, {"languages"})
  _whole("data.mixture.uniform.total", body["total"])
  languages = list(body.get("languages") or available)
  if not languages:
    raise UserError(
      "data.mixture.uniform spreads over all languages, but data.train has no rows of any"
    )
  twice = [lang for lang in languages if languages.count(lang) > 1]
  if twice:
    raise UserError(
      f"data.mixture.uniform.languages names {twice[0]!r} twice; name each language once"
    )
  return spread(body["total"], languages)


def _pinch(body: Mapping, available) -> dict[str, int]:
  _keys("pinch", body, {"percent", "base", "total"}, {"languages"})
  _whole("data.mixture.pinch.total", body["total"])
  total, percent, base = body["total"], body["percent"], body["base"]
  if isinstance(percent, bool) or not isinstance(percent, (int, float)) or not 0 <= percent <= 100:
    raise UserError(f"data.mixture.pinch.percent is {percent!r}; it must lie between 0 and 100")
  if not isinstance(base, str):
    raise UserError(f"data.mixture.pinch.base is {base!r}; it must be a language, such as 'en'")
  languages = sorted({base, *(body.get("languages") or available)})
  others = [lang for lang in languages if lang != base]
  if not others:
    return {base: total}
  pinch = round(total * percent * len(others) / (100 * len(languages)))
  return {base: total - pinch} | spread(pinch, others)


def _keys(kind, body, required: set, optional: set):
  unknown, missing = set(body) - required - optional, required - set(body)
  if unknown or missing:
    raise UserError(
      f"data.mixture.{kind} = {dict(body)!r}: "
      + (f"lacks {sorted(missing)}. " if missing else "")
      + (f"does not know {sorted(unknown)}. " if unknown else "")
      + f"It takes {sorted(required)} and may take {sorted(optional)}."
    )


def _whole(place: str, value) -> None:
  if isinstance(value, bool) or not isinstance(value, int) or value < 0:
    raise UserError(f"{place} is {value!r}; it must be a whole number, 0 or more")


def _nearest(name, known) -> str:
  near = difflib.get_close_matches(str(name), list(known), n=1)
  return f" (did you mean {near[0]!r}?)" if near else ""
