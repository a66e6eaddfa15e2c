"""The peers on the same GPU: transformers with packed rows, and TRL's trainer; a part of benchmarks/gpu.py.

float32 masters and bfloat16 by autocast, as TRL trains with bf16=True; AdamW, fused; the same shapes and examples as ours.
"""

from __future__ import annotations

import importlib.util
import inspect
import resource
import tempfile
import time

import numpy as np
from gpu_material import (
  NotMeasured,
  example_lengths,
  hf_config,
  packed_arrays,
  tokens_of,
  trained_of,
)

CHUNK = 1024  # trained tokens whose logits are held at a time
ATTENTION = ("varlen", "flash_attention_2", "flex_attention", "sdpa")


def measure(spec: dict) -> dict:
  """More and more rows until memory ends; the fastest is the figure."""
  torch = needed("torch")
  needed("transformers")
  best, tried = None, []
  ends = time.monotonic() + spec["seconds"]
  for rows in spec["rows"]:
    if tried and time.monotonic() > ends:
      break
    try:
      found = one(torch, spec, rows)
    except torch.OutOfMemoryError:
      tried.append({"rows": rows, "reason": "out of memory"})
      break
    tried.append(found)
    if best and found["trained_tokens_per_second"] < best["trained_tokens_per_second"]:
      break
    best = found
  if best is None:
    raise NotMeasured(tried[0]["reason"])
  return best | {"tried": tried, "torch": torch.__version__}


def needed(name: str):
  if importlib.util.find_spec(name) is None:
    raise NotMeasured(f"{name} is not installed")
  return importlib.import_module(name)


def one(torch, spec: dict, rows: int) -> dict:
  config = hf_config(spec["model"], spec["tiny"])
  arrays = packed_arrays(rows, spec["length"], config["vocab_size"])
  device = "cuda" if torch.cuda.is_available() else "cpu"
  if device == "cpu" and not spec["tiny"]:
    raise NotMeasured("torch sees no GPU")
  model = make_model(torch, config, spec["attention"], device)
  if spec["checkpointing"]:
    model.gradient_checkpointing_enable({"use_reentrant": False})
  keys, targets = model_input(torch, arrays, spec["attention"], device)
  loss_of = liger_loss() if spec["loss"] == "liger" else chunked_loss
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
  trained = trained_of(arrays)

  def step() -> float:
    with torch.autocast(device, torch.bfloat16):
      x = model.model(**keys, use_cache=False).last_hidden_state
      loss = loss_of(torch, x, model.lm_head.weight, targets)
    (loss / trained).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()

  if device == "cuda":
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
  seconds, loss = time_steps(torch, step, device)
  loss = float(loss) / trained
  if not np.isfinite(loss):
    raise NotMeasured(f"the loss is {loss}: a step that is wrong is not timed")
  return {
    "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    "rows": rows,
    "tokens_per_second": tokens_of(arrays) / seconds,
    "trained_tokens_per_second": trained / seconds,
    "step_seconds": seconds,
    "peak_gib": peak_gib(torch, device),
    "loss": loss,
  }


def make_model(torch, config: dict, attention: str, device: str):
  import transformers

  if attention == "varlen":
    register_varlen(torch, transformers)
  if attention == "flash_attention_2":
    needed("flash_attn")
  kind = dict(config)
  hf = transformers.AutoConfig.for_model(kind.pop("model_type"), **kind)
  with torch.device(device):
    model = transformers.AutoModelForCausalLM.from_config(
      hf, attn_implementation=attention, dtype=torch.float32
    )
  return model.train()


def time_steps(torch, step, device: str) -> tuple:
  wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
  for _ in range(2):
    began = time.perf_counter()
    step()
    wait()
    once = time.perf_counter() - began
  count = int(np.clip(4.0 / once, 3, 20))
  began = time.perf_counter()
  for _ in range(count):
    loss = step()
  wait()
  return (time.perf_counter() - began) / count, loss


def peak_gib(torch, device: str) -> float:
  """What its tensors took; the allocator reserves more. On CPU of the process."""
  if device == "cuda":
    return torch.cuda.max_memory_allocated() / 2**30
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def model_input(torch, arrays: dict, attention: str, device: str):
  """Arguments of the model, and its targets. By lengths there is one long row without padding, else rows and a mask."""
  long = lambda x: torch.from_numpy(np.asarray(x, np.int64)).to(device)  # noqa: E731
  targets = np.where(arrays["weights"] > 0, arrays["targets"], -100)
  if attention in ("varlen", "flash_attention_2"):
    live = arrays["segments"] > 0
    positions = arrays["positions"][live]
    Varlen.starts = torch.from_numpy(
      np.append(np.flatnonzero(positions == 0), len(positions)).astype(np.int32)
    ).to(device)
    Varlen.longest = int(positions.max()) + 1
    keys = {"input_ids": long(arrays["tokens"][live])[None], "position_ids": long(positions)[None]}
    return keys, long(targets[live])[None]
  segments = long(arrays["segments"])
  keys = {"input_ids": long(arrays["tokens"]), "position_ids": long(arrays["positions"])}
  keys["attention_mask"] = (
    flex_mask(torch, segments) if attention == "flex_attention" else dense_mask(torch, segments)
  )
  return keys, long(targets)


def dense_mask(torch, segments):
  """bool [B, 1, T, T]; padding sees itself, as a row of the softmax must see something."""
  same = segments[:, :, None] == segments[:, None, :]
  return (same & torch.ones_like(same[0]).tril())[:, None]


def flex_mask(torch, segments):
  from torch.nn.attention.flex_attention import create_block_mask

  def seen(b, _, i, j):
    return (segments[b, i] == segments[b, j]) & (i >= j)

  B, T = segments.shape
  return create_block_mask(seen, B, None, T, T, device=segments.device)


