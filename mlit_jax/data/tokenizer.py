"""Text <-> token ids, from a tokenizer.json or a SentencePiece model, as its folder says."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence

import numpy as np

from mlit_jax.data import chat, templates
from mlit_jax.data.engines import HuggingFace, SentencePiece, to_tokenizer_json
from mlit_jax.data.files import shorten
from mlit_jax.errors import UserError

FORMAT = "1"  # raise it when this module gives other ids or offsets for the same files
TOKENIZER_FILES = (
  "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
  "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "chat_template.jinja",
)  # fmt: skip
# What a vocabulary without a tokenizer_config.json calls its special tokens, likeliest first.
USUAL = {
  "bos_token": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]"),
  "eos_token": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[EOS]", "<|im_end|>"),
  "pad_token": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
  "unk_token": ("<unk>", "[UNK]"),
}
PLAIN_MARKERS = ("<|{role}|>\n", "[{role}]\n", "{role}:\n")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """No token is added that the text does not spell; special tokens in the text are found."""

  engine: HuggingFace | SentencePiece
  special_tokens: dict[str, str]  # bos_token, eos_token, ... as the template sees them
  template: chat.Template
  stop_ids: tuple[int, ...]  # ids that end an answer: the template's first
  parts: dict[str, str]  # hashes of what shapes ids, by what it is
  _read: dict[str, bytes] = dataclasses.field(repr=False)  # the files it came from

  @classmethod
  def load(
    cls,
    path: str,
    *,
    template: str | None = None,
    template_kwargs: dict | None = None,
    date: str = chat.DEFAULT_DATE,
  ) -> "Tokenizer":
    """The tokenizer of a Hugging Face folder, a tokenizer.json or a SentencePiece model.

    `template` (a file, or Jinja text) replaces the folder's own.
    """
    try:
      return cls._load(path, template, template_kwargs, date)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
      raise UserError(
        f"{path}: the tokenizer's files hold a value that cannot be ({type(error).__name__}: {shorten(str(error), 200)}). "
        "Fetch them again."
      ) from error

  @classmethod
  def _load(cls, path, template, template_kwargs, date) -> "Tokenizer":
    files = _read_files(os.path.expanduser(os.fspath(path)))
    config = _json(files, "tokenizer_config.json")
    _refuse_code(config, path)
    engine = _make_engine(files, config, path)
    special_tokens = _special_tokens(files, config, engine, path)
    engine.mark([*special_tokens.values(), *_extra_tokens(files, config)])
    source = _template_source(template, files, config, path)
    if source is None:
      source = _builtin(engine, special_tokens, config)
    kwargs = dict(template_kwargs or {})
    chat_template = chat.Template(source, special_tokens, kwargs, date, engine.whole)
    engine.mark([chat_template.end_of_turn])
    stop_ids = _stop_ids(engine, special_tokens, chat_template, files)
    parts = {
      "the tokenizer": _digest([FORMAT, engine.digest, sorted(engine.added.items())]),
      "the chat template": _digest([special_tokens, source, kwargs, date]),
    }
    return cls(engine, special_tokens, chat_template, stop_ids, parts, files)

  @functools.cached_property
  def files(self) -> dict[str, bytes]:
    """Name -> content of what transformers needs to give the same ids and renders."""
    source = templates.bake(self.template.source, self.template.kwargs)
    return _export(self._read, self.engine, self.special_tokens, source)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hash of everything that shapes ids."""
    return _digest(self.parts)

  @property
  def vocab_size(self) -> int:
    """One more than the largest id. The model's embedding may be larger (padded), never smaller."""
    return self.engine.vocab_size

  @property
  def bos_id(self) -> int | None:
    return self._id("bos_token")

  @property
  def eos_id(self) -> int | None:
    return self._id("eos_token")

  @property
  def pad_id(self) -> int:
    """The id that fills a row. It may be the eos: what is trained goes by position, never by id."""
    return next((i for i in (self._id("pad_token"), self.eos_id) if i is not None), 0)

  @property
  def unk_id(self) -> int | None:
    return self._id("unk_token")

  @functools.cached_property
  def special_ids(self) -> frozenset[int]:
    """The ids that are matched whole in a text: markers of turns, not words."""
    return frozenset(self.engine.added.values())

  @functools.cached_property
  def partial_ids(self) -> np.ndarray:
    """int64, the ids that spell only a part of a character."""
    return np.array(self.engine.partial_ids(), np.int64)

  def encode_text(self, text: str) -> list[int]:
    return self.engine.encode(text)

  def encode_with_offsets(
    self, texts: Sequence[str]
  ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(ids, starts, ends) of each text, int32; the offsets count its characters.

    Tokens that are parts of one character each have the span of that character:

        "é!" as bytes C3, A9, 21    starts 0 0 1    ends 1 1 2
    """
    return self.engine.encode_with_offsets(list(texts))

  def encode_marked(
    self, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids uint32, mask bool) of each text: the tokens that overlap one of its spans, in characters."""
    return self.engine.encode_marked(list(texts), spans)

  def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
    return self.engine.decode([int(i) for i in ids], skip_special)

  def _id(self, name: str) -> int | None:
    return self.engine.token_id(self.special_tokens.get(name))


def _digest(value) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


# --- the folder


def _read_files(path: str) -> dict[str, bytes]:
  """Name -> content of a folder's tokenizer files, or of one file under the name it should have."""
  if os.path.isdir(path):
    names = [*TOKENIZER_FILES, "generation_config.json"]
    extra = os.path.join(path, "additional_chat_templates")
    if os.path.isdir(extra):
      names += [
        f"additional_chat_templates/{name}"
        for name in sorted(os.listdir(extra))
        if name.endswith(".jinja")
      ]
    files = {
      name: _read(os.path.join(path, name))
      for name in names
      if os.path.isfile(os.path.join(path, name))
    }
    if not files.keys() & {"tokenizer.json", "tokenizer.model", "spiece.model"}:
      raise UserError(
        f"{path}: the folder holds neither tokenizer.json nor tokenizer.model (it holds "
        f"{', '.join(sorted(os.listdir(path))[:8]) or 'nothing'}). Name the model's folder, or a "
        f"tokenizer file."
      )
    return files
  if not os.path.isfile(path):
    raise UserError(f"{path}: no such tokenizer file or folder. Correct tokenizer.path.")
  data = _read(path)
  return {"tokenizer.json" if data.lstrip()[:1] == b"{" else "tokenizer.model": data}


def _read(path: str) -> bytes:
  try:
    with open(path, "rb") as file:
      return file.read()
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror}).") from None


