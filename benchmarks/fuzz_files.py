"""Targets of fuzz.py: files that a run or somebody else has written. Weights, suites, verdicts, caches, workdirs."""

from __future__ import annotations

import json
import struct

import fuzz_inputs as inputs
import numpy as np
from fuzz_common import (
  ASSETS,
  CONFIG,
  TURNS,
  changed_json,
  encoded,
  lines,
  scratch,
  write,
)

from mlit_jax import checksums
from mlit_jax.config import load_config, nested
from mlit_jax.data import cache
from mlit_jax.data.plan import make_plan
from mlit_jax.evals.judging import judges, pairs, people, prompts, verdicts
from mlit_jax.evals.suites.opening import open_suite
from mlit_jax.experiments.sweep_files import read_sweep
from mlit_jax.training import report, run_files, workdir
from mlit_jax.weights import hf_files, source

# --- weights


def run_weights(folder, parts):
  write(folder, parts, "config.json", hf_files.SINGLE_FILE, hf_files.INDEX_FILE, *SHARDS, "LICENSE")
  if "config.json" not in parts:
    hf_files.map_tensors(folder, hf_files.read_layout(folder))
    return True
  found = source.read_source(folder)
  _ = found.dtypes
  for array in hf_files.map_tensors(folder, found.layout).values():
    hf_files.read(array)
  return True


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def _shard(**shapes) -> bytes:
  header, at = {"__metadata__": {"format": "pt"}}, 0
  for name, shape in shapes.items():
    size = 4 * int(np.prod(shape))
    header[name.replace("_", ".")] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}  # fmt: skip
    at += size
  raw = json.dumps(header).encode()
  return struct.pack("<Q", len(raw)) + raw + bytes(at)


def weights_seeds():
  config = (ASSETS / "tiny12/config.json").read_bytes()
  others = [json.loads(config) | {"model_type": kind} | more for kind, more in FAMILIES.items()]
  index = {"metadata": {"total_size": 32}, "weight_map": {"a.b": SHARDS[0], "c": SHARDS[1]}}
  single = {"model.safetensors": _shard(a_b=(2, 3), c=(4,), d=())}
  shards = {SHARDS[0]: _shard(a_b=(2, 2)), SHARDS[1]: _shard(c=(4,)), "model.safetensors.index.json": inputs.dump(index)}  # fmt: skip
  out = [single, shards, single | {"config.json": config, "LICENSE": b"x"}]
  return out + [{"config.json": inputs.dump(c)} | single for c in others]


