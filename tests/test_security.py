"""What must not happen whatever is read: code run, files left or followed, secrets written, scripts let into pages."""

import ast
import json
import os
import re
import shutil
import socket
import stat
import struct
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import pytest

import mlit_jax
from mlit_jax import export, report, train
from mlit_jax.data import prepared
from mlit_jax.data.sources import open_sources
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.errors import UserError
from mlit_jax.evals.judging.judges import parse_spec
from mlit_jax.evals.suites.opening import open_suite
from mlit_jax.evals.suites.suite import Item as SuiteItem
from mlit_jax.evals.suites.suite import Suite, ask, check
from mlit_jax.redaction import redact, redact_all
from mlit_jax.reporting.report_page import report_html
from mlit_jax.reporting.runs import cells, last_cells, read_runs
from mlit_jax.training.trackers import open_trackers
from mlit_jax.weights import hf_files, source
from tests import commands

ROOT = Path(mlit_jax.__file__).parent
TINY = ROOT / "assets" / "tiny12"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


# ------------------------------------------------------------------------------------ code


def test_nothing_in_the_package_can_run_what_it_reads():
  """Pickles pass between a run and its own workers alone; no loader that runs code is called anywhere."""
  found = []
  for path in (*ROOT.rglob("*.py"), *(ROOT.parent / "configs").rglob("*.py")):
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT.parent).as_posix()
    found += [f"{name}: {word}" for word in ("trust_remote_code", "allow_pickle") if word in text]
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
        found += [f"{name}: imports {n}" for n in names if n in ("pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle")]  # fmt: skip
      elif isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if called in ("eval", "exec", "compile", "__import__", "torch.load", "np.load", "numpy.load", "yaml.load", "os.system") or called.endswith((".extractall", ".extract")):  # fmt: skip
          found.append(f"{name}: {called}()")
        found += [f"{name}: shell=" for k in node.keywords if k.arg == "shell"]
  assert found == ["mlit_jax/data/worker.py: imports pickle"]


def model(folder, **config) -> Path:
  """A folder with a small model's config and some tensor."""
  folder.mkdir()
  for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
    shutil.copy(TINY / name, folder)
  found = json.loads((TINY / "config.json").read_text()) | config
  (folder / "config.json").write_text(json.dumps(found))
  (folder / "model.safetensors").write_bytes(shard(a=2))
  return folder


def shard(**sizes: int) -> bytes:
  header, at = {}, 0
  for name, size in sizes.items():
    header[name] = {"dtype": "F32", "shape": [size], "data_offsets": [at, at + 4 * size]}
    at += 4 * size
  raw = json.dumps(header).encode()
  return struct.pack("<Q", len(raw)) + raw + bytes(at)


def test_code_of_a_model_is_carried_and_never_run(tmp_path):
  folder = model(tmp_path / "m", auto_map={"AutoModelForCausalLM": "evil.Model"})
  ran = tmp_path / "ran"
  (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
  assert b"open(" in source.read_source(folder).files["evil.py"]
  Tokenizer.load(folder)
  config = json.loads((folder / "tokenizer_config.json").read_text())
  (folder / "tokenizer_config.json").write_text(json.dumps(config | {"auto_map": {"AutoTokenizer": ["evil.T", None]}}))  # fmt: skip
  with pytest.raises(UserError, match=r"code of its own.*evil\.T.*remove auto_map"):
    Tokenizer.load(folder)
  assert not ran.exists()


def test_pickled_weights_are_refused(tmp_path):
  folder = model(tmp_path / "m")
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
  with pytest.raises(UserError, match=r"pytorch_model\.bin.*can run code.*save_pretrained"):
    source.read_source(folder)


# ------------------------------------------------------------------------------------ names


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "..", ".", "", "a/b.safetensors", "x\0.safetensors", "a\\b.safetensors", "x" * 300 + ".safetensors", "model.bin", 3])  # fmt: skip
def test_an_index_names_only_files_of_its_folder(tmp_path, name):
  (tmp_path / "x.safetensors").write_bytes(shard(a=2))
  folder = tmp_path / "m"
  folder.mkdir()
  index = {"weight_map": {"a": name}}
  (folder / hf_files.INDEX_FILE).write_text(json.dumps(index))
  with pytest.raises(UserError, match="is not the plain name of a file here"):
    hf_files.read_layout(folder)


def test_a_link_out_of_a_models_folder_is_not_carried(tmp_path):
  """Else LICENSE -> ~/.ssh/id_rsa of a cloned repository would stand in every export."""
  secret = tmp_path / "id_rsa"
  secret.write_text("PRIVATE")
  folder = model(tmp_path / "m")
  (folder / "LICENSE").symlink_to(secret)
  with pytest.raises(UserError, match=r"LICENSE: is a link to .*id_rsa.*Put the file itself"):
    source.read_source(folder)
  (folder / "LICENSE").unlink()
  (folder / "LICENSE").symlink_to("config.json")  # within the folder
  source.read_source(folder)


