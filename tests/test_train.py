"""From rows to a tuned folder with the real commands, on the smallest run that has everything in it."""

import json
import re

import jax
import numpy as np
import pytest

from mlit_jax import evaluate, export, generate
from mlit_jax.mesh import make_mesh
from mlit_jax.model import decoder
from mlit_jax.opening import open_workdir
from mlit_jax.weights import save, verify
from tests import commands

METRICS = ("loss", "bits_per_byte", "fidelity", "coverage", "stopped", "chrf", "exact")
CONDITIONAL = ("line_pass", "word_pass")  # only where an answer had enough text


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """(workdir, config, stdout, stderr) of a run to its end."""
  folder = tmp_path_factory.mktemp("train")
  config, workdir = commands.write_config(folder), folder / "run"
  process = commands.start("train", "--config", config, "--workdir", workdir, JAX_LOG_COMPILES="1")
  code, out, err = commands.ended(process)
  assert code == 0, err[-3000:]
  return workdir, config, out, err


def read(path):
  return json.loads(path.read_text(encoding="utf-8"))


def test_the_workdir_has_what_the_interface_lists(finished):
  workdir, *_ = finished
  steps = read(workdir / "data_plan.json")["steps"]
  assert steps >= 4
  assert {"config", "versions"} <= read(workdir / "config.json").keys()
  assert read(workdir / "config.json")["config"]["batch"]["max_length"] == 128
  for step in range(0, steps + 1, 2):
    assert set(read(workdir / "evals" / str(step) / "heldout.json")) == {
      *commands.COUNTS,
      "mean",
      "worst",
    }
    lines = (
      (workdir / "evals" / str(step) / "generations.jsonl").read_text(encoding="utf-8").split("\n")
    )
    rows = [json.loads(line) for line in lines[:-1]]
    assert [r["lang"] for r in rows] == list(commands.COUNTS)
    interface = {"id", "lang", "prompt", "response", "stopped", "tokens", "model"}
    beside = {"set", "group_id", "fidelity", "chrf", "exact"}
    assert all(r.keys() == interface | beside for r in rows)
  assert (workdir / "checkpoints" / str(steps)).is_dir()
  card = (workdir / "README.md").read_text(encoding="utf-8")
  assert all(f"| {lang} | {n} |" in card for lang, n in commands.COUNTS.items())
  leftovers = [p for p in workdir.rglob(".*") if p.name != ".lock"]
  assert not leftovers, leftovers


def test_the_names_of_the_metrics(finished):
  workdir, *_ = finished
  steps = read(workdir / "data_plan.json")["steps"]
  train = commands.train_events(workdir)
  assert sorted(train) == list(range(1, steps + 1))
  rest = ("tokens_per_second", "trained_tokens_per_second", "padding", "grad_norm", "learning_rate")
  for event in (e for e in commands.events(workdir) if "train/loss" in e):
    langs = {k.removeprefix("train/loss/") for k in event if k.startswith("train/loss/")}
    assert langs and langs <= set(commands.COUNTS)
    expected = {"step", "time", "train/loss", *(f"train/{name}" for name in rest)}
    expected |= {f"train/{kind}/{lang}" for kind in ("loss", "share") for lang in langs}
    times = {name for name in event if name.startswith("time/")}
    assert event.keys() - {"train/mfu"} - times == expected
    assert "time/step" in times and all(event[name] > 0 for name in times)
    shares = {lang: event[f"train/share/{lang}"] for lang in langs}
    assert sum(shares.values()) == pytest.approx(1)
    mean = sum(share * event[f"train/loss/{lang}"] for lang, share in shares.items())
    assert event["train/loss"] == pytest.approx(mean, rel=1e-6)
  evals = [e for e in commands.events(workdir) if "eval/heldout/mean/loss" in e]
  assert [e["step"] for e in evals] == sorted({*range(0, steps + 1, 2), steps})
  names = {
    f"eval/heldout/{lang}/{m}" for lang in (*commands.COUNTS, "mean", "worst") for m in METRICS
  }
  more = {name for e in evals for name in e if name.endswith(CONDITIONAL)}
  assert all(e.keys() - more == {"step", "time", *names} for e in evals)
  assert evals[-1]["eval/heldout/mean/loss"] < evals[0]["eval/heldout/mean/loss"]
  last = commands.events(workdir)[-1]
  assert last["step"] == steps and 0 < last["goodput"] < 1


