"""Targets of fuzz.py: what a user gives to a run. Configs, rows, data sets, chat templates, tokenizers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import fuzz_inputs as inputs
from fuzz_common import (
  ASSETS,
  CONFIG,
  TURNS,
  changed_json,
  encoded,
  lines,
  one_part,
  shapes,
  table,
  tokenizer12,
  write,
)

from mlit_jax import checks
from mlit_jax.config import load_config
from mlit_jax.data import chat, mixture
from mlit_jax.data.choice import take_stock
from mlit_jax.data.encode import encode_conversations
from mlit_jax.data.rows import read_sources
from mlit_jax.data.sources import FORMATS
from mlit_jax.data.tokenizer import Tokenizer

# --- configs


def run_config(folder, parts):
  overrides = parts.get("overrides", b"").decode("utf-8", "replace").split("\n")
  c = load_config(str(CONFIG), [f"--config.{line}" for line in overrides if line])
  checks.check_config(c)
  if isinstance(c.data.mixture, (Mapping, list, tuple)):
    stock = take_stock(encoded())
    for spec, _, _ in mixture.stages(c.data.mixture, epochs=c.epochs, steps=c.steps):
      mixture.resolve(spec, stock, max_repeats=c.data.max_repeats)
  return True


KEYS = (
  "seed", "steps", "epochs", "workdir", "model.path", "model.sizes", "model.dtype", "tokenizer.template_kwargs", "data.train", "data.mixture",
  "data.detect_language", "data.max_repeats", "batch.rows", "batch.microbatches", "optimizer.learning_rate", "optimizer.eps", "optimizer.b1",
  "eval.sets", "eval.suites", "eval.patience", "checkpoint.best", "log.trackers", "profile.steps", "mesh.data", "nonsense", "optimizer", "",
)  # fmt: skip
MIXTURES = (
  {"counts": {"en": 4, "*": 2}}, {"pinch": {"percent": 1, "base": "en", "total": 4}}, {"shares": {"en": 0.9, "fi": 0.1}, "unit": "tokens"},
  {"temperature": 3.3, "total": 8}, {"unimax": {"budget": 5, "max_repeats": 4}}, {"uniform": {"languages": ["en", "fi"], "total": 4}},
  {"replace": {"base": "en", "total": 4, "with": {"*": 1}}}, {"augment": {"base": "en", "total": 2, "with": {"*": 1}}},
  [{"counts": {"en": 2}, "epochs": 1}, {"counts": {"fi": 1}, "steps": 2}],
)  # fmt: skip


START = b"workdir=x\nepochs=1\nsteps=0\ndata.max_repeats=9\n"
STAGED = START.replace(b"epochs=1", b"epochs=0")


def config_seeds():
  encoded()
  some = [(START if isinstance(m, dict) else STAGED) + b"data.mixture=" + json.dumps(m).encode() for m in MIXTURES]  # fmt: skip
  some += [
    START
    + b'data.mixture={"counts": {"fi": 2}}\noptimizer.learning_rate=1e-5\nbatch.rows=16\neval.sets={"a": ["x.jsonl"]}'
  ]
  return [{"overrides": s} for s in some]


def config_strategy():
  from hypothesis import strategies as st

  value = inputs.json_values().map(lambda v: inputs.dump(v)) | st.text(max_size=20).map(lambda t: t.encode("utf-8", "replace"))  # fmt: skip
  mixtures = st.tuples(st.sampled_from(MIXTURES), st.randoms(use_true_random=False)).map(lambda p: b"data.mixture=" + inputs.dump(inputs.changed(*p)))  # fmt: skip
  line = st.tuples(st.sampled_from(KEYS), value).map(lambda kv: kv[0].encode() + b"=" + kv[1].replace(b"\n", b" "))  # fmt: skip
  return one_part("overrides", st.lists(line | mixtures, min_size=1, max_size=3).map(lambda some: START + b"\n".join(some)))  # fmt: skip


# --- rows


def run_rows(folder, parts):
  name, form = "rows.jsonl", None
  kind = parts.get("kind", b"").decode("ascii", "replace").strip()
  if kind in ("json", "jsonl.gz", "jsonl.zst", "parquet", "arrow"):
    name = f"rows.{kind}"
  elif kind in FORMATS:
    form = kind
  (folder / name).write_bytes(_packed(parts.get("rows", b""), kind))
  entry = str(folder / name) if form is None else {"path": str(folder / name), "format": form}
  found = read_sources([entry], drop_bad=True)
  encode_conversations(found.conversations[:50], tokenizer12(), max_length=64, over_long="truncate_prompt")  # fmt: skip
  read_sources({"fi": entry})
  return True


def _packed(data: bytes, kind: str) -> bytes:
  """Compressed here, so that mutation reaches the rows; a case that is compressed already is taken as it is."""
  if kind == "jsonl.gz" and data[:2] != b"\x1f\x8b":
    return gzip.compress(data, 1, mtime=0)
  if kind == "jsonl.zst" and data[:4] != b"\x28\xb5\x2f\xfd":
    import zstandard

    return zstandard.compress(data)
  return data


def rows_seeds():
  tree = {"message_id": "1", "parent_id": None, "role": "prompter", "text": "q", "lang": "fi"}
  trees = [tree, tree | {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "a"}]
  out = [{"rows": lines(row, row | {"id": 1})} for row in shapes()]
  out += [{"rows": lines(*trees), "kind": b"tree"}, {"rows": inputs.dump(shapes()), "kind": b"json"}]  # fmt: skip
  out += [{"rows": lines(*shapes()[:3]), "kind": kind} for kind in (b"jsonl.gz", b"jsonl.zst")]
  out += [{"rows": lines(shapes()[i]), "kind": f.encode()} for i, f in ((0, "messages"), (2, "prompt_completion"), (7, "lima"))]  # fmt: skip
  out += [{"rows": table(form), "kind": form.encode()} for form in ("parquet", "arrow")]
  out += [{"rows": gzip.compress(lines(*shapes()), mtime=0), "kind": b"jsonl.gz"}]
  return out


def rows_strategy():
  from hypothesis import strategies as st

  row = st.tuples(st.sampled_from(shapes()), st.randoms(use_true_random=False)).map(lambda p: inputs.changed(*p))  # fmt: skip
  some = st.lists(row | inputs.json_values(), min_size=1, max_size=4)
  kind = st.sampled_from([b"", b"json", b"jsonl.gz", b"tree", b"sharegpt", b"messages", b"lima"])
  return st.tuples(some, kind).map(
    lambda p: inputs.join({"rows": inputs.dump(p[0]) if p[1] == b"json" else lines(*p[0]), "kind": p[1]})
  )  # fmt: skip


# --- chat templates


def run_template(folder, parts):
  text = parts.get("template", b"").decode("utf-8", "replace")
  names = {"bos_token": "<s>", "eos_token": "</s>"}
  template = chat.Template(text, names, {"enable_thinking": False}, added_tokens=("<s>", "</s>", "<|im_end|>"))  # fmt: skip
  template.prints_the_date()
  template.prompt(TURNS[1:2])
  template.render(TURNS[1:])
  return True


PIECES = (
  "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] + ': ' }}", "{{ eos_token }}", "{% if loop.first %}", "{% else %}",
  "{% endif %}", "{% set x = 'a' %}", "{% set ns = namespace(x='a') %}", "{% set ns.x = ns.x + ns.x %}", "{{ x ~ x }}", "{% set x %}", "{% endset %}",
  "{% macro f(a) %}", "{% endmacro %}", "{{ f(x) }}", "{{ messages | tojson }}", "{{ range(10**6) | list }}", "{{ 'a' * 10**9 }}", "{% generation %}",
  "{% endgeneration %}", "{{ x.replace('a', x) }}", "{{ [x, x] }}", "{{ raise_exception('no') }}", "{{ strftime_now('%Y') }}", "{{ messages[0].content }}",
  "{{ x | center(10**9) }}", "{{ '%s' % x }}", "{{ 9 ** 9 ** 9 }}", "{% break %}", "{{ x.format(x) }}", "{{ messages | map(attribute='content') | join(x) }}",
  "{% for i in range(99999) %}", "{{ cycler('a', 'b').next() }}", "{{ x | indent(10**5) }}", "{{ undefined.a.b }}", "{{ x.__class__ }}", "text \n", "-%}", "{#",
  "{% call f() %}", "{% endcall %}", "{{ caller() }}", "{% with y = x + x %}", "{% endwith %}", "{% filter upper %}", "{% endfilter %}", "{{ loop(messages) }}",
)  # fmt: skip


def template_seeds():
  found = [path.read_bytes() for path in (ASSETS / "tiny12").glob("*.jinja")]
  found += [p.read_bytes() for p in sorted((Path(__file__).parent.parent / "tests/data/templates").glob("*.jinja"))]  # fmt: skip
  loop = b"{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
  gathered = b"{% set ns = namespace(x='') %}{% for m in messages %}{% set ns.x = ns.x ~ m.content ~ eos_token %}{% endfor %}{{ ns.x }}"  # fmt: skip
  macro = b"{% macro say(m) %}{{ m.content | trim }}{{ eos_token }}{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}"  # fmt: skip
  return [{"template": data} for data in (*found, loop, gathered, macro)]


def template_strategy():
  from hypothesis import strategies as st

  piece = st.sampled_from(PIECES) | st.text(max_size=5)
  text = st.lists(piece, max_size=14).map(lambda some: "".join(some).encode("utf-8", "replace"))
  return one_part("template", text)


# --- tokenizers

TOKENIZER_PARTS = (
  "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "generation_config.json",
  "tokenizer.model",
)  # fmt: skip


def run_tokenizer(folder, parts):
  write(folder, parts, *TOKENIZER_PARTS)
  tokenizer = Tokenizer.load(str(folder))
  text = tokenizer.template.prompt(TURNS[1:2])
  ids = tokenizer.encode_text(text)
  tokenizer.encode_with_offsets([text, "", "\0 é"])
  tokenizer.encode_marked([text], [[(0, len(text))]])
  tokenizer.decode(ids)
  _ = tokenizer.pad_id, tokenizer.unk_id, tokenizer.partial_ids, tokenizer.special_ids
  _ = tokenizer.files, tokenizer.fingerprint, tokenizer.vocab_size
  return True


def tokenizer_seeds():
  common = {
    "tokenizer_config.json": inputs.dump(
      {
        "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "unk_token": "<unk>", "additional_special_tokens": ["<x>"],
        "added_tokens_decoder": {"0": {"content": "<s>", "special": True}, "300": {"content": "<x>", "special": True}},
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": [{"name": "default", "template": "{{ messages[0].content }}{{ eos_token }}"}],
      }
    ),
    "special_tokens_map.json": inputs.dump({"pad_token": "</s>", "eos_token": {"content": "</s>"}}),
    "added_tokens.json": inputs.dump({"<x>": 300}),
    "generation_config.json": inputs.dump({"eos_token_id": [1, 2]}),
    "chat_template.jinja": b"{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
  }  # fmt: skip
  plain = {k: common[k] for k in ("chat_template.jinja",)}
  files = [{"tokenizer.json": data} for data in _tokenizer_files()]
  model = (ASSETS / "tokenizer12/tokenizer.model").read_bytes()
  return [f | more for f in files for more in (common, plain)] + [
    {"tokenizer.model": model} | plain
  ]


def _tokenizer_files() -> list[bytes]:
  """Small ones of each kind."""
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

  letters = pre_tokenizers.ByteLevel.alphabet()
  vocab = {t: i for i, t in enumerate(["<s>", "</s>", "<unk>", *sorted(letters), "he", "Ġa"])}
  bpe = tokenizers.Tokenizer(models.BPE(vocab, [("h", "e"), ("Ġ", "a")], unk_token="<unk>"))
  bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
  unigram = tokenizers.Tokenizer(
    models.Unigram([("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -1.0), *((c, -2.0) for c in "abcdehiknory")], 0)
  )  # fmt: skip
  unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
  words = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}, "<unk>"))
  words.pre_tokenizer = pre_tokenizers.Whitespace()
  for t in (bpe, unigram, words):
    t.add_special_tokens(["<s>", "</s>", "<unk>"])
    t.post_processor = processors.TemplateProcessing(
      single="<s> $A", special_tokens=[("<s>", t.token_to_id("<s>"))]
    )
  return [t.to_str().encode() for t in (bpe, unigram, words)]


def tokenizer_strategy():
  return changed_json(tokenizer_seeds())


# --- data sets saved by other libraries


SAVED_PARTS = ("dataset_dict.json", "train/state.json", "train/dataset_info.json", "train/data-00000-of-00001.arrow", "state.json", "dataset_info.json", "x-train.arrow", "features.json")  # fmt: skip


def run_saved(folder, parts):
  write(folder, parts, *SAVED_PARTS)
  read_sources([str(folder)], drop_bad=True)
  return True


def saved_seeds():
  state = inputs.dump({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"})  # fmt: skip
  info = inputs.dump({"splits": {"train": {"name": "train"}}, "features": {}})
  return [
    {"dataset_dict.json": b'{"splits": ["train"]}', "train/state.json": state, "train/data-00000-of-00001.arrow": table("arrow"), "train/dataset_info.json": info},
    {"dataset_info.json": info, "x-train.arrow": table("arrow")},
    {"features.json": b"{}", "dataset_info.json": b'{"fileFormat": "array_record", "name": "x", "splits": [{"name": "train"}]}'},
  ]  # fmt: skip


def saved_strategy():
  return changed_json(saved_seeds())