def test_the_links_of_the_hubs_cache_are_followed(tmp_path):
  snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
  snapshot.parent.mkdir(parents=True)
  model(snapshot)
  blobs = tmp_path / "models--a--b" / "blobs"
  blobs.mkdir()
  (snapshot / "config.json").rename(blobs / "c")
  (snapshot / "config.json").symlink_to("../../blobs/c")
  assert "config.json" in source.read_source(snapshot).files


@pytest.mark.parametrize("prompts", ["../p.jsonl", "/etc/passwd", "a/../../p.jsonl", "x\0", "link"])
def test_a_suite_reads_prompts_beside_it_alone(tmp_path, prompts):
  (tmp_path / "p.jsonl").write_text('{"lang": "fi", "prompt": "q"}\n')
  folder = tmp_path / "suite"
  folder.mkdir()
  (folder / "link").symlink_to(tmp_path / "p.jsonl")
  (folder / "s.suite.json").write_text(json.dumps({"prompts": prompts}))
  with pytest.raises(UserError, match="the suite .*prompts"):
    open_suite(str(folder / "s.suite.json"))
  (folder / "in").mkdir()
  shutil.copy(tmp_path / "p.jsonl", folder / "in")
  (folder / "s.suite.json").write_text('{"prompts": "in/p.jsonl"}')
  assert len(open_suite(str(folder / "s.suite.json")).items) == 1


@pytest.mark.parametrize(
  "name", ["../evil", "/tmp/evil", "", "a/b", ".hidden", "a\0b", "x" * 200, 7]
)
def test_a_suites_name_makes_a_file_of_the_run(name):
  item = SuiteItem("1", "fi", ask("q"))
  with pytest.raises(UserError, match="a suite is named .*a name makes a file"):
    check(Suite(name, [item]))
  check(Suite("fine-1.2_x", [item]))


