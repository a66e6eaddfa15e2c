"""Which backend computes attention: the one that is asked for, or the fastest that can."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from mlit_jax import mesh
from mlit_jax.attention import causal, chunked, dense
from mlit_jax.attention.scoring import Rows, Scoring
from mlit_jax.errors import UserError

AUTO = "auto"


class Needs(NamedTuple):
  """What the layers of a kind ask of attention, all known before anything is computed."""

  platform: str  # "cpu", "gpu" or "tpu"
  dtype: jnp.dtype
  length: int  # tokens of a row
  heads: int
  kv_heads: int
  head_dim: int
  scoring: Scoring
  windows: tuple[int, ...] = (0,)  # of all layers of the kind; 0: none
  has_slopes: bool = False
  max_segments: int = 0  # examples that a row holds at most; 0: not known
  capability: str = ""  # of an NVIDIA GPU: "9.0"
  parts: int = (
    1  # into how many the queries of a row are cut, which see all keys of it (mesh.row_parts)
  )


class Backend(NamedTuple):
  """One way to compute attention."""

  name: str
  # Why it cannot do what is needed, "" if it can. Nothing is imported where the platform is the reason.
  refusal: Callable[[Needs], str]
  # (rows, needs) -> what `run` gets, once for all layers: arrays, rows first.
  prepare: Callable[[Rows, Needs], object]
  # (q_BTNH, k_BSKH, v_BSKH, prepared, window, needs, slopes_N) -> o_BTNH; window is an array. One that takes parts
  # gets `start` besides: which token of the row the first query is.
  run: Callable
  in_shards: bool = True  # whether each device runs it on its own rows and heads
  takes_parts: bool = False  # whether the queries may be a part of the row that the keys are
  in_trace: bool = True  # whether its products can be counted there; those of a kernel cannot


def _can_all(needs: Needs) -> str:
  return ""


def _run_dense(q, k, v, rows, window, needs: Needs, slopes_N, start=0):
  return dense.attend_rows(q, k, v, rows, window, needs.scoring, slopes_N, start=start)


def _refuse_causal(needs: Needs) -> str:
  if needs.platform != "cpu":
    return f"it is for CPU, not for {needs.platform.upper()}"
  if needs.parts > 1:
    return f"it takes whole rows of queries, and mesh.context cuts them into {needs.parts}"
  longest = causal.LONGEST
  return f"it takes rows of up to {longest} tokens" if needs.length > longest else ""


def _run_causal(q, k, v, rows, window, needs: Needs, slopes_N):
  return causal.attend(q, k, v, rows, window, needs.scoring, slopes_N)


def _run_chunked(q, k, v, rows, window, needs: Needs, slopes_N, start=0):
  # A CPU's cores have all they want in one block, and rows differ in what they need not visit.
  on_cpu = needs.platform == "cpu"
  block = 128 if on_cpu else 512
  return chunked.attend(
    q, k, v, rows, window, needs.scoring, slopes_N, block=block, by_row=on_cpu, start=start
  )


def _adapter(name: str, platform: str) -> Backend:
  """A backend whose kernels are for one platform, in the module of its name, imported when it is asked for."""

  def load():
    return importlib.import_module(f"mlit_jax.attention.{name}")

  def refusal(needs: Needs) -> str:
    if needs.platform != platform:
      return f"it is for {platform.upper()}, not for {needs.platform.upper()}"
    if needs.parts > 1:
      return (
        f"its kernel takes whole rows of queries, and {needs.heads} query heads cannot be dealt out over mesh.context "
        f"{needs.parts} (times mesh.tensor), so that each device keeps a part of every row"
      )
    return load().refusal(needs)

  return Backend(
    name,
    refusal,
    lambda rows, needs: load().prepare(rows, needs),
    lambda *args: load().run(*args),
    in_trace=False,
  )


BACKENDS = {
  backend.name: backend
  for backend in (
    Backend(
      "xla", _can_all, lambda rows, needs: rows, _run_dense, in_shards=False, takes_parts=True
    ),
    Backend("xla_causal", _refuse_causal, lambda rows, needs: rows, _run_causal),
    Backend("xla_chunked", _can_all, lambda rows, needs: rows, _run_chunked, takes_parts=True),
    _adapter("cudnn", "gpu"),
    _adapter("mosaic_gpu", "gpu"),
    _adapter("splash", "tpu"),
    _adapter("jax_splash", "tpu"),
  )
}
NAMES = (AUTO, *BACKENDS)
# From the fastest on (docs/performance.md).
_ORDER = {
  "cpu": ("xla_causal", "xla_chunked"),
  "gpu": ("cudnn", "mosaic_gpu", "xla_chunked"),
  "tpu": ("splash", "jax_splash", "xla_chunked"),
}
_SHORT = 128  # rows of up to so many tokens are computed all at once


@dataclasses.dataclass(frozen=True)
class Choice:
  """model.attention, and for which devices."""

  name: str = "xla"
  platform: str = "cpu"
  max_segments: int = 0
  capability: str = ""
  sizes: tuple[tuple[str, int], ...] = ()  # of the mesh's axes; of none: one device

  @classmethod
  def on(cls, of: Mesh, name: str = AUTO, max_segments: int = 0) -> Choice:
    """For the devices of this mesh, which need not be here."""
    capability = str(getattr(of.devices.flat[0], "compute_capability", "") or "")
    return cls(name, mesh.platform(of), max_segments, capability, tuple(of.shape.items()))

  def row_parts(self, heads: int) -> int:
    """Into how many parts the queries of a row are cut."""
    return mesh.row_parts(heads, dict(self.sizes)) if self.sizes else 1

  def backend(self, needs: Needs) -> Backend:
    """UserError: the named one cannot."""
    if self.name == AUTO:
      return self._fastest(needs)
    backend = BACKENDS[self.name]
    if reason := backend.refusal(needs):
      raise UserError(
        f"model.attention is {self.name!r}, which cannot compute this model's attention: {reason}. "
        f"{self._fastest(needs).name!r} can, and is what 'auto' takes."
      )
    return backend

  def _fastest(self, needs: Needs) -> Backend:
    if needs.length <= _SHORT:
      return BACKENDS["xla"]
    order = _ORDER.get(needs.platform, ("xla",))
    return next(BACKENDS[name] for name in order if not BACKENDS[name].refusal(needs))


PLAIN = Choice()


def attend(backend: Backend, q_BTNH, k_BTKH, v_BTKH, prepared, window, needs: Needs, slopes_N=None):
  """o_BTNH, on any mesh."""
  window = jnp.asarray(window, jnp.int32)
  is_cut = not mesh.is_one_device() and mesh.is_cut(needs.length, needs.heads)
  assert backend.takes_parts or not is_cut, (backend.name, needs)
  if mesh.is_one_device() or not (backend.in_shards or is_cut):
    return backend.run(q_BTNH, k_BTKH, v_BTKH, prepared, window, needs, slopes_N)

  def here(q, k, v, prepared, window, slopes_N, start):
    local = needs._replace(heads=q.shape[2], kv_heads=k.shape[2])
    part = {"start": start} if is_cut else {}
    return backend.run(q, k, v, prepared, window, local, slopes_N, **part)

  return mesh.by_head(here, q_BTNH, k_BTKH, v_BTKH, prepared, window, slopes_N)