def _json(files: dict[str, bytes], name: str) -> dict:
  try:
    value = json.loads(files.get(name, b"{}").decode("utf-8"))
  except (ValueError, RecursionError) as error:
    raise UserError(f"{name}: broken JSON ({error}). Fetch the file again.") from None
  if not isinstance(value, dict):
    raise UserError(f"{name} holds a {type(value).__name__}, not an object. Fetch the file again.")
  return value


def _refuse_code(config: dict, path) -> None:
  """Code that comes with a model is never run; what its tokenizer would do beyond its files is unknown."""
  named = config.get("auto_map")
  if isinstance(named, dict) and "AutoTokenizer" in named:
    raise UserError(
      f"{path}: tokenizer_config.json names a tokenizer with code of its own ({shorten(named['AutoTokenizer'])}), which is "
      "never run here. If tokenizer.json alone gives the same ids, remove auto_map from tokenizer_config.json."
    )


def _make_engine(files, config, path):
  added = {int(i): token for i, token in config.get("added_tokens_decoder", {}).items()}
  for token, i in _json(files, "added_tokens.json").items():
    added.setdefault(i, {"content": token, "special": False})
  if "tokenizer.json" in files:
    engine = HuggingFace(files["tokenizer.json"], f"{path}: tokenizer.json")
    engine.add(list(added.items()), str(path))
    return engine
  name = "tokenizer.model" if "tokenizer.model" in files else "spiece.model"
  tokens = {token["content"]: i for i, token in added.items()}
  return SentencePiece(
    files[name], tokens, f"{path}: {name}", prefix_everywhere=config.get("legacy") is not False
  )


def _special_tokens(files, config, engine, path) -> dict[str, str]:
  """The named special tokens: of tokenizer_config.json, else of special_tokens_map.json."""
  tokens = {}
  if isinstance(engine, SentencePiece):
    tokens = engine.named()
  elif not config and "special_tokens_map.json" not in files:
    tokens = {
      key: next((t for t in usual if engine.token_id(t) is not None), None)
      for key, usual in USUAL.items()
    }
    tokens = {key: token for key, token in tokens.items() if token}
  for source in (_json(files, "special_tokens_map.json"), config):
    extra = source.get("extra_special_tokens")
    for key, value in [*source.items(), *(extra.items() if isinstance(extra, dict) else ())]:
      if not key.endswith("_token"):
        continue
      value = _content(value)
      if isinstance(value, str):
        tokens[key] = value
      elif value is None and source is config:
        tokens.pop(key, None)
  for key in ("bos_token", "eos_token"):
    if key in tokens and engine.token_id(tokens[key]) is None:
      raise UserError(
        f"{path}: {key} is {tokens[key]!r}, which the vocabulary lacks. Correct it in "
        f"tokenizer_config.json."
      )
  return tokens