def test_the_ledger_has_the_counts_asked_for_and_trained_what_was_planned(finished):
  workdir, *_ = finished
  ledger = read(workdir / "data_plan.json")
  assert {lang: e["examples"] for lang, e in ledger["languages"].items()} == commands.COUNTS
  for lang, entry in ledger["languages"].items():
    assert entry["trained"] == {k: entry[k] for k in ("examples", "tokens", "trained_tokens")}, lang
    assert 0 < entry["trained_tokens"] < entry["tokens"]
    assert entry["rows_read"] == 120 and entry["repeats"] == entry["truncated"] == 0


def test_the_train_step_compiles_once_in_a_whole_run(finished):
  *_, err = finished
  assert len(re.findall(r"Compiling (?:jit\(step\)|step\b)", err)) == 1


def test_nothing_but_logs_of_compilations_on_stderr(finished):
  *_, err = finished
  assert "Traceback" not in err and "Error" not in err


def test_the_same_command_again_changes_nothing(finished):
  workdir, config, *_ = finished
  before = commands.contents(workdir)
  code, out, err = commands.ended(commands.start("train", "--config", config, "--workdir", workdir))
  assert code == 0, err
  after = commands.contents(workdir)
  changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
  assert changed <= {".lock"}, changed
  assert "resumed" in out or "finished" in out


@pytest.mark.slow
def test_another_number_of_devices_gives_the_same_run(finished, tmp_path):
  """Two devices, resumed from nothing: the same batches and the same losses."""
  workdir, config, *_ = finished
  process = commands.start(
    "train",
    "--config",
    config,
    "--workdir",
    tmp_path / "run",
    "--config.eval.generate_rows=0",
    devices=2,
  )
  code, _, err = commands.ended(process)
  assert code == 0, err
  one, two = commands.train_events(workdir), commands.train_events(tmp_path / "run")
  assert one.keys() == two.keys()
  for step, event in one.items():
    assert two[step] == pytest.approx(event, rel=1e-4), step
  assert read(workdir / "data_plan.json") == read(tmp_path / "run" / "data_plan.json")