FAMILIES = {
  "qwen3": {}, "gemma2": {"query_pre_attn_scalar": 32, "sliding_window": 4, "attn_logit_softcapping": 50.0}, "phi3": {"rope_scaling": None},
  "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2}, "gemma3_text": {"sliding_window": 4, "layer_types": ["full_attention"] * 6},
  "llama": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "bloom": {"n_layer": 2, "n_head": 4, "layer_norm_epsilon": 1e-5},
  "granite": {"attention_multiplier": 1.0, "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0},
}  # fmt: skip


def weights_strategy():
  from hypothesis import strategies as st

  entry = st.fixed_dictionaries({"dtype": st.sampled_from(["F32", "BF16", "I8", "X"]), "shape": st.lists(st.integers(-1, 4), max_size=3), "data_offsets": st.lists(st.integers(-1, 64), min_size=1, max_size=3)})  # fmt: skip
  header = st.dictionaries(st.text(max_size=6), entry | inputs.json_values(), max_size=4)

  def shard(value):
    raw = inputs.dump(value)
    return {"model.safetensors": struct.pack("<Q", len(raw)) + raw + bytes(64)}

  return changed_json(weights_seeds()) | header.map(lambda h: inputs.join(shard(h)))


# --- suites


def run_suite(folder, parts):
  write(folder, parts, "mine.suite.json", "prompts.jsonl", "fi/test.jsonl", "fi/test.csv", "mgsm_fi.tsv")  # fmt: skip
  name = parts.get("suite", b"").decode("ascii", "replace").strip()
  if name in ("ifeval", "belebele", "global_mmlu", "aya", "xcopa", "xquad", "sib200"):
    path = folder / "fi" / "test.jsonl"
  elif name == "mgsm":
    path = folder / "mgsm_fi.tsv"
  elif name == "language_confusion":
    path = folder / "fi" / "test.csv"
  else:
    suite = open_suite(str(folder / "mine.suite.json"))
    return suite.items and suite.only({suite.items[0].lang}, 1)
  suite = open_suite(f"{name}:{path}")
  for item in list(suite.items)[:3]:
    if suite.score and not item.choices:
      suite.score(item, "Hyvää kuuluu, * kiitos.\n\nEntä 42 sinulle?")
  return True


def suite_seeds():
  prompt = {"id": "1", "lang": "fi", "prompt": "Mitä?", "answer": "Hyvää", "group_id": "g"}
  chosen = {"id": 2, "lang": "fi", "messages": TURNS[1:2], "choices": ["a", "b"], "answer": 1}
  own = {"prompts": "prompts.jsonl", "languages": ["fi"], "measure": ["fidelity", "chrf"], "max_new_tokens": 8, "stop": ["\n"], "chat": True, "name": "mine"}  # fmt: skip
  follow = {"key": 1, "prompt": "Kirjoita", "instruction_id_list": ["punctuation:no_comma", "keywords:existence", "length_constraints:number_words"], "kwargs": [{}, {"keywords": ["a"]}, {"num_words": 3, "relation": "at least"}]}  # fmt: skip
  belebele = {"link": "l", "question_number": 1, "flores_passage": "p", "question": "q", "mc_answer1": "a", "mc_answer2": "b", "mc_answer3": "c", "mc_answer4": "d", "correct_answer_num": "2", "dialect": "fin_Latn"}  # fmt: skip
  xquad = {"id": "1", "context": "c", "question": "q", "answers": {"text": ["c"], "answer_start": [0]}}  # fmt: skip
  xcopa = {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 1, "idx": 3}  # fmt: skip
  own_suite = {"mine.suite.json": inputs.dump(own), "prompts.jsonl": lines(prompt, chosen)}
  copies = {"ifeval": follow, "belebele": belebele, "xquad": xquad, "xcopa": xcopa}
  return [
    own_suite,
    {"mine.suite.json": b'{"prompts": "prompts.jsonl"}', "prompts.jsonl": lines(prompt)},
    *({"suite": name.encode(), "fi/test.jsonl": lines(row)} for name, row in copies.items()),
    {"suite": b"mgsm", "mgsm_fi.tsv": "Mitä on 40 + 2?\t42\nJa 1 + 1?\t2\n".encode()},
    {"suite": b"language_confusion", "fi/test.csv": b"prompt,source,language,task\nq,okapi,fi,monolingual\n"},
  ]  # fmt: skip


def suite_strategy():
  return changed_json(suite_seeds())


# --- verdicts


def run_verdicts(folder, parts):
  write(folder, parts, "a.jsonl", "b.jsonl", "verdicts.jsonl", "recorded.jsonl", "sheet.csv", "template.txt")  # fmt: skip
  reply = parts.get("reply", b"").decode("utf-8", "replace")
  verdicts.parse(reply)
  verdicts.disarm(reply)
  found, _, _ = pairs.read_pairs(folder / "a.jsonl", folder / "b.jsonl")
  digest = pairs.fingerprint_prompts(found)
  if "template.txt" in parts:
    template = prompts.read_template(folder / "template.txt", "en")
    template.messages(found[0], "ab")
  if "recorded.jsonl" in parts:
    judges.recorded_judge(folder / "recorded.jsonl", found)
  if "sheet.csv" in parts:
    people.people_judge(folder / "sheet.csv", found, partial=True)
  if "verdicts.jsonl" in parts:
    with verdicts.Store(folder / "verdicts.jsonl", prompts=digest, num_prompts=len(found)) as store:
      asks = judges.make_asks(found, ("recorded", "x"))
      store.add({"key": asks[0].key if asks else "k", "choice": "first"})
  return True


def verdict_seeds():
  answers = [{"id": i, "lang": "fi", "prompt": f"q{i}", "response": f"a{i}", "model": "A", "stopped": True} for i in range(2)]  # fmt: skip
  other = [row | {"response": f"b{row['id']}"} for row in answers]
  base = {"a.jsonl": lines(*answers), "b.jsonl": lines(*other)}
  recorded = [{"lang": "fi", "id": str(i), "order": o, "choice": c} for i in range(2) for o, c in (("ab", "first"), ("ba", None))]  # fmt: skip
  of = [
    pairs.Pair(str(i), "fi", str(i), r["prompt"], r["response"], s["response"])
    for i, (r, s) in enumerate(zip(answers, other, strict=True))
  ]
  sheet = "".join(f"{n},Finnish,q,a,b,1,,{people._key(p, o)}\n" for n, (p, o) in enumerate((p, o) for p in of for o in ("ab", "ba")))  # fmt: skip
  head = {"version": verdicts.VERSION, "prompts": pairs.fingerprint_prompts(of), "num_prompts": 2}
  kept = {"key": "k1", "id": "0", "lang": "fi", "order": "ab", "choice": "second", "replies": ["[[B]]"]}  # fmt: skip
  return [
    base | {"recorded.jsonl": lines(*recorded)},
    base | {"recorded.jsonl": lines(*({"text": "[[A]]"} | {k: v for k, v in r.items() if k != "choice"} for r in recorded))},
    base | {"sheet.csv": (",".join(people.COLUMNS) + "\n" + sheet).encode()},
    base | {"verdicts.jsonl": lines(head, kept)},
    base | {"reply": b"<think>x</think> B is better.\n[[B]]"},
    base | {"template.txt": b"{question} {answer_a} {answer_b} {language} {{x}}\n=====\nagain", "reply": b"**[[C]]**"},
  ]  # fmt: skip


def verdict_strategy():
  return changed_json(verdict_seeds())


# --- the plan and the files of a run


CACHE_PARTS = ("meta.json", *(f"{name}.bin" for name in cache.FILES))


def run_cache(folder, parts):
  write(folder, parts, *CACHE_PARTS)
  checksums.write(folder)  # else all would be refused for their digests, and nothing be read
  found = cache.load(folder)
  if found is None:
    return False
  plan = make_plan(found, {"counts": {"*": 2}}, seed=0, rows_per_step=2, max_length=128, epochs=1)
  for step in range(plan.steps):
    for row in plan.rows(step):
      for i in row:
        found.tokens[found.starts[i] : found.starts[i] + found.lengths[i]].sum()
        found.place(int(i))
  return True


def cache_seeds():
  found = encoded()
  with scratch() as folder:
    for name, dtype in cache.FILES.items():
      (folder / f"{name}.bin").write_bytes(np.ascontiguousarray(getattr(found, name), dtype).tobytes())  # fmt: skip
    cache.write_meta(folder, {name: getattr(found, name) for name in cache.TABLES})
    return [{name: (folder / name).read_bytes() for name in CACHE_PARTS}]


def cache_strategy():
  return changed_json(cache_seeds())


RUN_PARTS = ("config.json", "data_plan.json", "metrics.jsonl", "evals/2/heldout.json", "evals/2/generations.jsonl", "sweep.json")  # fmt: skip


def run_workdir(folder, parts):
  write(folder, parts, *RUN_PARTS)
  run_files.read_run(folder)
  report.write_report(folder)
  if "sweep.json" in parts:
    read_sweep(folder)
  workdir.check_free(folder, load_config(str(CONFIG), []))
  workdir.check_plan(folder, {"hash": "abc", "made_from": {}})
  workdir.read_evaluation(folder, 2)
  workdir.was_evaluated(folder, 2)
  return True


def workdir_seeds():
  figure = {"value": 0.5, "n": 4, "low": 0.1, "high": 0.9}
  figures = {lang: {"loss": figure, "fidelity": figure} for lang in ("en", "fi", "mean")}
  figures["worst"] = {m: figure | {"lang": "fi"} for m in ("loss", "fidelity")}
  entry = {"rows_read": 4, "dropped": {"roles": 1}, "flagged": {}, "per_epoch": 2, "examples": 2, "repeats": 0, "tokens": 9, "trained_tokens": 5, "share_of_trained_tokens": 1.0, "bytes_per_token": 2.0, "truncated": 0, "sources": {}, "available": 2, "language_judged": 0, "trained": {"examples": 2, "tokens": 9, "trained_tokens": 5}}  # fmt: skip
  ledger = {"hash": "abc", "mixture": {"counts": {"en": 2}}, "steps": 2, "epochs": 1, "rows_per_step": 2, "max_length": 8, "seed": 0, "padding": 0.1, "languages": {"en": entry}, "stages": [], "made_from": {"x": "y"}, "language_judged_every": 0, "steps_done": 2}  # fmt: skip
  events = [{"step": s, "time": 1.0, "train/loss": 2.0, "eval/heldout/en/loss": 1.0} for s in (1, 2)]  # fmt: skip
  answers = [{"id": "1", "lang": "fi", "prompt": "q", "response": "a <script>", "stopped": True, "tokens": 3, "model": "m", "set": "heldout", "fidelity": {"right": False, "why": "x"}}]  # fmt: skip
  config = {"config": nested(load_config(str(CONFIG), [])), "versions": {"jax": "0"}}
  sweep = {"title": "t", "languages": ["en", "fi"], "base": "en", "set": "heldout", "arms": [{"name": "a", "tuned": ["en"], "factors": {"k": 1}, "counts": {"en": 1}}], "runs": [{"id": "r", "arm": "a", "draw": 0, "seed": 0, "workdir": "."}], "curves": [{"key": "k", "label": "K"}], "groups": {"seen": ["fi"]}, "comparisons": [], "covariates": []}  # fmt: skip
  run = {"config.json": inputs.dump(config), "data_plan.json": inputs.dump(ledger), "metrics.jsonl": lines(*events), "evals/2/heldout.json": inputs.dump(figures), "evals/2/generations.jsonl": lines(*answers)}  # fmt: skip
  return [run, run | {"sweep.json": inputs.dump(sweep)}]


def workdir_strategy():
  return changed_json(workdir_seeds())
