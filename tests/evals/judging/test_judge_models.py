"""Real models as judges: our engine in the process, and behind a real server that fails, stalls and is killed on."""

import argparse
import json
import shutil
import signal
import threading
import time
import zlib
from unittest import mock

import jax
import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor

from mlit_jax import judge
from mlit_jax import mesh as meshes
from mlit_jax.training.console import Terminal
from tests import commands
from tests.evals.judging.answered import (
  ASSETS,
  LANGUAGES,
  answers,
  fair,
  good,
  lines_of,
  ok,
  refused,
  summary,
)
from tests.evals.judging.answered import shown as texts_shown
from tests.evals.judging.serving import Served, flaky

load_file, save_file = (
  getattr(pytest.importorskip("safetensors.numpy"), name) for name in ("load_file", "save_file")
)


@pytest.fixture(scope="module", autouse=True)
def one_device():
  """A model this small on eight devices spends its time between them."""
  mesh = meshes.make_mesh(1, 1, 1, devices=jax.devices()[:1])
  with mock.patch.object(judge, "whole_mesh", lambda: mesh), mock.patch.object(judge, "ROWS", 2):
    yield


# --- a local model


@pytest.fixture(scope="module")
def says_a(tmp_path_factory):
  """A real model, made by hand: after <|assistant|> comes A, after A the end."""
  folder = tmp_path_factory.mktemp("says_a")
  for path in (ASSETS / "tiny12").iterdir():
    if path.suffix != ".safetensors":
      shutil.copy(path, folder)
  config = json.loads((folder / "config.json").read_text())
  config |= {"tie_word_embeddings": False, "num_hidden_layers": 1, "dtype": "float32"}
  config |= {"max_position_embeddings": 4096}
  (folder / "config.json").write_text(json.dumps(config))
  width, heads, pairs = config["hidden_size"], 6 * 32, 3 * 32
  pieces = SentencePieceProcessor(str(folder / "tokenizer.model"))
  ask, a, end = map(pieces.piece_to_id, ("<|assistant|>", "A", "<|end|>"))
  embed, head = np.zeros((2, config["vocab_size"], width), np.float32)
  embed[:, 0] = 1
  embed[ask], embed[a] = np.eye(width, dtype=np.float32)[[1, 2]]
  head[a, 1] = head[end, 2] = 1
  zeros = {"q_proj": (heads, width), "k_proj": (pairs, width), "v_proj": (pairs, width)}
  layer = "model.layers.0."
  tensors = {f"{layer}self_attn.{k}.weight": np.zeros(v, np.float32) for k, v in zeros.items()}
  tensors[f"{layer}self_attn.o_proj.weight"] = np.zeros((width, heads), np.float32)
  for name, shape in {"gate": (512, width), "up": (512, width), "down": (width, 512)}.items():
    tensors[f"{layer}mlp.{name}_proj.weight"] = np.zeros(shape, np.float32)
  for name in (f"{layer}input_layernorm", f"{layer}post_attention_layernorm", "model.norm"):
    tensors[f"{name}.weight"] = np.ones(width, np.float32)
  tensors |= {"model.embed_tokens.weight": embed, "lm_head.weight": head}
  save_file(tensors, folder / "model.safetensors", {"format": "pt"})
  return folder


def test_a_local_model_that_follows_the_order_scores_parity(tmp_path, files, says_a):
  """It always says A: 50 everywhere, consistency 0, first slot 1. The second run asks nothing."""
  words = files(a=answers(good, rows=1), b=answers(fair, rows=1))
  words += ["--judge", f"model:{says_a}", "--max_new_tokens", 4, "--rubric_language", "en"]
  out = tmp_path / "out"
  assert "6 to judge" in ok(*words, "--out", out)
  for lang in LANGUAGES:
    figures = summary(out)[lang]
    assert figures["win_score"]["value"] == 50 and figures["tie_rate"]["value"] == 1
    assert figures["order_consistency"]["value"] == 0 and figures["first_slot_rate"]["value"] == 1
    assert figures["invalid_rate"]["value"] == 0
  before = commands.contents(out)
  assert "0 to judge" in ok(*words, "--out", out)
  assert commands.contents(out) == before
  # The name of a folder does not say what is in it: other weights are another judge.
  changed = tmp_path / "changed"
  shutil.copytree(says_a, changed)
  tensors = load_file(changed / "model.safetensors")
  tensors["lm_head.weight"][tensors["lm_head.weight"][:, 1].argmax(), 1] = 2
  save_file(tensors, changed / "model.safetensors", {"format": "pt"})
  words[words.index(f"model:{says_a}")] = f"model:{changed}"
  assert "6 to judge" in ok(*words, "--out", out)


def test_weights_are_known_by_every_bit_and_on_any_mesh():
  x = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
  moved, nudged = x[[1, 0, *range(2, 16)]], x.copy()
  nudged[7, 9] = np.nextafter(nudged[7, 9], 1)
  spread = jax.device_put(x, jax.NamedSharding(meshes.make_mesh(1, 8, 1), jax.P("fsdp")))
  one = judge.weights_fingerprint({"a": x, "b": x.T})
  assert judge.weights_fingerprint({"a": spread, "b": x.T}) == one
  others = [judge.weights_fingerprint({"a": y, "b": x.T}) for y in (moved, nudged, x.T, -x)]
  assert len({one, *others}) == 5


def test_a_prompt_that_a_local_model_cannot_hold_is_refused(tmp_path, files):
  words = files(a=answers(good, rows=1), b=answers(fair, rows=1))
  err = refused(*words, "--judge", f"model:{ASSETS / 'tiny12'}", "--out", tmp_path / "out")
  assert "has 256 positions" in err and "--template" in err
  words += ["--judge", f"model:{ASSETS / 'tiny12'}", "--out", tmp_path / "out"]
  assert "a local judge is greedy" in refused(*words, "--temperature", 1)


