"""Each attention backend, run on packed rows and compared with numpy; or why it cannot run here."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

from mlit_jax.attention.choice import AUTO, BACKENDS, Backend, Choice, Needs
from mlit_jax.attention.scoring import Rows, Scoring
from mlit_jax.errors import UserError
from mlit_jax.examining.finding import Finding, examine, ok, warning, wrong

BATCH, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 2, 256, 4, 2, 64
WINDOWS = (0, 96)  # none, and one that cuts the longest segment
SEGMENTS = ((150, 1, 70, 35), (40, 97, 60))  # tokens of each; the second row ends in padding
# Of the largest value of each array. Accelerators' kernels compute in bfloat16, whose steps are 2^-8.
TOLERANCES = {"float32": 2e-5, "bfloat16": 3e-2}
ARRAYS = ("output", "gradient of queries", "gradient of keys", "gradient of values")


def attention() -> list[Finding]:
  """One line for each backend, and one for what `auto` takes."""
  needs = needs_here()
  found = [finding for name in BACKENDS for finding in one(name, needs)]
  bad = {f.item for f in found if f.state == "wrong"}
  auto = _auto(needs)
  if f"attention {auto}" in bad:
    good = [name for name in BACKENDS if f"attention {name}" in {f.item for f in found} - bad]
    good = [name for name in good if not BACKENDS[name].refusal(needs)]
    remedy = f"Set model.attention to {good[0]!r}." if good else "Do not train here."
    return [*found, wrong("attention auto", f"takes {auto}, which is wrong here", remedy)]
  return [*found, ok("attention auto", f"takes {auto} for rows of over 128 tokens")]


def reference(q, k, v, do, segments_BT, scale: float, window: int):
  """o, dq, dk, dv in float64, row by row and head by head: attention as the formula has it."""
  q, k, v, do = (np.asarray(x, np.float64) for x in (q, k, v, do))
  out = [np.zeros_like(x) for x in (q, q, k, v)]
  o, dq, dk, dv = out
  group = q.shape[2] // k.shape[2]
  at = np.arange(q.shape[1])
  distance = at[:, None] - at[None]
  near = (distance >= 0) & ((distance < window) if window else True)
  for b, segments in enumerate(np.asarray(segments_BT)):
    sees = near & (segments[:, None] == segments[None]) & (segments > 0)[:, None]
    for n in range(q.shape[2]):
      K = n // group
      scores = np.where(sees, scale * q[b, :, n] @ k[b, :, K].T, -np.inf)
      top = np.where(segments > 0, scores.max(axis=1, initial=-1e300), 0.0)
      weights = np.exp(scores - top[:, None])
      weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
      o[b, :, n] = weights @ v[b, :, K]
      d_weights = do[b, :, n] @ v[b, :, K].T
      d_scores = weights * (d_weights - (weights * d_weights).sum(axis=1, keepdims=True))
      dq[b, :, n] = scale * d_scores @ k[b, :, K]
      dk[b, :, K] += scale * d_scores.T @ q[b, :, n]
      dv[b, :, K] += weights.T @ do[b, :, n]
  return out


def one(name: str, needs: Needs) -> list[Finding]:
  """The backend of that name."""
  return examine(f"attention {name}", lambda: _look(BACKENDS[name], needs))


def needs_here() -> Needs:
  """What is asked for on the devices of this process."""
  device = jax.local_devices()[0]
  return _needs(device.platform, str(getattr(device, "compute_capability", "") or ""))


def _look(backend: Backend, needs: Needs) -> list[Finding]:
  item = f"attention {backend.name}"
  if reason := backend.refusal(needs):
    if reason.startswith("it is for "):
      return [ok(item, f"not for here: {reason}")]
    remedy = f"Nothing, if {_auto(needs)!r} will do, which 'auto' takes; else what the reason says."
    return [warning(item, f"cannot here: {reason}", remedy)]
  return [check(item, *_run(backend, needs), str(jnp.dtype(needs.dtype)))]


def check(item: str, errors: dict[str, float], seconds: float, dtype: str) -> Finding:
  """Errors by array, of the largest value of each."""
  name, worst = max(errors.items(), key=lambda e: np.inf if np.isnan(e[1]) else e[1])
  if not worst <= TOLERANCES[dtype]:
    found = f"its {name} is off by {worst:.1e} of the largest value ({dtype})"
    remedy = "Set model.attention to another; a driver, plugin or package may not fit."
    return wrong(item, found, remedy)
  return ok(item, f"as numpy's to {worst:.0e} ({dtype}), {1e3 * seconds:,.1f} ms both ways")


def _run(backend: Backend, needs: Needs) -> tuple[dict[str, float], float]:
  """{array: error}, and seconds of a repeat, forward and backward."""
  rows, live = _rows()
  rng = np.random.default_rng(1)
  shapes = [(BATCH, LENGTH, n, HEAD_DIM) for n in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
  q, k, v, do = (jnp.asarray(rng.standard_normal(s), needs.dtype) for s in shapes)
  do = do * jnp.asarray(live[:, :, None, None], needs.dtype)

  @jax.jit
  def both_ways(q, k, v, do, rows, window):
    prepared = backend.prepare(rows, needs)
    o, back = jax.vjp(lambda *qkv: backend.run(*qkv, prepared, window, needs, None), q, k, v)
    return o, *back(do)

  errors = {}
  for window in WINDOWS:
    width = jnp.asarray(window, jnp.int32)
    found = jax.block_until_ready(both_ways(q, k, v, do, rows, width))
    began = time.perf_counter()
    jax.block_until_ready(both_ways(q, k, v, do, rows, width))
    seconds = time.perf_counter() - began
    wanted = reference(q, k, v, do, rows.segments_BT, needs.scoring.scale, window)
    for name, a, b in zip(ARRAYS, found, wanted, strict=True):
      a = np.where(live[:, :, None, None], np.asarray(a, np.float64), 0.0)
      error = float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
      label = f"{name}, window {window}" if window else name
      errors[label] = error
  return errors, seconds


def _rows() -> tuple[Rows, np.ndarray]:
  segments, positions = np.zeros((2, BATCH, LENGTH), np.int32)
  for b, sizes in enumerate(SEGMENTS):
    numbers = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    segments[b, : len(numbers)] = numbers
    positions[b, : len(numbers)] = np.concatenate([np.arange(size) for size in sizes])
  return Rows(jnp.asarray(positions), jnp.asarray(segments)), segments > 0


def _needs(platform: str, capability: str) -> Needs:
  dtype = jnp.dtype("float32" if platform == "cpu" else "bfloat16")
  return Needs(
    platform, dtype, LENGTH, HEADS, KV_HEADS, HEAD_DIM, Scoring(HEAD_DIM**-0.5), WINDOWS,
    max_segments=max(map(len, SEGMENTS)), capability=capability,
  )  # fmt: skip


def _auto(needs: Needs) -> str:
  try:
    return Choice(AUTO, needs.platform, capability=needs.capability).backend(needs).name
  except (UserError, StopIteration):
    return "xla"
