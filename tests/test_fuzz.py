"""A small, seeded part of benchmarks/fuzz.py, and the inputs that it once found faults with."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import fuzz  # noqa: E402
import fuzz_inputs as inputs  # noqa: E402

from mlit_jax import checksums  # noqa: E402
from mlit_jax.data import cache, files  # noqa: E402
from mlit_jax.data.chat import Template  # noqa: E402
from mlit_jax.data.mixture import Stock, resolve  # noqa: E402
from mlit_jax.data.rows import read_sources  # noqa: E402
from mlit_jax.data.tokenizer import Tokenizer  # noqa: E402
from mlit_jax.errors import LONGEST, UserError  # noqa: E402
from mlit_jax.evals.judging.people import people_judge  # noqa: E402
from mlit_jax.evals.judging.verdicts import Store, parse  # noqa: E402
from mlit_jax.evals.suites.opening import open_suite  # noqa: E402
from mlit_jax.experiments.sweep_files import read_sweep  # noqa: E402
from mlit_jax.model.config import from_hf  # noqa: E402
from mlit_jax.training import run_files, workdir  # noqa: E402
from mlit_jax.weights import hf_files  # noqa: E402

CASES = 150
DEEP = b"[" * 200_000
WATCH: list = []


@pytest.fixture
def watch():
  """One for all tests: an audit hook stays as long as its process."""
  if not WATCH:
    WATCH.append(fuzz.Watch())
  return WATCH[0]


@pytest.mark.parametrize("name", fuzz.NAMES)
def test_hostile_input_is_accepted_or_refused(name, tmp_path, watch):
  stats = fuzz.fuzz(name, CASES, 1, tmp_path, tmp_path / "out", watch)
  assert stats.failures == {}
  assert stats.cases == CASES == stats.accepted + stats.refused
  assert stats.accepted >= 3 and stats.refused >= 20


@pytest.mark.parametrize(
  "fault",
  [
    lambda folder: (folder.parent / "outside").write_text("x"),
    lambda folder: 1 / 0,
    lambda folder: sys.stdin.fileno() and (_ for _ in ()).throw(UserError("")),
    lambda folder: [0] * 10**13,
    lambda folder: __import__("subprocess").run(["true"]),
    lambda folder: __import__("pickle").loads(b"cos\nsystem\n."),
  ],
)
def test_the_fuzzer_sees_what_must_not_happen(fault, tmp_path, watch):
  runner = fuzz.Runner("rows", lambda folder, parts: fault(folder), tmp_path, None, watch)
  runner.case(b"")
  assert len(runner.stats.failures) == 1


def test_the_fuzzer_ends_what_hangs(tmp_path, watch, monkeypatch):
  monkeypatch.setattr(fuzz, "SECONDS", 0.2)

  def spin(folder, parts):
    while True:
      pass

  runner = fuzz.Runner("rows", spin, tmp_path, tmp_path / "out", watch)
  monkeypatch.setattr(fuzz, "MINIMISING", 2)
  runner.case(b"\n%%%% rows\nxx")
  assert "hang" in next(iter(runner.stats.failures.values()))
  assert len(list((tmp_path / "out").glob("rows-*.case"))) == 1


def test_the_same_seed_gives_the_same_cases():
  import fuzz_targets

  target = fuzz_targets.TARGETS["suite"]
  first, again, other = (list(fuzz.cases(target, 60, seed, [])) for seed in (3, 3, 4))
  assert first == again != other and len(first) == 60
  assert inputs.split(inputs.join({"a": b"1\n%%", "b/c": b""})) == {"a": b"1\n%%", "b/c": b""}


# ------------------------------------------------------------------------------------ what was found


def refused(call, *parts: str) -> None:
  with pytest.raises(UserError) as caught:
    call()
  for part in parts:
    assert part in str(caught.value), (part, str(caught.value)[:500])


def test_messages_are_short_enough_to_be_read():
  text = str(UserError("x" * 100_000 + " Remedy."))
  assert len(text) < LONGEST + 100 and text.endswith(" Remedy.") and "characters" in text


def test_a_damaged_arrow_file_does_not_end_the_process(tmp_path):
  """Offsets beyond the data made pyarrow read what is not there."""
  import pyarrow as pa

  path = tmp_path / "a.arrow"
  batch = pa.record_batch(
    {"prompt": ["q" * 40, "r"], "completion": ["a", "b"], "lang": ["fi", "fi"]}
  )
  with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as out:
    out.write_batch(batch)
  data = path.read_bytes()
  offsets = (0).to_bytes(4, "little") + (40).to_bytes(4, "little") + (41).to_bytes(4, "little")
  assert data.count(offsets) == 1
  path.write_bytes(
    data.replace(
      offsets, offsets[:4] + (2**30).to_bytes(4, "little") + (2**30 + 1).to_bytes(4, "little")
    )
  )
  refused(lambda: list(files.read_rows(str(path))), str(path), "cannot be read")


def test_an_end_token_before_other_text_is_looked_for_once():
  source = "{% for m in messages %}{{ m.content }}</s> and so on {% endfor %}"
  template = Template(source, {"eos_token": "</s>"}, added_tokens=("</s>",))
  refused(lambda: template.end_of_turn, "ends an answer with")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json", "added_tokens.json"])
@pytest.mark.parametrize("data", [DEEP, b'{"added_tokens_decoder": 3}', b'{"added_tokens_decoder": {"a": 1}}', b'{"chat_template": [3]}', b'{"eos_token": {"content": []}, "x": 1}', b"\xff"])  # fmt: skip
def test_odd_tokenizer_files(tmp_path, name, data):
  good = Path(cache.__file__).parents[1] / "assets" / "tiny12"
  for file in ("tokenizer.json", "tokenizer_config.json"):
    (tmp_path / file).write_bytes((good / file).read_bytes())
  (tmp_path / name).write_bytes(data)
  try:
    Tokenizer.load(str(tmp_path))
  except UserError as e:
    assert len(str(e)) <= LONGEST + 100


@pytest.mark.parametrize(
  "header",
  [
    '{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
    '{"a": {"dtype": "F32", "shape": [' + "9" * 4000 + '], "data_offsets": [0, 4]}}',
    '{"a": {"dtype": "F32", "shape": [' + "1," * 99 + '1], "data_offsets": [0, 4]}}',
    '{"a": ' + "[" * 100_000,
    '{"a": 1, "a": 2}',
  ],
)
def test_odd_headers(header):
  refused(lambda: hf_files.parse_header(header, "x.safetensors"), "x.safetensors")


def test_odd_model_configs():
  llama = {"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "rms_norm_eps": 1e-6}  # fmt: skip
  from_hf(llama)
  refused(lambda: from_hf(llama | {"num_hidden_layers": 10**12}), "more than 10,000 layers")
  refused(lambda: from_hf(llama | {"model_type": ["llama"]}), "not supported")
  refused(lambda: from_hf(llama | {"model_type": "gemma3", "text_config": 3}), "gemma3")


def test_odd_caches(tmp_path):
  for meta in (DEEP, b"[]", b"{}", b'{"sizes": {}}', b'{"sizes": 3'):
    (tmp_path / "meta.json").write_bytes(meta)
    checksums.write(tmp_path)
    refused(lambda: cache.load(tmp_path), "is damaged", "Remove it")


def test_odd_verdicts(tmp_path):
  head = b'{"version": 1, "prompts": "p", "num_prompts": 1}\n'
  for line in (DEEP, b'{"key": []}', b'{"key": "k"}', b'{"key": "k", "choice": "third"}'):
    (tmp_path / "v.jsonl").write_bytes(head + line + b"\n")
    refused(lambda: Store(tmp_path / "v.jsonl", prompts="p", num_prompts=1), "v.jsonl:2 is damaged")
  (tmp_path / "v.jsonl").write_bytes(b'{"version": 1, "prompts": 3}\n')
  refused(lambda: Store(tmp_path / "v.jsonl", prompts="p", num_prompts=1), "not a file of verdicts")
  (tmp_path / "s.csv").write_bytes(b"key,verdict\n" + b'"' + b"x" * 300_000 + b'",1\n')
  refused(lambda: people_judge(tmp_path / "s.csv", []), "s.csv: line")


def test_a_reply_of_many_thoughts_is_read_in_one_pass():
  assert parse("<think>" * 300_000 + "[[A]]") is None
  assert parse("<think>[[A]]</think>" * 50_000 + "[[B]]") == "second"


def test_odd_suites(tmp_path):
  path = tmp_path / "s.suite.json"
  (tmp_path / "p.jsonl").write_bytes(b'{"lang": "fi", "prompt": "q"}\n')
  for given in (DEEP, b'{"prompts": 3}', b'{"prompts": "p.jsonl", "languages": [3]}', b'{"prompts": "p.jsonl", "stop": [3], "measure": [[]]}'):  # fmt: skip
    path.write_bytes(given)
    refused(lambda: open_suite(str(path)), "the suite")
  (tmp_path / "fi.jsonl").write_bytes(
    b'{"id": 1, "context": "c", "question": "q", "answers": {}}\n'
  )
  refused(lambda: open_suite(f"xquad:{tmp_path / 'fi.jsonl'}"), "the suite", "xquad", "Fetch them again")  # fmt: skip


def test_odd_groups_of_a_suite(tmp_path):
  (tmp_path / "s.suite.json").write_text('{"prompts": "p.jsonl"}')
  (tmp_path / "p.jsonl").write_text('{"lang": "fi", "prompt": "q", "group_id": {"a": 1}}\n')
  refused(lambda: open_suite(str(tmp_path / "s.suite.json")), "fi/1 has the group_id")


def test_a_panic_of_the_tokenizers_library_is_a_refusal(tmp_path, capfd):
  """Raised by `encode`, once the file has been read: the post-processor names a token that nothing has."""
  import tokenizers
  from tokenizers import models, processors

  words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "<s>": 1}, "a"))
  words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
  found = json.loads(words.to_str())
  found["post_processor"]["special_tokens"] = {}
  (tmp_path / "tokenizer.json").write_text(json.dumps(found))
  refused(lambda: Tokenizer.load(str(tmp_path)), "tokenizer.json", "Fetch it again")


def test_pieces_of_a_vocabulary_must_be_text(tmp_path):
  good = Path(cache.__file__).parents[1] / "assets" / "tokenizer12" / "tokenizer.model"
  data = good.read_bytes()
  piece = "▁s".encode()
  assert piece in data
  (tmp_path / "tokenizer.model").write_bytes(data.replace(piece, b"\xff\x96\x81s"))
  refused(lambda: Tokenizer.load(str(tmp_path)), "tokenizer.model", "Fetch the file again")


def test_odd_mixtures():
  stock = Stock({unit: {("fi", ""): 9} for unit in ("examples", "tokens", "trained_tokens")})
  for spec in ({"uniform": {"total": 4, "languages": 0.5}}, {"counts": {"fi": 1}, "leave_out": 3}):
    refused(lambda spec=spec: resolve(spec, stock), "data.mixture")


def test_odd_files_of_a_run(tmp_path):
  (tmp_path / "data_plan.json").write_bytes(DEEP)
  refused(lambda: workdir._read(tmp_path / "data_plan.json"), "is damaged", "Restore it")
  lacking = {"languages": {}, run_files.LACKING: True}
  for plan, ledger in (
    ('{"languages": {"fi": 3}}', lacking),
    ('{"languages": {"fi": {"rows_read": 1}}}', lacking),
    ('{"steps": "x"}', {}),
  ):
    (tmp_path / "data_plan.json").write_text(plan)
    assert run_files.read_run(tmp_path).ledger == ledger
  (tmp_path / "sweep.json").write_bytes(DEEP)
  refused(lambda: read_sweep(tmp_path), "sweep.json")


def test_events_that_are_no_text(tmp_path):
  (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\n')
  refused(lambda: workdir.was_evaluated(tmp_path, 1), "metrics.jsonl is damaged")


def test_odd_saved_data_sets(tmp_path):
  for name, data in (("state.json", b'{"_data_files": 3}'), ("dataset_info.json", b'{"splits": 3}'), ("dataset_info.json", b'{"splits": [3], "fileFormat": "array_record"}')):  # fmt: skip
    folder = tmp_path / name / str(len(data))
    folder.mkdir(parents=True)
    (folder / name).write_bytes(data)
    if b"array_record" in data:
      (folder / "features.json").write_bytes(b"{}")
    refused(lambda folder=folder: read_sources([str(folder)]), str(folder))
