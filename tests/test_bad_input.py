"""What a user can get wrong: exit code 2, one message with value, place and remedy, nothing written over."""

import fcntl
import json
import shutil

import numpy as np
import pytest

from mlit_jax import checks, runtime, train
from mlit_jax.config import load_config
from mlit_jax.data import cache
from mlit_jax.errors import UserError
from mlit_jax.training import workdir as workdirs
from tests import commands

LONG = "neno " * 300


def row(**changes):
  return {"lang": "sw", "prompt": "Habari?", "completion": "Nzuri sana."} | changes


@pytest.fixture
def attempt(tmp_path):
  """attempt(*lines of the config, *arguments that begin with --) -> the message; all else is checked here."""

  def attempt(*words, workdir=None):
    lines = [w for w in words if not w.startswith("--")]
    workdir = workdir or tmp_path / "run"
    before = commands.contents(workdir)
    # As many rows as there are devices: that they do not fit is said before a row is read.
    config = commands.write_config(tmp_path, "c.batch.rows = 8", *lines)
    args = [w for w in words if w.startswith("--")]
    code, out, err = commands.here(train, "--config", config, "--workdir", workdir, *args)
    assert code == 2, out + err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert "Traceback" not in out + err
    after = commands.contents(workdir)
    assert {k: after[k] for k in before} == before, "written over"
    new = {name.split("/")[0] for name in after.keys() - before.keys()}
    assert new <= {"cache"}, new  # so that the same workdir can be used once it is mended
    return err

  return attempt


@pytest.fixture
def rows_file(tmp_path):
  """rows_file(*rows) -> (path, the line of a config that trains on it); text stands as it is."""

  def rows_file(*rows):
    path = tmp_path / "rows.jsonl"
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path), f"c.data.train = [{str(path)!r}]"

  return rows_file


def assert_has(message, *parts):
  for part in parts:
    assert part in message, (part, message)


# ------------------------------------------------------------------------------------ config


def test_an_unknown_key(attempt, tmp_path):
  assert_has(attempt("c.optimizer.lerning_rate = 1e-3"), "tiny.py", "lerning_rate", "learning_rate")
  assert_has(attempt("--config.batch.row=8"), "batch.row", "did you mean 'batch.rows'")


def test_steps_and_epochs(attempt):
  assert_has(attempt("c.steps = 3"), "steps = 3", "epochs = 1", "exactly one")
  assert_has(attempt("c.epochs = 0"), "steps = 0", "epochs = 0", "exactly one")


@pytest.mark.parametrize(
  "line, parts",
  [
    ("c.model.dtype = 'float16'", ("model.dtype", "'float16'", "bfloat16, float32")),
    ("c.batch.microbatches = 3", ("batch.rows 8", "batch.microbatches 3")),
    ("c.batch.rows = 0", ("batch.rows", "0", "at least 1")),
    ("c.data.over_long = 'cut'", ("data.over_long", "'cut'", "truncate_answer")),
    ("c.optimizer.schedule = 'cosin'", ("optimizer.schedule", "'cosin'", "cosine")),
    ("c.optimizer.warmup_steps = 500", ("optimizer.warmup_steps", "500", "lower")),
    ("c.model.sizes = dict(d_model=32)", ("model.sizes", "num_layers", "model.path")),
    ("c.model.sizes = dict(d_model=32, num_layer=2)", ("model.sizes", "num_layer")),
    ("c.model.sizes = dict(d_model=32, num_layers=2, num_heads=4, num_kv_heads=3, d_ff=8)", ("num_heads 4", "3")),
    ("c.data.train = {}", ("data.train", "quickstart")),
    ("c.checkpoint.best = 'heldout/mean/los'", ("checkpoint.best", "los", "heldout/mean/loss")),
  ],
)  # fmt: skip
def test_values_that_cannot_be(attempt, line, parts):
  assert_has(attempt("c.batch.rows = 8", line), *parts)


@pytest.mark.parametrize(
  "sizes", [(3, -1, 1), (1, 4, 1), (-1, -1, 1), (0, -1, 1), (-2, -4, 1), (1, 16, 1)]
)
def test_a_mesh_that_does_not_fit(attempt, sizes):
  data, fsdp, tensor = sizes
  message = attempt(f"c.mesh.data, c.mesh.fsdp, c.mesh.tensor = {data}, {fsdp}, {tensor}")
  possible = min(sizes) >= -1 and 0 not in sizes and sizes.count(-1) < 2
  assert_has(message, str(data), str(fsdp), "8 devices" if possible else "any", "mesh.data")


