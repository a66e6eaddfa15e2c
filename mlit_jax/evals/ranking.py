"""Many models on one scale, from games between pairs of them (Bradley and Terry 1952)."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from rich.table import Table
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from mlit_jax.errors import UserError
from mlit_jax.evals.statistics import (
  NUM_DRAWS,
  Figure,
  interval_of_draws,
  resample_sums,
)

ELO_PER_LOG_ODDS = 400 / math.log(10)
ANCHOR_ELO = 1000.0


@dataclasses.dataclass(frozen=True)
class Game:
  """Model a against model b on a prompt: 1 a won, 0 b won, 0.5 tie."""

  prompt: object
  a: str
  b: str
  score: float


@dataclasses.dataclass(frozen=True)
class Ranking:
  """Elo figures, best first (n: games of the model); the anchor's is held, so without interval.

  patched_draws: share of bootstrap draws in which some models never lost, or never won, against the
  rest; half a tie was added there to each pair that met.
  """

  figures: dict[str, Figure]
  anchor: str
  patched_draws: float

  def win_chance(self, a: str, b: str) -> float:
    return float(expit((self.figures[a].value - self.figures[b].value) / ELO_PER_LOG_ODDS))

  def table(self, title: str = "Bradley-Terry") -> Table:
    """Models, best first, with Elo, interval and number of games."""
    out = Table(title=title, title_justify="left")
    for column in ("model", "Elo", "95 %", "games"):
      out.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for model, figure in self.figures.items():
      interval = "" if figure.low is None else f"{figure.low:.0f} to {figure.high:.0f}"
      interval = "anchor" if model == self.anchor else interval
      out.add_row(model, f"{figure.value:.0f}", interval, str(figure.n))
    return out


def rank(
  games: Iterable[Game],
  *,
  anchor: str | None = None,
  added_ties: float = 0.0,
  seed: int = 0,
  num_draws: int = NUM_DRAWS,
) -> Ranking:
  """P(a wins) = 1 / (1 + exp(s_b - s_a)) by maximum likelihood; a tie is half a win for both.

  Elo = 1000 + 400 / ln 10 (s - s_anchor); anchor None: the first model by name. Intervals: bootstrap
  over prompts, all games of a prompt together. Strengths exist only if no part of the models has
  won, or lost, every game against the rest (Ford 1957); else it is refused, unless added_ties > 0:
  so many ties are then added to each pair that met.
  """
  games = list(games)
  names = sorted({g.a for g in games} | {g.b for g in games})
  anchor = names[0] if anchor is None and names else anchor
  _check(games, names, anchor)
  size, at = len(names), {name: i for i, name in enumerate(names)}
  prompts = {prompt: k for k, prompt in enumerate(dict.fromkeys(g.prompt for g in games))}
  rows, a, b = np.array([(prompts[g.prompt], at[g.a], at[g.b]) for g in games]).T
  scores = np.array([g.score for g in games], np.float64)
  points_GM = np.zeros((len(prompts), size * size))
  np.add.at(points_GM, (rows, a * size + b), scores)
  np.add.at(points_GM, (rows, b * size + a), 1 - scores)
  num_games_M = np.bincount(a, minlength=size) + np.bincount(b, minlength=size)
  points_MM = points_GM.sum(axis=0).reshape(size, size)
  met_MM = (points_MM + points_MM.T) > 0
  _check_connected(points_MM + added_ties / 2 * met_MM, names)
  start_M = fit_strengths((points_MM + added_ties / 2 * met_MM)[None])[0]
  draws_SMM = resample_sums(points_GM, seed=seed, num_draws=num_draws).reshape(-1, size, size)
  draws_SMM = draws_SMM + added_ties / 2 * met_MM
  loose_S = ~_connected(draws_SMM)
  draws_SMM[loose_S] += met_MM / 4  # half a tie
  draws_SM = fit_strengths(draws_SMM, start_M=start_M)
  elo_M = ANCHOR_ELO + ELO_PER_LOG_ODDS * (start_M - start_M[at[anchor]])
  elo_SM = ANCHOR_ELO + ELO_PER_LOG_ODDS * (draws_SM - draws_SM[:, at[anchor], None])
  figures = {}
  for name in sorted(names, key=lambda name: (-elo_M[at[name]], name)):
    k = at[name]
    ends = (None, None)
    if name != anchor:
      ends = interval_of_draws(elo_SM[:, k], float(elo_M[k]), n=len(points_GM))
    figures[name] = Figure(float(elo_M[k]), int(num_games_M[k]), *ends)
  return Ranking(figures, anchor, float(loose_S.mean()))


def fit_strengths(points_SMM: np.ndarray, *, start_M=None, max_steps: int = 100) -> np.ndarray:
  """Log-odds strengths [S, M], the first model's 0, for every table of points at once.

  points[i, j] is what i took from j. Newton's method; the likelihood has one peak.
  """
  num, size, _ = points_SMM.shape
  games_SMM = points_SMM + points_SMM.transpose(0, 2, 1)
  at_SM = np.zeros((num, size)) if start_M is None else np.tile(start_M - start_M[0], (num, 1))
  for _ in range(max_steps):
    p_SMM = expit(at_SM[:, :, None] - at_SM[:, None, :])
    gradient_SM = (points_SMM - games_SMM * p_SMM).sum(axis=2)
    bend_SMM = -games_SMM * p_SMM * (1 - p_SMM)
    diagonal = np.arange(size)
    bend_SMM[:, diagonal, diagonal] -= bend_SMM.sum(axis=2)
    step_SM = np.linalg.solve(bend_SMM[:, 1:, 1:], gradient_SM[:, 1:, None])[..., 0]
    # A full step can leave the region where the quadratic holds.
    step_SM = np.clip(step_SM, -1.0, 1.0)
    at_SM[:, 1:] += step_SM
    if np.abs(step_SM).max(initial=0.0) < 1e-6:
      break
  return at_SM


def _check(games, names, anchor) -> None:
  if len(names) < 2:
    raise UserError(
      f"a ranking needs two models or more; the games name {', '.join(names) or 'none'}."
    )
  if anchor not in names:
    raise UserError(f"anchor {anchor!r} has no games; the models are {', '.join(names)}.")
  for g in games:
    if g.a == g.b or not 0 <= g.score <= 1:
      raise UserError(
        f"game on prompt {g.prompt!r}: {g.a!r} against {g.b!r} with score {g.score!r}; expected two "
        f"models and 1, 0.5 or 0."
      )


def _check_connected(points_MM, names) -> None:
  number, part_M = connected_components(points_MM > 0, connection="strong")
  if number == 1:
    return
  parts = [[n for n, p in zip(names, part_M) if p == k] for k in range(number)]
  shown = "; ".join(", ".join(part) for part in sorted(parts, key=len)[:5])
  whole, _ = connected_components(points_MM + points_MM.T > 0, connection="weak")
  if whole > 1:
    raise UserError(
      f"models without a game between them cannot be ranked together: {shown}. Add games that "
      f"connect them, or rank each part by itself."
    )
  raise UserError(
    f"these models won, or lost, every game against the rest, so their strength has no bound: "
    f"{shown}. Add games, leave them out, or set added_ties (0.5, say) to hold them."
  )


def _connected(points_SMM) -> np.ndarray:
  """Whether each table's graph is strongly connected: squaring reaches what n steps reach."""
  size = points_SMM.shape[1]
  reach_SMM = (points_SMM > 0) | np.eye(size, dtype=bool)
  for _ in range(max(1, math.ceil(math.log2(size)))):
    reach_SMM = reach_SMM.astype(np.float32) @ reach_SMM.astype(np.float32) > 0
  return reach_SMM.all(axis=(1, 2))
