"""Tiny random models of every family, made and saved by transformers itself.

families.make_model(folder, "gemma3_text", dtype="bfloat16", max_shard_size="40KB")

`python -m tests.families` writes tests/golden/ again. A new variant of
tests/variants.py gets all the proofs of tests/weights/test_families.py.
"""

import json
import pathlib

import jax
import numpy as np

from mlit_jax.model import decoder
from tests.variants import VARIANTS
from tests.variants.common import SIZES

GOLDEN = pathlib.Path(__file__).parent / "golden"

# Small against what the layers add, else a tied model only repeats its last token; larger where biases
# would otherwise hide it, in OLMo because the first layer reads it as it is.
EMBEDDING_SCALE = {"olmo2": 4.0, "olmo3": 4.0, "apertus": 1.5}
CHAT_TEMPLATE = (
  "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
  "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
IDS = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": None}
SPECIAL_TOKENS = ["<|text_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]


def make_model(folder, variant: str, *, dtype="float32", max_shard_size="1GB", seed=0, **changes):
  """Saves the variant, random, with a tokenizer to `folder`; returns the transformers model."""
  import torch

  model = random_model(variant, seed=seed, **changes).to(getattr(torch, dtype))
  model.save_pretrained(folder, max_shard_size=max_shard_size)
  make_tokenizer(folder)
  return model


def random_model(variant: str, *, seed=0, **changes):
  """The transformers model, float32, with eager attention (the one that knows soft caps)."""
  import torch
  import transformers

  config = transformers.AutoConfig.for_model(
    **keys_of(variant, IDS, **changes),
    attn_implementation="eager",
  )
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, p in model.named_parameters():
      # Every norm scale differs, and queries and keys are large enough for sharp attention.
      p.normal_(0.0, 0.3 if p.ndim == 1 else 1.5 * p.shape[-1] ** -0.5, generator=generator)
      if (
        p.ndim == 1
        and name.endswith(".weight")
        and config.model_type not in ("gemma2", "gemma3", "gemma3_text")
      ):
        p.add_(1.0)
      if config.model_type.startswith("gemma4") and name.endswith("q_norm.weight"):
        p.mul_(p.shape[0] ** -0.5)  # nothing else scales the scores
      if name.endswith("embed_tokens.weight"):
        p.mul_(EMBEDDING_SCALE.get(config.model_type, 0.5))
      if name.endswith("word_embeddings_layernorm.weight"):  # likewise: now of either sign
        p.sub_(1.0).mul_(3.0)
      if config.model_type == "bloom" and name.endswith(".bias"):
        p.mul_(0.3)  # seven a layer: what all tokens have in common would hide the rest
    for name in model.state_dict().keys() & dict(model.named_buffers()).keys():
      model.get_buffer(name).mul_(1.25)  # what is stored counts, not the default
  return model


def keys_of(variant: str, ids: dict | None = None, **changes) -> dict:
  """Of the variant's config.json; sizes and changes belong to the text tower where there is one."""
  keys, usual = VARIANTS[variant], SIZES | (ids or {})
  if "text_config" in keys:
    return {**keys, "text_config": {**usual, **keys["text_config"], **changes}}
  return {**usual, **keys, **changes}


def one_of(model_type: str) -> str:
  """A variant of that family."""
  return next(name for name, keys in VARIANTS.items() if keys["model_type"] == model_type)


def random_model_like(model):
  """The same model again, in the default dtype of the moment."""
  import copy

  import transformers

  config = copy.deepcopy(model.config)
  config.dtype = None
  eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
  other = transformers.AutoModelForCausalLM.from_config(config, **eager).eval()
  other.load_state_dict(model.state_dict())
  return other


def load_model(folder):
  """The folder as transformers reads it, float32."""
  import torch
  import transformers

  model, report = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
  )
  assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (
    report
  )
  return model.eval()


def as_saved(model, tensors: dict) -> dict:
  """Tensors named as the model's own, spelled as save_pretrained writes them: experts one by one."""
  from transformers.core_model_loading import revert_weight_conversion

  return revert_weight_conversion(model, tensors)


def hf_logits(model, tokens_BT):
  """float32 logits of unpadded rows."""
  import torch

  with torch.no_grad():
    return model(input_ids=torch.tensor(tokens_BT)).logits.float().numpy()


def alone(tokens_BT):
  """(tokens, positions, segments) of one example a row."""
  positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
  return tokens_BT, positions_BT, np.ones(tokens_BT.shape, np.int32)


forward = jax.jit(decoder.apply, static_argnums=1)


def our_logits(params, cfg, tokens_BT):
  """float32 logits of unpadded rows, as hf_logits."""
  return np.asarray(forward(params, cfg, *alone(tokens_BT)))


def assert_same_logits(ours_BTV, theirs_BTV, tolerance=1e-4):
  assert ours_BTV.shape == theirs_BTV.shape
  # The logits must differ from token to token for their agreement to mean anything.
  assert theirs_BTV.std(axis=-1).min() > 0.3 and theirs_BTV.std(axis=1).min() > 0.1
  for ours_TV, theirs_TV in zip(ours_BTV, theirs_BTV, strict=True):  # no language hides in a mean
    np.testing.assert_allclose(ours_TV, theirs_TV, rtol=0, atol=tolerance * np.abs(theirs_TV).max())


def make_tokenizer(folder) -> None:
  """A byte-level tokenizer of 261 tokens with a chat template, in the usual files."""
  import tokenizers
  import transformers

  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  core = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
  core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  core.decoder = tokenizers.decoders.ByteLevel()
  core.add_special_tokens(SPECIAL_TOKENS)
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=core, eos_token="<|text_end|>", chat_template=CHAT_TEMPLATE
  ).save_pretrained(folder)