def test_rows_that_the_mesh_does_not_divide(attempt):
  assert_has(attempt("c.batch.rows = 12"), "batch.rows 12", "8 shards", "mesh.fsdp")


# ------------------------------------------------------------------------------------ rows


def test_a_missing_file(attempt):
  assert_has(
    attempt(
      "c.data.train = {'sw': ['nowhere/sw.jsonl']}", "c.data.mixture = {'counts': {'sw': 4}}"
    ),
    "data.train['sw']",
    "nowhere/sw.jsonl",
    "does not exist",
  )
  assert_has(attempt("c.data.train = ['nowhere/*.jsonl']"), "nowhere/*.jsonl", "matches no file")
  assert_has(
    attempt("c.eval.sets = {'mine': ['nowhere/sw.jsonl']}"), "eval.sets['mine']", "nowhere/sw.jsonl"
  )


@pytest.mark.parametrize(
  "bad, parts",
  [
    ('{"lang": "sw", "prompt": ', ("broken JSON", "one JSON object a line")),
    (row(messages=[{"role": "wizard", "content": "x"}]), ("'wizard'", "user, human")),
    (
      row(messages=[{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]),
      ("'user'", "alternate"),
    ),
    (row(completion="  "), ("empty", "Fill it in")),
    (row(lang=None), ("no language", 'Add "lang"')),
    (row(lang="klingonish"), ("klingonish",)),
    (row(completion=3), ("completion is 3", "Give a string")),
    ({"lang": "sw", "text": "x"}, ("unknown shape", "'text'", "messages")),
  ],
)
def test_a_row_that_cannot_be_used(attempt, rows_file, bad, parts):
  path, line = rows_file(row(), bad, row(prompt="Jambo?"))
  assert_has(attempt(line), f"{path}:2", "data.bad_rows = 'drop'", *parts)
  assert_has(attempt(f"c.eval.sets = {{'heldout': [{path!r}]}}"), f"{path}:2", "bad_rows = 'drop'")


def test_languages_without_rows_and_more_examples_than_there_are(attempt, rows_file):
  _, line = rows_file(row(), row(prompt="Jambo?"))
  message = attempt(line, "c.data.mixture = {'counts': {'sw': 2, 'fi': 1}}")
  assert_has(message, "1 examples of 'fi'", "no rows", "data.train", "sw")
  message = attempt(line, "c.data.mixture = {'counts': {'sw': 3}}")
  assert_has(message, "3 examples of 'sw'", "2 usable", "data.max_repeats")
  assert_has(
    attempt(line, "c.data.mixture = {'count': {'sw': 2}}"),
    "data.mixture",
    "'count'",
    "did you mean 'counts'",
  )


def test_a_long_row(attempt, rows_file, tmp_path, monkeypatch):
  path, line = rows_file(row(), row(prompt=LONG))
  settings = (line, "c.data.mixture = {'counts': {'sw': 1}}")
  message = attempt(*settings, "c.data.over_long = 'error'")
  assert_has(message, f"{path}:2", "tokens", "batch.max_length", "128", "data.over_long")
  # Dropped, it is counted, and no longer there to be asked for.
  assert_has(
    attempt(line, "c.data.mixture = {'counts': {'sw': 2}}"), "2 examples of 'sw'", "1 usable"
  )
  ledgers = []
  monkeypatch.setattr(workdirs, "keep_ledger", lambda _, ledger: ledgers.append(ledger) or stop())

  def stop():
    raise UserError("far enough")

  attempt_config = commands.write_config(
    tmp_path, *settings, "c.batch.rows = 8", "c.optimizer.warmup_steps = 0"
  )
  code, _, err = commands.here(train, "--config", attempt_config, "--workdir", tmp_path / "other")
  assert (code, err) == (2, "error: far enough\n")
  assert ledgers[0]["languages"]["sw"]["dropped"] == {"over_long": 1}
  assert ledgers[0]["languages"]["sw"]["rows_read"] == 2


# ------------------------------------------------------------------------------------ models


@pytest.fixture
def model(tmp_path):
  pytest.importorskip("transformers")
  from tests import families

  folder = tmp_path / "model"
  families.make_model(folder, "qwen3")
  return folder


BASE = (
  "c.model.sizes = {}",
  "c.tokenizer.path = ''",
  "c.batch.rows = 8",
  "c.batch.max_length = 1024",
)


def edit_tensors(folder, change):
  import safetensors.numpy

  path = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def test_a_model_with_a_missing_or_an_unknown_tensor(attempt, model):
  name = "model.layers.1.mlp.up_proj.weight"
  kept = (model / "model.safetensors").read_bytes()
  edit_tensors(model, lambda t: t.pop(name))
  assert_has(
    attempt(f"c.model.path = {str(model)!r}", *BASE), str(model), "1 missing", name, "config.json"
  )
  (model / "model.safetensors").write_bytes(kept)
  edit_tensors(model, lambda t: t.update({"model.extra.weight": np.zeros(3, np.float32)}))
  assert_has(
    attempt(f"c.model.path = {str(model)!r}", *BASE), str(model), "1 unknown", "model.extra.weight"
  )


def test_a_model_that_is_not_supported_or_not_there(attempt, model, tmp_path):
  from tests import families

  families.edit_config(model, model_type="mamba")
  assert_has(
    attempt(f"c.model.path = {str(model)!r}", *BASE), str(model / "config.json"), "'mamba'", "qwen3"
  )
  (model / "config.json").unlink()
  assert_has(
    attempt(f"c.model.path = {str(model)!r}", *BASE), str(model / "config.json"), "not found"
  )
  assert_has(attempt("c.model.path = './nowhere'", *BASE), "'./nowhere'", "no such folder")


def _quantised(folder):
  from tests import families

  families.edit_config(folder, quantization_config={"quant_method": "fp8"})


def _misshapen(folder):
  def change(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]

  edit_tensors(folder, change)


def _truncated(folder):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-100])