class Varlen:
  """Where the segments of the flat row lie: transformers hands no such thing through."""

  starts = None
  longest = 0


def register_varlen(torch, transformers) -> None:
  """FlashAttention by lengths as torch itself has it, where the package flash-attn is not."""
  if importlib.util.find_spec("torch.nn.attention.varlen") is None:
    raise NotMeasured("this torch has no torch.nn.attention.varlen")
  if not torch.cuda.is_available():
    raise NotMeasured("torch.nn.attention.varlen wants a GPU")
  from torch.nn.attention.varlen import varlen_attn

  parameters = inspect.signature(varlen_attn).parameters
  grouped = {"enable_gqa": True} if "enable_gqa" in parameters else {}
  causal = {"window_size": (-1, 0)} if "window_size" in parameters else {"is_causal": True}

  def attend(_module, q, k, v, _mask, scaling=None, dropout=0.0, **_):
    q, k, v = (x.transpose(1, 2).flatten(0, 1).bfloat16() for x in (q, k, v))
    if not grouped:
      k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    starts, longest = Varlen.starts, Varlen.longest
    o = varlen_attn(q, k, v, starts, starts, longest, longest, **grouped, **causal)
    return o[None], None

  transformers.AttentionInterface.register("varlen", attend)
  transformers.AttentionMaskInterface.register("varlen", lambda *_, **__: None)


def chunked_loss(torch, x, head, targets):
  """Sum over the trained tokens, CHUNK logits at a time, computed again in the backward pass."""
  from torch.utils.checkpoint import checkpoint

  trained = targets.flatten() != -100
  x, targets = x.flatten(0, 1)[trained], targets.flatten()[trained]

  def part(x, targets):
    logits = torch.nn.functional.linear(x, head).float()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")

  parts = zip(x.split(CHUNK), targets.split(CHUNK), strict=True)
  return sum(checkpoint(part, a, b, use_reentrant=False) for a, b in parts)


def liger_loss():
  needed("liger_kernel")
  from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

  fused = LigerFusedLinearCrossEntropyLoss(reduction="sum", ignore_index=-100)
  return lambda _torch, x, head, targets: fused(
    head.to(x.dtype), x.flatten(0, 1), targets.flatten()
  )


def measure_trl(spec: dict) -> dict:
  """TRL's SFTTrainer with packing, on examples of the same lengths; seconds of its own steps."""
  torch, datasets, trl = (needed(name) for name in ("torch", "datasets", "trl"))
  config = hf_config(spec["model"], spec["tiny"])
  device = "cuda" if torch.cuda.is_available() else "cpu"
  attention = "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"
  model = make_model(torch, config, attention, device)
  rng, steps, rows = np.random.default_rng(0), 4 if spec["tiny"] else 8, spec["rows"]
  lengths = example_lengths(rows * (steps + 2) * spec["length"] // 200, spec["length"])
  examples = [
    {
      "input_ids": rng.integers(4, config["vocab_size"], n).tolist(),
      "completion_mask": [0] * int(n * 0.3) + [1] * int(n - int(n * 0.3)),
    }
    for n in lengths
  ]
  times = Times(torch, device)
  with tempfile.TemporaryDirectory() as folder:
    options = dict(
      output_dir=folder, max_length=spec["length"], packing=True, completion_only_loss=True, max_steps=steps, learning_rate=1e-5,
      per_device_train_batch_size=rows, bf16=True, use_cpu=device == "cpu", report_to=[], logging_steps=1000,
      save_strategy="no", optim="adamw_torch_fused", gradient_checkpointing=spec["checkpointing"], disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
      model=model,
      args=trl.SFTConfig(**options),
      train_dataset=datasets.Dataset.from_list(examples),
      processing_class=plain_tokenizer(config["vocab_size"]),
      callbacks=[times.callback()],
    )
    times.count(trainer)
    trainer.train()
  seconds, trained, tokens = times.medians()
  return {
    "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    "rows": rows,
    "trained_tokens_per_second": trained / seconds,
    "tokens_per_second": tokens / seconds,
    "step_seconds": seconds,
    "peak_gib": peak_gib(torch, device),
    "attention": attention,
    "isolated": attention != "sdpa" or "no: TRL isolates packed examples with FlashAttention alone",
    "trl": trl.__version__,
  }


class Times:
  """Seconds and tokens of each step of a transformers trainer."""

  def __init__(self, torch, device):
    self.wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    self.seconds, self.trained, self.tokens = [], [], []

  def callback(self):
    import transformers

    times = self

    class Callback(transformers.TrainerCallback):
      def on_step_begin(self, *_, **__):
        times.wait()
        times.began = time.perf_counter()

      def on_step_end(self, *_, **__):
        times.wait()
        times.seconds.append(time.perf_counter() - times.began)

    return Callback()

  def count(self, trainer) -> None:
    """Tokens are counted in what the step is given."""
    step = trainer.training_step

    def counted(model, inputs, *args, **kwargs):
      labels = inputs["labels"]
      self.trained.append(int((labels[:, 1:] != -100).sum()))
      self.tokens.append(int(inputs["input_ids"].numel()))
      return step(model, inputs, *args, **kwargs)

    trainer.training_step = counted

  def medians(self) -> tuple:
    return tuple(float(np.median(x[2:])) for x in (self.seconds, self.trained, self.tokens))


def plain_tokenizer(vocab: int):
  """A trainer wants one, for the token that pads; the examples are tokens already."""
  import transformers
  from tokenizers import Tokenizer, models

  words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, vocab)}
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
    pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
  )  # fmt: skip