def edit_config(folder, **changes) -> None:
  """Changes keys of config.json; None removes one."""
  path = pathlib.Path(folder) / "config.json"
  config = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}, indent=2))


def bytes_of(folder) -> dict[str, bytes]:
  """Every file of the folder but SHA256SUMS, which says what they are."""
  paths = (p for p in pathlib.Path(folder).rglob("*") if p.is_file() and p.name != "SHA256SUMS")
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def tuned(params, seed=1) -> dict:
  """Every parameter moved, each by its own noise."""
  from mlit_jax.weights import table

  rng = np.random.default_rng(seed)
  return table.unflatten(
    {
      name: a + 0.05 * np.asarray(a).std() * rng.standard_normal(a.shape, np.float32)
      for name, a in table.flatten(params).items()
    }
  )


def rows_in_twelve_languages(folder, length):
  """tokens_BT: the beginning of a bundled conversation in each language, as the chat template has it."""
  import transformers

  import mlit_jax

  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  assets = pathlib.Path(mlit_jax.__file__).parent / "assets" / "instructions12" / "eval"
  rows = []
  for path in sorted(assets.glob("*.jsonl")):
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    turns = [{"role": "user", "content": row["prompt"]}]
    turns.append({"role": "assistant", "content": row["completion"]})
    ids = tokenizer.apply_chat_template(turns, return_dict=False)
    assert len(ids) >= length, path
    rows.append(ids[:length])
  assert len(rows) == 12
  return np.array(rows, np.int32)


def config_of(variant: str):
  """The variant's DecoderConfig, without making a model."""
  import transformers

  from mlit_jax.model.config import from_hf

  config = transformers.AutoConfig.for_model(**keys_of(variant)).to_dict()
  return from_hf(config)


def golden_lines(variant: str) -> list[str]:
  """One line per parameter: path, shape, axes."""
  from mlit_jax.weights.table import flatten

  specs = flatten(decoder.param_specs(config_of(variant)))
  return [
    f"{path}  {' '.join(map(str, s.shape))}  {' '.join(s.axes)}"
    for path, s in sorted(specs.items())
  ]


if __name__ == "__main__":
  GOLDEN.mkdir(exist_ok=True)
  for old in GOLDEN.glob("*.txt"):
    old.unlink()
  for name in VARIANTS:
    (GOLDEN / f"{name}.txt").write_text("\n".join(golden_lines(name)) + "\n")