def _without_a_shard(folder):
  from tests import families

  families.make_model(folder, "qwen3", max_shard_size="40KB")
  (folder / "model.safetensors").unlink()
  sorted(folder.glob("model-0000*.safetensors"))[1].unlink()


def _pickled(folder):
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
  "damage, parts",
  [
    (_quantised, ["config.json", "quantization_config (fp8)", "unquantised"]),
    (_misshapen, ["1 of the wrong shape", "model.norm.weight is [31]", "[32]"]),
    (_truncated, ["model.safetensors", "truncated", "Fetch the file again"]),
    (_without_a_shard, ["1 of 5 shards", "model-00002-of-", "Fetch them"]),
    (_pickled, ["pytorch_model.bin", "save_pretrained"]),
  ],
)
def test_a_damaged_model(attempt, model, damage, parts):
  damage(model)
  assert_has(attempt(f"c.model.path = {str(model)!r}", *BASE), str(model), *parts)


def test_a_vocabulary_smaller_than_the_tokenizer(attempt, model):
  tokenizer = commands.ROOT / "mlit_jax" / "assets" / "tokenizer12"
  message = attempt(
    f"c.model.path = {str(model)!r}", *BASE[:1], f"c.tokenizer.path = {str(tokenizer)!r}", *BASE[2:]
  )
  assert_has(message, "320", "tokenizer.path")


# ------------------------------------------------------------------------------------ workdirs