def test_an_export_gives_our_logits_in_transformers(finished, tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  workdir, *_ = finished
  code, out, err = commands.here(export, "--workdir", workdir, "--out", tmp_path / "out")
  assert code == 0, err
  assert "from_pretrained" in out
  (line,) = [line for line in out.splitlines() if line.startswith("logits as in transformers")]
  assert all(re.search(rf" {lang} \d\.\de-0[5-9]", line) for lang in commands.COUNTS), line
  assert "one row of each evaluation set's languages" in line
  assert [p.name for p in tmp_path.iterdir()] == ["out"]
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  opened = open_workdir(workdir, "latest", make_mesh(1, 1, 1, devices=jax.devices()[:1]))
  for text in ("Kwa nini anga ni la bluu?", "你好，今天天气怎么样？", "How do I sort a list?"):
    messages = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == list(opened.tokenizer.encode_text(opened.tokenizer.template.prompt(messages)))
    tokens = np.array([ids], np.int32)
    ours = decoder.apply(
      opened.params, opened.cfg, tokens, np.arange(len(ids))[None], np.ones_like(tokens)
    )
    with torch.no_grad():
      theirs = model(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-4, rtol=0)
  assert model.generation_config.eos_token_id is not None
  before = commands.contents(tmp_path / "out")
  code, _, err = commands.here(export, "--workdir", workdir, "--out", tmp_path / "out")
  assert code == 2 and str(tmp_path / "out") in err  # never over what is there
  assert commands.contents(tmp_path / "out") == before


def test_an_export_that_computes_something_else_keeps_a_name_that_says_so(
  finished, tmp_path, monkeypatch
):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  workdir, *_ = finished
  right = save.with_stop_ids

  def wrong(files, stop_ids):  # a config.json of other rotary frequencies
    files = right(files, stop_ids)
    config = json.loads(files["config.json"])
    key = "rope_parameters" if "rope_parameters" in config else "rope_theta"
    config[key] = {**config[key], "rope_theta": 17.0} if key == "rope_parameters" else 17.0
    return files | {"config.json": json.dumps(config).encode()}

  monkeypatch.setattr(save, "with_stop_ids", wrong)
  args = ["--workdir", workdir, "--out", tmp_path / "out"]
  code, out, err = commands.here(export, *args)
  assert code == 1 and "out.unverified" in err and "other logits" in err, err
  assert "from_pretrained" not in out
  assert [p.name for p in tmp_path.iterdir()] == ["out.unverified"]
  code, out, err = commands.here(export, *args)  # again: in its place, not beside it
  assert code == 1 and "out.unverified" in out and "other logits" in err, err
  assert [p.name for p in tmp_path.iterdir()] == ["out.unverified"]
  code, out, _ = commands.here(export, *args, "--no-verify")  # as asked: not compared
  assert code == 0 and "logits" not in out
  assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.unverified"]


def test_without_transformers_an_export_says_that_nothing_was_compared(
  finished, tmp_path, monkeypatch
):
  workdir, *_ = finished
  monkeypatch.setattr(verify, "can_compare", lambda: False)
  code, out, err = commands.here(export, "--workdir", workdir, "--out", tmp_path / "out")
  assert code == 0, err
  assert "not installed" in out and "not compared" in out
  assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_generate_answers(finished, tmp_path):
  workdir, *_ = finished
  prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
  rows = [
    {
      "id": "a",
      "lang": "sw",
      "prompt": "Kwa nini\u2028anga ni la bluu?",
    },  # a line separator, not a line's end
    {"id": "b", "lang": "zh", "messages": [{"role": "user", "content": "你好"}]},
  ]
  prompts.write_text(
    "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8"
  )
  args = ["--model", f"{workdir}@best", "--max_new_tokens", 3]
  code, _, err = commands.here(generate, *args, "--prompts", prompts, "--out", answers)
  assert code == 0, err
  out = [json.loads(line) for line in answers.read_text(encoding="utf-8").split("\n")[:-1]]
  assert [(r["id"], r["lang"]) for r in out] == [("a", "sw"), ("b", "zh")]
  assert all(isinstance(r["response"], str) and 0 <= r["tokens"] <= 3 for r in out)
  code, text, err = commands.here(generate, *args, "--prompt", rows[0]["prompt"])
  assert code == 0, err
  assert text == out[0]["response"] + "\n"


def test_evaluate_writes_a_summary(finished, tmp_path):
  workdir, *_ = finished
  suite = commands.ROOT / "mlit_jax" / "assets" / "instructions12" / "eval" / "sw.jsonl"
  args = [
    "--model",
    workdir,
    "--suite",
    suite,
    "--max_length",
    128,
    "--generate_rows",
    1,
    "--max_new_tokens",
    4,
  ]
  code, _, err = commands.here(evaluate, *args, "--out", tmp_path)
  assert code == 0, err
  summary = read(tmp_path / "summary.json")
  (by_lang,) = summary.values()
  assert by_lang["sw"]["loss"].keys() == {"value", "n", "low", "high"}
  last = max((workdir / "evals").iterdir(), key=lambda p: int(p.name))
  ours = read(last / "heldout.json")["sw"]
  for metric in ("loss", "bits_per_byte"):
    assert by_lang["sw"][metric]["value"] == pytest.approx(ours[metric]["value"], rel=1e-5)
    assert by_lang["sw"][metric]["n"] == ours[metric]["n"]


def test_a_tuned_base_model_loads_in_transformers_and_differs_from_its_base(tmp_path):
  """Gemma-like, in bfloat16 files: tuned in float32, exported in the dtype and layout it came in."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  from tests import families

  families.make_model(tmp_path / "base", "gemma3_text", dtype="bfloat16", max_shard_size="40KB")
  config = commands.write_config(
    tmp_path,
    f"c.model.path = {str(tmp_path / 'base')!r}",
    "c.model.sizes, c.tokenizer.path, c.eval.sets = {}, '', {}",
    "c.batch.max_length, c.epochs, c.steps = 640, 0, 3",
  )
  workdir, out = tmp_path / "run", tmp_path / "out"
  code, _, err = commands.ended(commands.start("train", "--config", config, "--workdir", workdir))
  assert code == 0, err
  code, _, err = commands.here(export, "--workdir", workdir, "--out", out)
  assert code == 0, err
  assert {p.name for p in (tmp_path / "base").iterdir()} <= {p.name for p in out.iterdir()}
  assert (
    transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16
  )
  opened = open_workdir(workdir, "latest", make_mesh(1, 1, 1, devices=jax.devices()[:1]))
  rounded = jax.tree.map(lambda a: a.astype("bfloat16").astype("float32"), opened.params)
  assert any(
    (a != b).any() for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(opened.params))
  )
  tokens = np.arange(24, dtype=np.int32)[None] * 7 % 256
  ours = decoder.apply(rounded, opened.cfg, tokens, np.arange(24)[None], np.ones_like(tokens))
  theirs = families.hf_logits(families.load_model(out), tokens)
  np.testing.assert_allclose(np.asarray(ours), theirs, atol=2e-4, rtol=0)
  before = families.hf_logits(families.load_model(tmp_path / "base"), tokens)
  assert np.abs(before - theirs).max() > 0.05