def test_a_saved_data_set_names_files_of_its_folder_alone(tmp_path):
  folder = tmp_path / "d"
  folder.mkdir()
  (folder / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
  with pytest.raises(UserError, match=r"'\.\./x\.arrow' is not the plain name"):
    prepared.saved_files(str(folder), None, "here")
  (folder / "dataset_dict.json").write_text('{"splits": ["../other"]}')
  with pytest.raises(UserError, match="splits that are no folders in it"):
    prepared.saved_files(str(folder), None, "here")
  (folder / "dataset_dict.json").write_text('{"splits": 3}')
  with pytest.raises(UserError, match="splits that are no folders"):
    open_sources([str(folder)])


# ------------------------------------------------------------------------------------ downloads


def test_without_a_network_nothing_is_asked_of_the_hub(tmp_path):
  """HF_HUB_OFFLINE holds for models, and a local folder opens no connection with or without it."""
  code = (
    "import socket, sys\n"
    "def refuse(*a): raise AssertionError('a connection')\n"
    "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
    "from mlit_jax.errors import UserError\n"
    "from mlit_jax.weights import source\n"
    f"source.model_folder({str(tmp_path)!r})\n"
    "try: source.model_folder('owner/name')\n"
    "except UserError as e: print(e)\n"
  )
  env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
  done = subprocess.run(
    [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT.parent
  )
  assert done.returncode == 0, done.stderr
  assert "the hub cannot be reached" in done.stdout


# ------------------------------------------------------------------------------------ secrets

SECRET = "hunter2-Zq9vX"
PLANTED = {
  f"https://user:{SECRET}@host/x": "https://***@host/x",
  f"http://{SECRET}@host:80/v1#m": "http://***@host:80/v1#m",
  f"https://h/x?a=1&token={SECRET}&b=2": "https://h/x?a=1&token=***&b=2",
  f"https://h/x?X-Amz-Signature={SECRET}": "https://h/x?X-Amz-Signature=***",
  f"https://h/x?api_key={SECRET}.": "https://h/x?api_key=***",
  f"Authorization: Bearer {SECRET}": "Authorization: Bearer ***",
  "Authorization: Basic dXNlcjpwYXNzd29yZA==": "Authorization: Basic ***",
  "hf_" + "a1B2" * 9: "hf_***",
  "sk-" + "a1B2" * 12: "sk-***",
  "sk-proj-" + "a1-B2_" * 5: "sk-proj-***",
  "ghp_" + "a1B2" * 9: "ghp_***",
}


@pytest.mark.parametrize("text", PLANTED)
def test_what_looks_like_a_secret_is_taken_out(text):
  assert redact(f"see {text}") == f"see {PLANTED[text]}"
  assert str(UserError(f"at {text}")) == f"at {PLANTED[text]}"
  assert redact_all({"a": [text, {text: 1}], "n": 3}) == {"a": [PLANTED[text], {PLANTED[text]: 1}], "n": 3}  # fmt: skip


@pytest.mark.parametrize("text", ["data/sk-instructions-translated-v2-long-name.jsonl", "hf_multilingual_instructions_of_everything", "hf:org/name@main", "https://host/a?lang=fi&split=train", "a@b.c", "owner/name@0123456789abcdef", "bearer of news", "{'tokens': 3}", "tokenizer.path=x"])  # fmt: skip
def test_what_is_no_secret_stays(text):
  assert redact(text) == text


def test_secrets_of_the_environment_are_taken_out_wherever_they_stand(monkeypatch):
  for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "MY_JUDGE_KEY", "DB_PASSWORD"):
    monkeypatch.setenv(name, SECRET)
    assert redact(f"server said: <{SECRET}>") == "server said: <***>"
    monkeypatch.delenv(name)
  monkeypatch.setenv("MONKEY", SECRET)
  assert SECRET in redact(SECRET)
  monkeypatch.setenv("A_KEY", "short")
  assert redact("a short text") == "a short text"


def test_a_judges_address_holds_no_password():
  for spec in (f"https://u:{SECRET}@host/v1#m", f"https://u:{SECRET}@host/v1", f"https://host/v1?key={SECRET}#m"):  # fmt: skip
    with pytest.raises(UserError) as caught:
      parse_spec(spec)
    assert SECRET not in str(caught.value)


def test_the_traceback_of_a_fault_has_no_secret(monkeypatch, tmp_path):
  from mlit_jax import runtime

  def fail():
    raise RuntimeError(f"GET https://u:{SECRET}@host failed")

  err = types.SimpleNamespace(text="")
  with mock.patch.object(sys, "stderr", types.SimpleNamespace(write=lambda t: setattr(err, "text", err.text + t), flush=lambda: None)):  # fmt: skip
    assert runtime.run_main(fail) == 1
  assert "RuntimeError" in err.text and SECRET not in err.text


# ------------------------------------------------------------------------------------ pages

EVIL = "</script><script>document.title='owned'</script><!--<img src=x onerror=document.title='owned'>\"'><svg onload=alert(1)>\u2028&lt;"


class Tags(HTMLParser):
  """Every tag and attribute of a page."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.policy = [], [], ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [name for name, _ in attrs]
    if dict(attrs).get("http-equiv") == "Content-Security-Policy":
      self.policy = dict(attrs)["content"]


@pytest.fixture
def evil_workdir(tmp_path):
  """A run whose every text is an attack."""
  root = tmp_path / "run"
  (root / "evals" / "0").mkdir(parents=True)
  figure = {"value": 0.5, "n": 4, "low": 0.1, "high": 0.9}
  figures = {lang: {"loss": figure, EVIL: figure} for lang in ("fi", EVIL)}
  answer = {"id": EVIL, "lang": "fi", "prompt": EVIL, "response": EVIL, "set": EVIL, "model": EVIL, "fidelity": {"right": False, "why": EVIL}}  # fmt: skip
  entry = {"rows_read": 1, "examples": 1, "tokens": 1, "trained_tokens": 1, "repeats": 0, "truncated": 0, "share_of_trained_tokens": 1.0, "per_epoch": 1, "bytes_per_token": 1.0, "dropped": {EVIL: 1}, "flagged": {EVIL: 2}}  # fmt: skip
  ledger = {"hash": EVIL, "mixture": EVIL, "steps": 1, "languages": {EVIL: entry, "fi": entry}}
  for name, value in {"config.json": {"config": {"model": {"path": EVIL}, "x": f"https://u:{SECRET}@h"}, "versions": {EVIL: EVIL}}, "data_plan.json": ledger, "evals/0/heldout.json": figures}.items():  # fmt: skip
    (root / name).write_text(json.dumps(value))
  (root / "evals/0/generations.jsonl").write_text(json.dumps(answer) + "\n")
  (root / "metrics.jsonl").write_text(json.dumps({"step": 0, "time": 1.0}) + "\n")
  return root


def test_no_text_of_data_or_model_becomes_markup(evil_workdir, tmp_path):
  runs = read_runs([str(evil_workdir)])
  text = report_html(runs, list(cells(runs)), last_cells(runs))
  page = Tags(text)
  assert page.tags.count("script") == 1 and "img" not in page.tags
  assert not [name for name in page.attributes if name.startswith("on")]
  assert SECRET not in text
  policy = dict(part.strip().split(" ", 1) for part in page.policy.split(";"))
  assert policy["default-src"] == "'none'" and re.fullmatch(r"'sha256-[\w+/=]+'", policy["script-src"])  # fmt: skip
  assert "unsafe-inline" not in policy["script-src"] and policy["base-uri"] == "'none'"
  code, _, err = commands.here(report, evil_workdir, "--out", tmp_path / "out", "--no-plots")
  assert code == 0, err


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_an_injected_script_does_not_run_in_a_browser(evil_workdir, tmp_path):
  """Neither what escaping stops, nor, were a hole left in it, what the policy stops."""
  runs = read_runs([str(evil_workdir)])
  text = report_html(runs, list(cells(runs)), last_cells(runs))
  hole = text.replace("<h1>", "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><h1>", 1)  # fmt: skip
  for name, content, refused in (("whole", text, False), ("hole", hole, True)):
    path = tmp_path / f"{name}.html"
    path.write_text(content, encoding="utf-8")
    done = subprocess.run(
      [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000", "--dump-dom", f"file://{path}"],
      capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "<title>owned" not in done.stdout and "answer-controls" in done.stdout
    assert ("Content Security Policy" in done.stderr) == refused, done.stderr


# ------------------------------------------------------------------------------------ a whole run


def leaked(folder: Path, *secrets: str) -> list[str]:
  return [name for name, data in commands.contents(folder).items() if any(s.encode() in data for s in secrets)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_a_run_follows_the_umask_asks_no_network_and_keeps_secrets_to_itself(
  tmp_path, monkeypatch, umask
):
  planted = {"HF_TOKEN": "planted-hf-0001", "WANDB_API_KEY": "planted-wandb-0002", "OPENAI_API_KEY": "planted-openai-0003"}  # fmt: skip
  for name, value in planted.items():
    monkeypatch.setenv(name, value)
  configs = []
  fake = types.ModuleType("wandb")
  fake.__spec__ = types.SimpleNamespace(name="wandb")
  fake.init = lambda **options: configs.append(options["config"]) or types.SimpleNamespace(id="1")

  def log(*_, **__):
    raise RuntimeError(f"401 for https://user:{SECRET}@wandb with {planted['WANDB_API_KEY']}")

  fake.log, fake.finish = log, lambda: None
  monkeypatch.setitem(sys.modules, "wandb", fake)
  asked = []
  connect = socket.socket.connect

  def watched(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
      asked.append(address)
    return connect(self, address)

  monkeypatch.setattr(socket.socket, "connect", watched)
  url = f"https://user:{SECRET}@host/x?token={SECRET}"
  config = commands.write_config(tmp_path, "c.log.trackers = ['wandb']", "c.batch.rows = 8", "c.optimizer.warmup_steps = 0", f"c.tokenizer.template_kwargs = {{'source': {url!r}}}")  # fmt: skip
  run, out = tmp_path / "run", tmp_path / "out"
  before = os.umask(umask)
  try:
    said = ""
    for module, args in (
      (train, ("--config", config, "--workdir", run)),
      (export, ("--workdir", run, "--out", out / "model")),
      (report, (run, "--out", out / "report")),
    ):
      code, *shown = commands.here(module, *args)
      assert code == 0, shown
      said += "".join(shown)
  finally:
    os.umask(before)
  assert asked == []
  assert "wandb cannot be written to" in said
  assert len(configs) == 1
  secrets = (SECRET, *planted.values())
  assert not [s for s in secrets if s in said + str(configs)]
  assert leaked(run, *secrets) == [] and leaked(out, *secrets) == []
  modes = {p: stat.S_IMODE(p.stat().st_mode) for folder in (run, out) for p in folder.rglob("*")}
  wrong = {str(p): oct(m) for p, m in modes.items() if m & 0o777 != (0o777 if p.is_dir() else 0o666) & ~umask}  # fmt: skip
  assert wrong == {}
  # And the config that was kept is still that of the run: the same command has nothing left to do.
  code, _, err = commands.here(train, "--config", config, "--workdir", run)
  assert code == 0, err


def test_a_tracker_that_fails_tells_no_secret(monkeypatch, tmp_path):
  from mlit_jax.training.console import Terminal

  fake = types.ModuleType("wandb")
  fake.init = mock.Mock(side_effect=RuntimeError(f"Bearer {SECRET} is refused"))
  monkeypatch.setitem(sys.modules, "wandb", fake)
  terminal = Terminal()
  with terminal.console.capture() as shown:
    open_trackers(tmp_path, ["wandb"], first_step=0, config={}, say=terminal.warning)
  assert "is refused" in shown.get() and SECRET not in shown.get()