def test_a_workdir_in_use(attempt, tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  with open(folder / ".lock", "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write("4711")
    file.flush()
    assert_has(attempt(workdir=folder), str(folder), "in use", "4711", "another --workdir")
    assert (folder / ".lock").read_text() == "4711"


def test_a_workdir_of_something_else(attempt, tmp_path):
  folder = tmp_path / "thesis"
  folder.mkdir()
  (folder / "README.md").write_text("mine")
  assert_has(attempt(workdir=folder), str(folder), "README.md", "another --workdir")
  assert [p.name for p in folder.iterdir()] == ["README.md"]


def test_a_workdir_that_was_not_there_is_not_left(attempt, tmp_path):
  attempt("c.tokenizer.path = 'nowhere'")
  assert not (tmp_path / "run").exists()


def test_a_chat_template_that_is_none(attempt):
  message = attempt("c.tokenizer.chat_template = 'chatml'")
  assert_has(message, "tokenizer.chat_template is 'chatml'", "neither a file", "leave it ''")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
  """The workdir of a run that has trained and was stopped, as its files say; nothing was computed for it."""
  folder = tmp_path_factory.mktemp("begun")
  return commands.begun(commands.write_config(folder, "c.batch.rows = 8"), folder / "run")


def test_a_workdir_of_a_different_config(attempt, begun):
  message = attempt("c.batch.rows = 8", "c.optimizer.learning_rate = 1e-4", workdir=begun)
  assert_has(
    message, str(begun), "optimizer.learning_rate: 0.002 then, 0.0001 now", "another --workdir"
  )


def test_a_run_may_go_on_on_another_mesh(begun, tmp_path):
  """And under another name and with other logs: none of these changes what is trained."""
  lines = (
    "c.batch.rows = 8",
    "c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 2, 2, 2",
    "c.log.every_steps = 9",
  )
  config = load_config(str(commands.write_config(tmp_path, *lines)))
  workdirs.check_free(begun, config)
  config.seed = 1
  with pytest.raises(UserError, match="seed: 0 then, 1 now"):
    workdirs.check_free(begun, config)


def test_a_workdir_whose_data_have_changed(attempt, begun, tmp_path, monkeypatch):
  """The same config, but the files it names have other rows than when the run began."""
  folder = tmp_path / "begun"
  shutil.copytree(begun, folder)
  shutil.rmtree(folder / "cache")
  monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)  # as if they had
  assert_has(
    attempt("c.batch.rows = 8", workdir=folder), str(folder), "changed", "another --workdir"
  )


def test_a_workdir_that_was_killed_while_it_wrote_its_first_file_can_be_used(tmp_path, monkeypatch):
  folder = tmp_path / "run"
  folder.mkdir()
  (folder / ".config.json.x7r2").write_text('{"conf')
  workdirs.check_free(folder, None)


def test_a_workdir_that_cannot_be_made(attempt, tmp_path):
  (tmp_path / "file").write_text("")
  assert_has(
    attempt(workdir=tmp_path / "file" / "run"), str(tmp_path / "file" / "run"), "another --workdir"
  )


def test_debug_gives_the_traceback(tmp_path):
  config = commands.write_config(tmp_path, "c.steps = 3")
  code, _, err = commands.here(train, "--config", config, "--workdir", tmp_path / "run", "--debug")
  assert (
    code == 2 and "Traceback" in err and err.endswith("set exactly one of them to more than 0\n")
  )


@pytest.mark.parametrize(
  "line, parts",
  [
    ("c.steps = -5", ("steps is -5", "at least 0")),
    ("c.optimizer.learning_rate = -1e-3", ("optimizer.learning_rate", "at least 0")),
    ("c.optimizer.gradient_clip_norm = -1.0", ("optimizer.gradient_clip_norm", "at least 0")),
    ("c.optimizer.b2 = 1.0", ("optimizer.b2", "below 1")),
    ("c.eval.top_p = 0.0", ("eval.top_p", "above 0")),
    ("c.eval.generate_rows = -1", ("eval.generate_rows", "at least 0")),
    ("c.checkpoint.keep_latest = 0", ("checkpoint.keep_latest", "at least 1")),
    ("c.data.mixture = ['en']", ("data.mixture", "a mapping")),
    ("c.data.mixture = {'pinch': {'percent': 1, 'base': None, 'total': 9}}", ("pinch.base", "None")),
    ("c.data.train['sw'] = 3", ("data.train['sw']", "3", "file")),
    ("c.eval.sets = {'a/b': rows('eval')}", ("eval.sets", "'a/b'")),
    ("c.model.sizes['num_heads'] = 0", ("model.sizes", "num_heads = 0")),
    ("c.model.sizes['qk_norm'] = True", ("model.sizes", "qk_norm")),  # no export could say it
    ("c.model.sizes['head_dim'] = 7", ("head_dim 7", "even")),
    ("c.data.cache_dir = __file__", ("token cache", "data.cache_dir")),
    ("c.tokenizer.template_kwargs['now'] = Path('x')", ("JSON", "str(path)")),
    ("c.batch.max_length = 40", ("'heldout'", "over_long", "max_length (40)")),
  ],
)  # fmt: skip
def test_more_values_that_cannot_be(attempt, line, parts):
  assert_has(attempt("c.batch.rows = 8", "c.data.mixture = {'counts': {'en': 2}}",
              "c.optimizer.warmup_steps = 0", line), *parts)  # fmt: skip


def test_a_language_whose_file_is_empty(attempt, tmp_path):
  """With '*' it would be passed over in training, and missing from every figure of an evaluation."""
  (tmp_path / "fi.jsonl").write_text("")
  fi = f"['fi'] = [{str(tmp_path / 'fi.jsonl')!r}]"
  assert_has(
    attempt("c.batch.rows = 8", f"c.data.train{fi}"), "data.train", "no usable row: fi: no rows"
  )
  assert_has(
    attempt("c.batch.rows = 8", f"c.eval.sets['heldout']{fi}"), "'heldout'", "fi", "no usable row"
  )


def test_all_rows_of_a_language_left_out_for_a_reason(attempt, tmp_path):
  (tmp_path / "fi.jsonl").write_text(
    "".join(json.dumps(row(lang="fi", prompt=LONG + x)) + "\n" for x in "ab")
  )
  message = attempt("c.batch.rows = 8", f"c.data.train['fi'] = [{str(tmp_path / 'fi.jsonl')!r}]")
  assert_has(message, "fi: 2 over_long", "Raise batch.max_length")


def test_all_rows_of_a_language_too_long_where_the_mixture_takes_every_language(attempt, rows_file):
  _, line = rows_file(row(), row(lang="fi", prompt=LONG))
  message = attempt(line, "c.data.mixture = {'counts': {'sw': 1, '*': 1}}")
  assert_has(message, "1 examples of 'fi'", "batch.max_length")


def test_the_folder_of_a_model_as_workdir(attempt, tmp_path):
  folder = tmp_path / "hf"
  folder.mkdir()
  (folder / "config.json").write_text('{"model_type": "llama"}')
  assert_has(attempt(workdir=folder), str(folder), "config.json", "--workdir")


def test_rows_longer_than_the_positions_of_the_model():
  with pytest.raises(UserError, match=r"300 tokens.*256.*batch\.max_length"):
    checks.check_positions(300, {"max_position_embeddings": 256})
  checks.check_positions(256, {"max_position_embeddings": 256})
  checks.check_positions(300, {})


def test_processes_that_differ(monkeypatch):
  monkeypatch.setattr(runtime.jax, "process_count", lambda: 2)
  gathered = {"same": lambda x: np.stack([x, x]), "other": lambda x: np.stack([x, x + 1])}
  monkeypatch.setattr(runtime.multihost_utils, "process_allgather", gathered["same"])
  runtime.check_same("config", "a")
  monkeypatch.setattr(runtime.multihost_utils, "process_allgather", gathered["other"])
  with pytest.raises(UserError, match=r"process 0 and processes \[1\] differ in config"):
    runtime.check_same("config", "a")


@pytest.mark.parametrize(
  "failed, said",
  [(UserError("no rows: Ünü"), "no rows: Ünü"), (ValueError("odd"), "ValueError: odd"),
   (UserError("é" * 2000), "é" * (runtime.MESSAGE_BYTES // 2))],
)  # fmt: skip
def test_a_process_that_cannot_go_on_is_heard_by_the_others(monkeypatch, failed, said):
  """What the one raises as it is, the others end with as well."""
  sent = []

  def gather(mine):  # of this process and of another where nothing is wrong
    sent.append(mine)
    return np.stack([np.zeros_like(mine), mine])

  monkeypatch.setattr(runtime.jax, "process_count", lambda: 2)
  monkeypatch.setattr(runtime, "get_barrier_sync_fn", lambda: lambda **_: None)
  monkeypatch.setattr(runtime.multihost_utils, "process_allgather", gather)
  with pytest.raises(type(failed)) as raised, runtime.together():
    raise failed
  assert raised.value is failed
  other = lambda mine: np.stack([mine, sent[0]])  # noqa: E731
  monkeypatch.setattr(runtime.multihost_utils, "process_allgather", other)
  with pytest.raises(UserError) as heard, runtime.together():
    pass
  assert str(heard.value) == f"process 1 cannot go on: {said}"
  monkeypatch.setattr(runtime.multihost_utils, "process_allgather", lambda x: np.stack([x, x]))
  with runtime.together():
    pass


def test_a_detector_that_is_not_there(attempt):
  assert_has(attempt("c.eval.lid = 'nowhere.bin'", "c.batch.rows = 8"), "eval.lid", "nowhere.bin")
  assert_has(
    attempt("c.eval.lid = 'lid.176'", "c.batch.rows = 8"), "eval.lid is 'lid.176'", "lingua"
  )