# --- a real model behind a real server


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """tiny(messages) -> what the bundled base model says, through our engine, and a verdict drawn from it.

  For one prompt of seven it leaves the verdict out.
  """
  folder = tmp_path_factory.mktemp("tiny")
  shutil.copytree(ASSETS / "tiny12", folder, dirs_exist_ok=True)
  config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 4096}
  (folder / "config.json").write_text(json.dumps(config))
  args = argparse.Namespace(max_new_tokens=6, temperature=0.0, dtype="float32")
  answer, _ = judge.local_model(args, str(folder), Terminal(shown=False))
  lock, known = threading.Lock(), {}

  def tiny(messages):
    key = json.dumps(messages)
    with lock:
      if key not in known:
        (known[key],) = answer([messages])
    said = known[key]
    drawn = zlib.crc32((said + key).encode())
    return said if drawn % 7 == 0 else f"{said}\n[[{'ABC'[drawn % 3]}]]"

  return tiny


@pytest.mark.slow
def test_a_real_model_behind_a_bad_server(tmp_path, files, template, tiny, quick):
  """The score is that of a server without faults; swapped files give 100 - score."""
  a, b = answers(good, rows=3), answers(fair, rows=3)
  words = ["--yes", "--key_env", "none", "--template", template, "--retries", 12, "--timeout", 20]
  with Served(tiny) as server:
    out = tmp_path / "calm"
    ok(*files(a=a, b=b), "--judge", f"{server.url}#tiny", *words, "--out", out)
  calm, choices = summary(out), {row["choice"] for row in lines_of(out / "verdicts.jsonl")[1:]}
  assert choices >= {"first", "second", "tie"} and calm["mean"]["invalid_rate"]["value"] < 0.5
  stalled = []

  def fault(n):
    if n == 12:
      stalled.append(n)
      return "stall"
    return flaky(n)

  with Served(tiny, fault, stall_seconds=30) as server:
    out = tmp_path / "bad"
    spec = f"{server.url}#tiny"
    shown = ok(*files(a=a, b=b), "--judge", spec, *words, "--timeout", 2, "--out", out)
    assert len(server.asked) > 1.6 * len(server.answered) and stalled
  for trouble in ("HTTP 500", "HTTP 429", "no reply within 2 s", "without choices"):
    assert trouble in shown
  assert summary(out) == calm
  with Served(tiny) as server:
    out = tmp_path / "swapped"
    ok(*files(b=a, a=b), "--judge", f"{server.url}#tiny", *words, "--out", out)
  for lang in (*LANGUAGES, "mean"):
    for metric in ("win_score", "win_score_gated"):
      assert summary(out)[lang][metric]["value"] == pytest.approx(100 - calm[lang][metric]["value"])
    assert summary(out)[lang]["first_slot_rate"] == calm[lang]["first_slot_rate"]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_bytes(tmp_path, files, template, tiny, end):
  """And no verdict that was kept is asked for again."""
  words = files(a=answers(good), b=answers(fair))
  words += ["--key_env", "none", "--template", template, "--yes", "--concurrency", 2]
  with Served(tiny) as server:
    ok(*words, "--judge", f"{server.url}#tiny", "--out", tmp_path / "whole")
    whole = sorted(body["messages"][-1]["content"] for body in server.asked)
  with Served(tiny, lambda n: 500 if n % 9 == 0 else None, delay=0.15) as server:
    out = tmp_path / "cut"
    spec = f"{server.url}#tiny"
    process = commands.start("judge", *words, "--judge", spec, "--out", out)
    while not (out / "verdicts.jsonl").exists() or len(lines_of(out / "verdicts.jsonl")) < 8:
      assert process.poll() is None, commands.ended(process)
      time.sleep(0.02)
    process.send_signal(end)
    code, _, err = commands.ended(process)
    assert code == (75 if end == signal.SIGTERM else -9), err
    assert end == signal.SIGKILL or "the same command goes on" in err
    assert not (out / "summary.json").exists()
    kept = lines_of(out / "verdicts.jsonl")[1:]
    assert 7 <= len(kept) < 30
    before = len(server.asked)
    with open(out / "verdicts.jsonl", "ab") as file:
      file.write(b'{"key": "cut off in the mid')
    shown = ok(*words, "--judge", spec, "--out", out)
    assert f"{len(kept)} of 30 verdicts are there; {30 - len(kept)} to judge" in shown
    rows = lines_of(out / "verdicts.jsonl")[1:]
    assert rows[: len(kept)] == kept and len({row["key"] for row in rows}) == len(rows) == 30
    # What was asked for after the restart, first tries and repeats alike, is all that was missing.
    pairs = {(row["lang"], row["id"], row["order"]): row for row in kept}
    asked = [body["messages"] for body in server.asked[before:]]
    again = {places(words)[tuple(shown_to[1:])] for shown_to in map(texts_shown, asked)}
    assert not again & pairs.keys() and len(again) == 30 - len(kept)
    assert set(whole) == {body["messages"][-1]["content"] for body in server.asked}
  for name in ("summary.json", "scores.jsonl"):
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def places(words):
  """{(first answer, second answer): (lang, id, order)}."""
  a, b = (lines_of(words[words.index(f"--{side}") + 1]) for side in "ab")
  out = {}
  for x, y in zip(a, b, strict=True):
    out[x["response"], y["response"]] = x["lang"], x["id"], "ab"
    out[y["response"], x["response"]] = x["lang"], x["id"], "ba"
  return out
