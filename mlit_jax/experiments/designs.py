"""Designs of experiments: what each arm of a sweep is tuned on, in whole amounts of each language.

    pinch(["ar", "en", "fi"], "en", [0, 1], 300)
      P=0  en 300
      P=1  en 298, ar 1, fi 1        300 * 1 % * 2/3 = 2 that are not English

An amount is of one epoch, in the unit of the budget: examples, tokens or trained tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from mlit_jax.data.mixture import Stock, resolve, spread
from mlit_jax.errors import UserError

REPLACE, AUGMENT = "replace", "augment"  # the total stays, or every language adds to it


@dataclasses.dataclass(frozen=True)
class Arm:
  """One thing to tune on. factors: what curves and tables sort by. A baseline is only compared with."""

  name: str
  amounts: Mapping[str, int]
  factors: Mapping[str, object] = dataclasses.field(default_factory=dict)
  is_baseline: bool = False

  @property
  def tuned(self) -> list[str]:
    return sorted(lang for lang, amount in self.amounts.items() if amount)


def monolingual(languages: Sequence[str], total: int) -> list[Arm]:
  """One arm for each language (Shaham et al. 2024, figure 1)."""
  return [Arm(lang, {lang: total}, {"language": lang}) for lang in languages]


def pinch(
  languages: Sequence[str],
  base: str,
  percents: Sequence[float],
  total: int,
  design: str = REPLACE,
) -> list[Arm]:
  """P percent of `total` spread evenly over all languages, the rest base (figures 3 and 4).

  The base is one of the languages that P is spread over, so total * P/100 * (L - 1)/L are of the others.
  With `augment` these come on top of `total` of the base.
  """
  _check_design(design)
  if base not in languages:
    raise UserError(f"the base language {base!r} is not among the languages {', '.join(languages)}")
  rows = Stock.of_examples(dict.fromkeys(languages, total))
  arms = []
  for percent in percents:
    spec = {"base": base, "percent": percent, "total": total, "languages": list(languages)}
    amounts = {lang: n for (lang, _), n in resolve({"pinch": spec}, rows).of.items()}
    if design == AUGMENT:
      amounts[base] = total
    arms.append(Arm(f"P={percent:g}", amounts, {"percent": percent}))
  return arms


def nested(
  orders: Sequence[Sequence[str]], sizes: Sequence[int], total: int, design: str = REPLACE
) -> list[Arm]:
  """The first n languages of each order, evenly (figure 5: three orders, a constant budget).

  With `replace` all arms have `total`, with `augment` each language has it (Ji and Chen 2024).
  """
  _check_design(design)
  arms = []
  for number, order in enumerate(orders):
    _check_different(order, "an order of languages")
    for size in sizes:
      if not 1 <= size <= len(order):
        raise UserError(
          f"{size} languages are asked for, the order {', '.join(order)} has {len(order)}"
        )
      chosen = order[:size]
      amounts = spread(total, chosen) if design == REPLACE else dict.fromkeys(chosen, total)
      name = f"{size} language{'s' * (size > 1)}"
      if len(orders) > 1:
        name += f", order {number + 1}"
      arms.append(Arm(name, amounts, {"languages": size, "order": number + 1}))
  return arms


def pairs(of: Sequence[Sequence[str]], total: int) -> list[Arm]:
  """Half and half of two languages (figure 6)."""
  for pair in of:
    if len(pair) != 2:
      raise UserError(f"a pair has two languages; {', '.join(pair)} are {len(pair)}")
    _check_different(pair, "a pair")
  return [Arm("+".join(pair), spread(total, pair), {"pair": "+".join(pair)}) for pair in of]


def stepwise(base: str, added: Sequence[str], each: int, total: int) -> list[Arm]:
  """One language after another takes `each` from the base (Kew et al. 2023: 200 of 3,200)."""
  _check_different([base, *added], "the base and the added languages")
  if each * len(added) > total:
    raise UserError(
      f"{len(added)} languages of {each} are more than the total of {total}; lower one of them"
    )
  arms = []
  for n in range(len(added) + 1):
    amounts = {base: total - n * each} | dict.fromkeys(added[:n], each)
    name = f"{base} + {n} language{'s' * (n != 1)}"
    arms.append(Arm(name, {k: v for k, v in amounts.items() if v}, {"languages": n + 1}))
  return arms


def leave_one_out(amounts: Mapping[str, int], *, base: str = "") -> list[Arm]:
  """All languages but one; its amount goes to the base, or is left out where there is none."""
  arms = []
  for lang in amounts:
    if lang != base:
      rest = {k: v for k, v in amounts.items() if k != lang}
      if base:
        rest[base] = rest.get(base, 0) + amounts[lang]
      arms.append(Arm(f"without {lang}", rest, {"left_out": lang}))
  return arms


def rotations(languages: Sequence[str], first: str, number: int) -> list[list[str]]:
  """`number` orders that begin with `first`; each of the others stands at another place in each."""
  others = [lang for lang in languages if lang != first]
  step = max(1, len(others) // max(1, number))
  return [[first, *others[k * step :], *others[: k * step]] for k in range(number)]


def with_baselines(arms: Sequence[Arm], languages: Sequence[str], total: int) -> list[Arm]:
  """The arms, and for each language that lacks one the model tuned on all of it, to be compared with.

  IF_L(M) is M side by side with the model tuned on the full monolingual set of L (Shaham et al. 2024, section 3).
  """
  have = {arm.tuned[0] for arm in arms if list(arm.amounts.values()) == [total]}
  missing = [lang for lang in languages if lang not in have]
  return [
    *arms,
    *(Arm(f"only {lang}", {lang: total}, {}, is_baseline=True) for lang in missing),
  ]


def mixture(amounts: Mapping[str, int], unit: str) -> dict:
  """The `data.mixture` of an arm."""
  amounts = {lang: n for lang, n in sorted(amounts.items()) if n}
  if unit == "examples":
    return {"counts": amounts}
  total = sum(amounts.values())
  return {"shares": {lang: n / total for lang, n in amounts.items()}, "unit": unit, "total": total}


def check_names(arms: Sequence[Arm]) -> None:
  """Arms are told apart by their names."""
  for name, of_name in itertools.groupby(sorted(arm.name for arm in arms)):
    if len(list(of_name)) > 1:
      raise UserError(f"two arms are named {name!r}; get_arms() must give each a name of its own")


def _check_design(design: str) -> None:
  if design not in (REPLACE, AUGMENT):
    raise UserError(f"budget.design is {design!r}; it must be {REPLACE!r} or {AUGMENT!r}")


def _check_different(languages: Sequence[str], what: str) -> None:
  if len(set(languages)) < len(languages):
    raise UserError(f"{what} names a language twice: {', '.join(languages)}")
