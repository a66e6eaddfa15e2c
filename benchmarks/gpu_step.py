"""Our train step, its loader and its gradient on one GPU; a part of benchmarks/gpu.py."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from gpu_material import (
  NotMeasured,
  hf_config,
  packed_arrays,
  segment_lengths,
  tokens_of,
  trained_of,
)

from configs import base
from mlit_jax import mesh as meshes
from mlit_jax.batch import Batch
from mlit_jax.model import decoder
from mlit_jax.model.config import from_hf
from mlit_jax.stepping import make_stepping
from mlit_jax.training import flops


def measure(spec: dict) -> dict:
  """tokens/s of one model with these rows and settings: {"model.remat": "none"}."""
  cfg = from_hf(hf_config(spec["model"], spec["tiny"]))
  arrays = packed_arrays(
    spec["rows"], spec["length"], cfg.vocab_size,
    packing=spec.get("packing", True), longest=spec.get("longest", 0),
  )  # fmt: skip
  began = time.perf_counter()
  mesh, stepping = build(cfg, spec, arrays)
  batch = meshes.put_batch(Batch(**arrays), mesh, spec["rows"])
  with jax.set_mesh(mesh):
    compiled = stepping.train_step.lower(stepping.state_shapes(), batch).compile()
    compiling = time.perf_counter() - began
    planned = planned_bytes(compiled.memory_analysis())
    if (limit := memory_stat("bytes_limit")) and planned > limit:
      raise NotMeasured(
        f"out of memory: {planned / 2**30:.1f} GiB planned, {limit / 2**30:.1f} there"
      )
    state = fresh_state(stepping, cfg)
    state, seconds, loss = time_steps(compiled, state, batch, 2 if spec["tiny"] else 6.0)
  lengths, trained = segment_lengths(arrays), trained_of(arrays)
  useful, peak = flops.step_flops(cfg, lengths, trained), flops.peak_flops()
  return {
    "device": jax.devices()[0].device_kind,
    "tokens_per_second": tokens_of(arrays) / seconds,
    "trained_tokens_per_second": trained / seconds,
    "mfu": useful / seconds / peak if peak else None,
    "step_seconds": seconds,
    "padding": 1 - tokens_of(arrays) / arrays["tokens"].size,
    "planned_gib": planned / 2**30,
    "peak_gib": peak_gib(),
    "compile_seconds": compiling,
    "loss": loss,
    "attention": chosen_attention(cfg, stepping, spec, mesh),
  }


def build(cfg, spec: dict, arrays: dict):
  """Mesh and Stepping of one device, from the defaults of configs/base.py and what spec["settings"] changes."""
  c = base.get_config()
  c.batch.rows, c.batch.max_length = spec["rows"], spec["length"]
  c.optimizer.schedule = "constant"
  for key, value in spec.get("settings", {}).items():
    group, name = key.split(".")
    if name not in c[group]:
      raise NotMeasured(f"this version has no config key {key}")
    c[group][name] = value
  mesh = meshes.make_mesh(devices=jax.devices()[:1])
  most = int(arrays["segments"].max())
  return mesh, make_stepping(c, cfg, mesh, total_steps=100, num_languages=1, max_segments=most)


def fresh_state(stepping, cfg):
  """Random, made on the device in the dtypes that the step wants."""
  shapes = stepping.state_shapes().params

  def init(key):
    params = decoder.init_params(cfg, key)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), params, shapes)

  params = jax.jit(init, out_shardings=stepping.shardings.params)(jax.random.key(0))
  begin = jax.jit(stepping.first_state, out_shardings=stepping.shardings, donate_argnums=0)
  return jax.block_until_ready(begin(params))


def time_steps(step, state, batch, budget: float):
  """Seconds of a step, dispatched ahead as the loop does; the first two warm up."""
  for _ in range(2):
    began = time.perf_counter()
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    once = time.perf_counter() - began
  count = int(np.clip(budget / once, 3, 20))
  began = time.perf_counter()
  for _ in range(count):
    state, metrics = step(state, batch)
  jax.block_until_ready((state.step, metrics))
  seconds = (time.perf_counter() - began) / count
  loss = float(metrics.sums.nll.sum()) / float(metrics.sums.trained.sum())
  if not np.isfinite(loss):
    raise NotMeasured(f"the loss is {loss}: a step that is wrong is not timed")
  return state, seconds, loss


def planned_bytes(memory) -> int:
  """Of the compiler; what is donated is counted once."""
  return (
    memory.temp_size_in_bytes
    + memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )


def memory_stat(name: str) -> int:
  return (jax.local_devices()[0].memory_stats() or {}).get(name, 0)


def peak_gib() -> float:
  """Of the device; on CPU of the process."""
  peak = memory_stat("peak_bytes_in_use")
  return (peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**30


def chosen_attention(cfg, stepping, spec: dict, mesh) -> str:
  """The backend that `auto` took, or that was named."""
  from mlit_jax.attention.choice import Choice

  settings = spec.get("settings", {})
  choice = Choice.on(mesh, settings.get("model.attention", "auto"))
  needs = decoder.attention_needs(
    cfg, choice, spec["length"], jnp.dtype(settings.get("model.dtype", "bfloat16"))
  )
  return choice.backend(needs).name


def measure_loader(spec: dict) -> dict:
  """Seconds to make a batch of such rows, alone and through the loader, beside a step's seconds."""
  import loader

  from mlit_jax.data.loader import gather_rows, load_batches
  from mlit_jax.data.plan import make_plan

  rows, length = spec["rows"], spec["length"]
  with tempfile.TemporaryDirectory() as folder:
    examples = 2_000 if spec["tiny"] else 20_000
    encoded = loader.cached_examples(Path(folder), examples=examples, max_length=length)
    plan = make_plan(
      encoded, {"uniform": {"total": examples // 2}}, seed=0, rows_per_step=rows, max_length=length, epochs=1
    )  # fmt: skip
    steps = min(plan.steps, 30)
    began = time.perf_counter()
    for step in range(steps):
      gather_rows(encoded, plan.rows(step), length)
    alone = (time.perf_counter() - began) / steps
    batches = load_batches(encoded, plan, 0)
    next(batches)
    began = time.perf_counter()
    for _ in range(steps - 1):
      next(batches)
    through = (time.perf_counter() - began) / (steps - 1)
  step_seconds = spec["step_seconds"]
  return {
    "device": jax.devices()[0].device_kind,
    "rows": rows,
    "batch_ms": alone * 1e3,
    "batch_ms_through_loader": through * 1e3,
    "step_ms": step_seconds * 1e3,
    "share": alone / step_seconds,
    "share_through_loader": through / step_seconds,
  }


def measure_gradient(spec: dict) -> dict:
  """One gradient in float32, products at the highest precision, on the first device beside the CPU."""
  from mlit_jax.attention.choice import Choice
  from mlit_jax.training.head_loss import usual_chunk
  from mlit_jax.training.loss import batch_loss

  if jax.devices()[0].platform == "cpu":
    raise NotMeasured("there is no device here beside the CPU")
  sizes = dict(hidden_size=256, intermediate_size=512, vocab_size=2048, num_hidden_layers=4)
  cfg = from_hf(hf_config("1.2B", True) | sizes)
  arrays = packed_arrays(4, 512, cfg.vocab_size)
  params = jax.device_get(decoder.init_params(cfg, jax.random.key(0)))
  found = {}
  for device in (jax.devices()[0], jax.devices("cpu")[0]):
    mesh = meshes.make_mesh(devices=[device])
    choice = Choice.on(mesh, "auto", int(arrays["segments"].max()))

    def loss(params, batch, choice=choice):
      forward = lambda params, *arrays: decoder.hidden(  # noqa: E731
        params, cfg, *arrays, dtype=jnp.float32, remat="none", attention=choice
      )
      return batch_loss(forward, params, batch, 1, chunk=usual_chunk(choice.platform))[0]

    put = lambda x, device=device: jax.device_put(x, device)  # noqa: E731
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
      step = jax.jit(jax.value_and_grad(loss))
      found[device.platform] = jax.device_get(step(put(params), put(Batch(**arrays))))
  (value, grads), (exact_value, exact) = found.values()
  worst = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / np.abs(b).max()), grads, exact)
  return {
    "device": jax.devices()[0].device_kind,
    "loss_difference": abs(float(value - exact_value)) / float(exact_value),
    "largest_gradient_difference": max(jax.tree.leaves(worst)),
  }