def _extra_tokens(files, config) -> list[str]:
  """Special tokens without a name of their own."""
  extra = []
  for source in (_json(files, "special_tokens_map.json"), config):
    for key in ("additional_special_tokens", "extra_special_tokens"):
      if isinstance(source.get(key), list):
        extra += [_content(token) for token in source[key]]
  return extra


def _content(token):
  return token.get("content") if isinstance(token, dict) else token


def _template_source(template, files, config, path) -> str | None:
  """The given template, else chat_template.jinja, else the one of tokenizer_config.json."""
  if template is not None:
    if os.path.isfile(os.path.expanduser(template)):
      return _decode(_read(os.path.expanduser(template)), template)
    if "{" not in template:
      raise UserError(
        f"tokenizer.chat_template is {template!r}, which is neither a file nor Jinja text; name a file with a template, "
        "or leave it '' for the tokenizer's own, or one that fits"
      )
    return template
  if "chat_template.jinja" in files:
    return _decode(files["chat_template.jinja"], "chat_template.jinja")
  source = config.get("chat_template")
  if isinstance(source, list):
    named = {entry["name"]: entry["template"] for entry in source}
    if "default" not in named:
      raise UserError(
        f"{path}: tokenizer_config.json has chat templates named {sorted(named)} and none named "
        f"'default'. "
        "Give the one you want in tokenizer.chat_template."
      )
    source = named["default"]
  return source


def _decode(data: bytes, name: str) -> str:
  try:
    return data.decode("utf-8")
  except UnicodeDecodeError as error:
    raise UserError(f"{name}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None


def _builtin(engine, special_tokens, config) -> str:
  bos = engine.token_id(special_tokens.get("bos_token"))
  add_bos = bos is not None and bos in engine.framing and config.get("add_bos_token") is not False
  unk = engine.token_id(special_tokens.get("unk_token"))
  spelt = "system user assistant"
  plain = next(
    (m for m in PLAIN_MARKERS if unk is None or unk not in engine.encode(m.format(role=spelt))),
    PLAIN_MARKERS[-1],
  )
  known = {token for token in (*engine.added, *_MARKERS) if engine.token_id(token) is not None}
  return templates.builtin_template(
    known, eos=special_tokens.get("eos_token"), add_bos=add_bos, plain=plain
  )


_MARKERS = (
  "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
  "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]",
)  # fmt: skip


def _stop_ids(engine, special_tokens, template, files) -> tuple[int, ...]:
  """The template's end token, the eos and those of generation_config.json, each once."""
  ids = [engine.token_id(template.end_of_turn), engine.token_id(special_tokens.get("eos_token"))]
  eos = _json(files, "generation_config.json").get("eos_token_id")
  ids += eos if isinstance(eos, list) else [eos]
  return tuple(dict.fromkeys(i for i in ids if i is not None))


# --- the export


def _export(files, engine, special_tokens, source: str) -> dict[str, bytes]:
  """The files for a Hugging Face folder; those that nothing changed go through as bytes."""
  out = {name: data for name, data in files.items() if name != "generation_config.json"}
  before = _json(files, "tokenizer_config.json")
  config = dict(before)
  if isinstance(engine, SentencePiece):
    out["tokenizer.json"] = to_tokenizer_json(engine, special_tokens)
    for key in ("legacy", "added_tokens_decoder", "sp_model_kwargs", "use_default_system_prompt"):
      config.pop(key, None)
  if isinstance(engine, SentencePiece) or not before:
    # The generic class reads tokenizer.json as it stands; others rebuild parts of it.
    config = {"clean_up_tokenization_spaces": False} | config | special_tokens
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
  inline = config.get("chat_template")  # old readers look only here, new ones first at the file
  if isinstance(inline, str):
    config["chat_template"] = source
  elif isinstance(inline, list):
    config["chat_template"] = [
      e | {"template": source} if e["name"] == "default" else e for e in inline
    ]
    if not any(entry["name"] == "default" for entry in inline):
      config["chat_template"].append({"name": "default", "template": source})
  if "chat_template.jinja" in files or not inline:
    out["chat_template.jinja"] = source.encode("utf-8")
  if config != before:
    out["tokenizer_config.json"] = (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode(
      "utf-8"
    )
  return out
