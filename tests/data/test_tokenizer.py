import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from twelve import ANSWERED, ASKED, LANGUAGES, SPECIALS, byte_level, conversation, write_folder

from mlit_jax.data.engines import overlapping
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.errors import UserError

TEMPLATES = {
  p.stem: p.read_text(encoding="utf-8") for p in Path(__file__).parent.glob("templates/*.jinja")
}
TEXTS = [*ASKED.values(), *ANSWERED.values()]
ODD = [
  "", " ", "  a  b\t\n\n c ", "<s>x</s> y <pad>", "[INST] hi[/INST] hej</s>", "▁a ▁", "ﬁ ½ ① Ａ", "e\u0301e\u0301", "<unk>",
  "👩‍👩‍👧‍👦", "\u200fשלום\u200f", "क्षि", "<n>a<n>", "a<n> b", "x <0x41>",
]  # fmt: skip


@pytest.fixture(scope="module")
def spm_models(tmp_path_factory):
  """SentencePiece models as published ones are made: BPE with bytes (Llama, Gemma) and unigram with NFKC (T5)."""
  spm = pytest.importorskip("sentencepiece")
  root = tmp_path_factory.mktemp("spm")
  common = dict(vocab_size=600, minloglevel=2, num_threads=1, pad_id=3, character_coverage=1.0)
  kinds = {
    "bpe": dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
                remove_extra_whitespaces=False, control_symbols=["[INST]", "[/INST]"], character_coverage=0.98),
    "gemma": dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False,
                  remove_extra_whitespaces=False, user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "<n>", "▁▁"]),
    "unigram": dict(model_type="unigram", normalization_rule_name="nmt_nfkc", user_defined_symbols=["<n>"],
                    hard_vocab_limit=False),
  }  # fmt: skip
  paths = {}
  for name, options in kinds.items():
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
      sentence_iterator=iter(TEXTS * 4), model_writer=model, **common | options
    )
    paths[name] = root / f"{name}.model"
    paths[name].write_bytes(model.getvalue())
  return paths


def load_exported(files, folder, **config):
  """What transformers makes of the files that an export carries."""
  transformers = pytest.importorskip("transformers")
  for name, data in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
  if config:
    (folder / "config.json").write_text(json.dumps(config))
  return transformers.AutoTokenizer.from_pretrained(folder)


def assert_same(ours, theirs):
  for text in TEXTS + ODD:
    assert ours.encode_text(text) == theirs(text, add_special_tokens=False)["input_ids"], text
  for lang in LANGUAGES:
    messages = conversation(lang, system=True, turns=2)
    text = ours.template.render(messages).text
    assert theirs.apply_chat_template(messages, tokenize=False) == text
    assert ours.encode_text(text) == list(theirs.apply_chat_template(messages, return_dict=False))
    prompt = theirs.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert ours.template.prompt(messages[:-1]) == prompt


def assert_offsets_make_sense(text, ids, starts, ends, encoded):
  assert ids.dtype == starts.dtype == ends.dtype == np.int32
  assert ids.tolist() == encoded
  assert np.all(np.diff(starts) >= 0) and np.all(np.diff(ends) >= 0)
  assert np.all(starts >= 0) and np.all(ends <= len(text)) and np.all(ends > starts)
  assert np.all(starts[1:] <= ends[:-1] + text.count(" ") + text.count("\n"))


# --- tokenizer.json


def test_every_character_is_in_the_span_of_a_token(tmp_path):
  tokenizer = Tokenizer.load(write_folder(tmp_path))
  for text, (ids, starts, ends) in zip(
    TEXTS + ODD, tokenizer.encode_with_offsets(TEXTS + ODD), strict=True
  ):
    assert tokenizer.encode_text(text) == ids.tolist()
    covered = np.zeros(len(text), bool)
    for start, end in zip(starts, ends, strict=True):
      assert end > start  # the file's post-processor would leave nothing of a token of white space
      covered[start:end] = True
    assert covered.all()


def test_parts_of_a_character_share_its_span(tmp_path):
  tokenizer = Tokenizer.load(write_folder(tmp_path))
  ids, starts, ends = tokenizer.encode_with_offsets(["𝄞!"])[0]
  assert starts.tolist() == [0, 0, 0, 0, 1]
  assert ends.tolist() == [1, 1, 1, 1, 2]
  assert tokenizer.decode(ids) == "𝄞!"


def test_a_file_that_cuts_and_fills_texts_does_not_here(tmp_path):
  tokenizer = byte_level()
  tokenizer.enable_truncation(4)
  tokenizer.enable_padding(length=64)
  ours = Tokenizer.load(write_folder(tmp_path, tokenizer=tokenizer))
  assert ours.decode(ours.encode_text(ASKED["en"])) == ASKED["en"]


def test_no_special_token_is_added_and_none_is_doubled(tmp_path):
  tokenizer = Tokenizer.load(write_folder(tmp_path, template=TEMPLATES["llama3"]))
  assert tokenizer.bos_id not in tokenizer.encode_text("a")
  ids = tokenizer.encode_text(tokenizer.template.render(conversation("sw")).text)
  assert ids.count(tokenizer.bos_id) == 1 and ids[0] == tokenizer.bos_id


def test_special_tokens_are_read_whole_and_skipped_or_shown(tmp_path):
  tokenizer = Tokenizer.load(write_folder(tmp_path))
  ids = tokenizer.encode_text("<s>你好<|im_end|>")
  assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
  assert tokenizer.decode(ids) == "你好"
  assert tokenizer.decode(np.array(ids), skip_special=False) == "<s>你好<|im_end|>"


def test_special_tokens_of_the_config_are_read_whole_though_the_file_does_not_mark_them(tmp_path):
  data = json.loads(byte_level().to_str())
  marked = [t for t in data["added_tokens"] if t["content"] == "</s>"]
  data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] != "</s>"]
  plain = tokenizers.Tokenizer.from_str(json.dumps(data))
  folder = write_folder(tmp_path, tokenizer=plain, eos="</s>")
  assert Tokenizer.load(folder).encode_text("a</s>b")[1] == marked[0]["id"]
  assert_same(Tokenizer.load(folder), load_exported(Tokenizer.load(folder).files, tmp_path / "out"))


def test_tokens_that_only_the_config_adds(tmp_path):
  size = byte_level().get_vocab_size()
  added = {
    str(size): {"content": "<extra>", "special": True},
    "1": {"content": "<s>", "special": True},
  }
  tokenizer = Tokenizer.load(write_folder(tmp_path / "a", added_tokens_decoder=added))
  assert tokenizer.encode_text("a<extra>")[-1] == size
  assert tokenizer.vocab_size == size + 1
  added = {"7": {"content": "<s>", "special": True}}
  with pytest.raises(UserError, match="gives '<s>' the id 7, tokenizer.json 1"):
    Tokenizer.load(write_folder(tmp_path / "b", added_tokens_decoder=added))


def test_stop_ids_are_the_templates_end_the_eos_and_those_of_the_generation_config(tmp_path):
  folder = write_folder(tmp_path, template=TEMPLATES["llama3"], eos="</s>")
  number = {token: i for i, token in enumerate(SPECIALS)}
  assert Tokenizer.load(folder).stop_ids == (number["<|eot_id|>"], number["</s>"])
  (folder / "generation_config.json").write_text(
    json.dumps({"eos_token_id": [number["<|im_end|>"], 2]})
  )
  tokenizer = Tokenizer.load(folder)
  assert tokenizer.stop_ids == (number["<|eot_id|>"], number["</s>"], number["<|im_end|>"])
  assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id) == (1, 2, 0, None)
  assert "generation_config.json" not in tokenizer.files


def test_pad_may_be_the_eos(tmp_path):
  tokenizer = Tokenizer.load(write_folder(tmp_path, pad_token="<|im_end|>"))
  assert tokenizer.pad_id == tokenizer.eos_id
  assert Tokenizer.load(write_folder(tmp_path, pad_token=None)).pad_id == tokenizer.eos_id


@pytest.mark.parametrize(
  "form, model_type", [("file", "qwen3"), ("text", "llama"), ("list", "gemma3_text")]
)
def test_a_folder_goes_through_byte_by_byte(form, model_type, tmp_path):
  source = TEMPLATES["qwen2_5"]
  tools = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": source}]
  config = {"file": {}, "text": {"chat_template": source}, "list": {"chat_template": tools}}[form]
  folder = write_folder(tmp_path / "in", template=source if form == "file" else None, **config)
  tokenizer = Tokenizer.load(folder)
  assert tokenizer.template.source == source
  assert tokenizer.files == {path.name: path.read_bytes() for path in folder.iterdir()}
  assert_same(tokenizer, load_exported(tokenizer.files, tmp_path / "out", model_type=model_type))


@pytest.mark.parametrize("form", ["file", "text", "list"])
def test_another_template_replaces_the_folders_everywhere(form, tmp_path):
  old = TEMPLATES["qwen2_5"]
  config = {
    "file": {},
    "text": {"chat_template": old},
    "list": {"chat_template": [{"name": "default", "template": old}]},
  }
  folder = write_folder(tmp_path / "in", template=old if form == "file" else None, **config[form])
  given = tmp_path / "given.txt"
  given.write_text(TEMPLATES["gemma3"], encoding="utf-8")
  tokenizer = Tokenizer.load(folder, template=str(given))
  assert tokenizer.template.end_of_turn == "<end_of_turn>"
  assert not any(b"Alibaba" in data for data in tokenizer.files.values())
  assert_same(tokenizer, load_exported(tokenizer.files, tmp_path / "out"))


def test_arguments_of_the_template_become_the_exports_defaults(tmp_path):
  folder = write_folder(tmp_path / "in", template=TEMPLATES["qwen3"])
  tokenizer = Tokenizer.load(folder, template_kwargs={"enable_thinking": False})
  assert tokenizer.template.prompt(conversation("en")[:1]).endswith("<think>\n\n</think>\n\n")
  assert_same(tokenizer, load_exported(tokenizer.files, tmp_path / "out"))


@pytest.mark.parametrize(
  "specials, end",
  [
    (SPECIALS, "<|im_end|>"),
    (("<s>", "</s>"), "</s>"),
    (("<s>", "</s>", "[INST]", "[/INST]"), "</s>"),
  ],
)
def test_a_bare_tokenizer_json(specials, end, tmp_path):
  byte_level(specials).save(str(tmp_path / "tokenizer.json"))
  tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
  assert tokenizer.template.end_of_turn == end
  assert tokenizer.stop_ids[0] == specials.index(end)
  assert tokenizer.template.render(conversation("hi")).text.startswith(
    "<s>"
  )  # the file frames texts by it
  assert_same(tokenizer, load_exported(tokenizer.files, tmp_path / "out"))


def test_the_fingerprint_tells_what_shapes_ids_and_nothing_else(tmp_path):
  def load(**kwargs):
    return Tokenizer.load(write_folder(tmp_path, template=TEMPLATES["qwen3"]), **kwargs).fingerprint

  prints = [
    load(), load(date="2025-01-01"), load(template_kwargs={"enable_thinking": False}), load(template=TEMPLATES["zephyr"]),
    Tokenizer.load(write_folder(tmp_path, template=TEMPLATES["qwen3"], eos="</s>")).fingerprint,
    Tokenizer.load(write_folder(tmp_path, template=TEMPLATES["qwen3"], tokenizer=byte_level(SPECIALS[::-1]))).fingerprint,
  ]  # fmt: skip
  assert len(set(prints)) == len(prints)
  assert load() == prints[0]
  assert (
    Tokenizer.load(
      write_folder(tmp_path, template=TEMPLATES["qwen3"], model_max_length=9)
    ).fingerprint
    == prints[0]
  )


def test_errors(tmp_path):
  with pytest.raises(UserError, match="no such tokenizer file"):
    Tokenizer.load(tmp_path / "missing")
  with pytest.raises(
    UserError, match="neither tokenizer.json nor tokenizer.model .it holds nothing"
  ):
    Tokenizer.load(tmp_path)
  (tmp_path / "x.json").write_text("{}")
  with pytest.raises(UserError, match="not a tokenizer.json"):
    Tokenizer.load(tmp_path / "x.json")
  (tmp_path / "x.model").write_bytes(b"nonsense")
  with pytest.raises(UserError, match="neither a tokenizer.json nor a SentencePiece model"):
    Tokenizer.load(tmp_path / "x.model")
  with pytest.raises(UserError, match="eos_token is '<eos>', which the vocabulary lacks"):
    Tokenizer.load(write_folder(tmp_path / "a", eos="<eos>"))
  with pytest.raises(UserError, match="none named 'default'"):
    Tokenizer.load(write_folder(tmp_path / "b", chat_template=[{"name": "rag", "template": "x"}]))
  with pytest.raises(UserError, match="neither a file nor Jinja"):
    Tokenizer.load(write_folder(tmp_path / "c"), template="my_template.jinja")
  with pytest.raises(UserError, match="is no special token of this vocabulary"):
    Tokenizer.load(write_folder(tmp_path / "d", tokenizer=byte_level(("<s>", "</s>")), eos="</s>", pad_token=None,
                                template=TEMPLATES["qwen3"]))  # fmt: skip
  (tmp_path / "d" / "tokenizer_config.json").write_text("{")
  with pytest.raises(UserError, match="tokenizer_config.json: broken JSON"):
    Tokenizer.load(tmp_path / "d")


# --- SentencePiece


@pytest.mark.parametrize("kind", ["bpe", "gemma", "unigram"])
def test_ids_between_special_tokens_are_those_of_sentencepiece(kind, spm_models):
  import sentencepiece

  theirs = sentencepiece.SentencePieceProcessor(model_file=str(spm_models[kind]))
  ours = Tokenizer.load(spm_models[kind])
  for text in TEXTS + [" x", "a  b", "<n>a<n>", "a<n> b", "e\u0301 ﬁ"]:
    assert ours.encode_text(text) == theirs.encode(text)
  assert ours.encode_text("<s>a b</s>") == [1, *theirs.encode("a b"), 2]
  assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == (1, 2, 3, 0)


@pytest.mark.parametrize("kind", ["bpe", "gemma", "unigram"])
def test_offsets_of_sentencepiece(kind, spm_models):
  tokenizer = Tokenizer.load(spm_models[kind])
  for text in TEXTS + ODD:
    found = tokenizer.encode_with_offsets([text])[0]
    assert_offsets_make_sense(text, *found, tokenizer.encode_text(text))
  text = "</s>x𝄞 y</s>z"
  ids, starts, ends = tokenizer.encode_with_offsets([text])[0]
  assert (starts[0], ends[0]) == (0, 4)
  pieces = [tokenizer.engine._model.id_to_piece(int(i)) for i in ids]
  at = {piece: (int(a), int(b)) for piece, a, b in zip(pieces, starts, ends, strict=True)}
  last = [i for i, piece in enumerate(pieces) if piece == "</s>"][1]
  assert (starts[last], ends[last]) == (8, 12)  # a prefix before x shifts nothing after it
  assert ends[-1] == 13 and starts[-1] == 12
  if kind != "unigram":
    assert [at[f"<0x{byte:02X}>"] for byte in "𝄞".encode()] == [(5, 6)] * 4


@pytest.mark.parametrize("kind", ["bpe", "gemma", "unigram"])
def test_the_mask_covers_the_answer_and_its_end(kind, spm_models):
  tokenizer = Tokenizer.load(spm_models[kind])
  for lang in LANGUAGES:
    messages = conversation(lang, system=True, turns=2)
    rendered = tokenizer.template.render(messages)
    ids, starts, ends = tokenizer.encode_with_offsets([rendered.text])[0]
    mask = overlapping(rendered.spans, starts, ends)
    runs = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]]))).reshape(-1, 2)
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    assert len(runs) == len(answers)
    for (a, b), answer in zip(runs, answers, strict=True):
      assert ids[b - 1] == tokenizer.stop_ids[0]
      if kind != "unigram":  # which normalises and has no bytes for what it does not know
        assert tokenizer.decode(ids[a:b]).strip() == answer.strip()


@pytest.mark.parametrize("model_type", [None, "llama", "gemma3_text"])
@pytest.mark.parametrize("kind", ["bpe", "gemma", "unigram"])
def test_a_bare_model_exports_to_a_folder_with_the_same_ids(kind, model_type, spm_models, tmp_path):
  tokenizer = Tokenizer.load(spm_models[kind])
  theirs = load_exported(
    tokenizer.files, tmp_path, **({"model_type": model_type} if model_type else {})
  )
  assert_same(tokenizer, theirs)
  for text in TEXTS:
    ids = tokenizer.encode_text(text)
    assert tokenizer.decode(ids).strip() == theirs.decode(ids, skip_special_tokens=True).strip()
  again = Tokenizer.load(tmp_path)  # and our own reading of the export is the same again
  assert [again.encode_text(t) for t in TEXTS + ODD] == [
    tokenizer.encode_text(t) for t in TEXTS + ODD
  ]
  assert again.stop_ids == tokenizer.stop_ids


def test_a_folder_with_a_model_and_added_tokens(spm_models, tmp_path):
  folder = tmp_path / "in"
  folder.mkdir()
  (folder / "tokenizer.model").write_bytes(spm_models["bpe"].read_bytes())
  size = Tokenizer.load(spm_models["bpe"]).vocab_size
  added = {"<|im_start|>": size, "<|im_end|>": size + 1}
  (folder / "added_tokens.json").write_text(json.dumps(added))
  (folder / "tokenizer_config.json").write_text(
    json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": True})
  )
  tokenizer = Tokenizer.load(folder)
  assert tokenizer.vocab_size == size + 2
  assert tokenizer.stop_ids == (size + 1, 2)
  assert tokenizer.encode_text("<|im_start|>")[0] == size
  assert (
    tokenizer.decode([size, *tokenizer.encode_text("hei")], skip_special=False) == "<|im_start|>hei"
  )
  assert_same(tokenizer, load_exported(tokenizer.files, tmp_path / "out", model_type="llama"))
  (folder / "added_tokens.json").write_text(json.dumps({"[INST]": size}))
  with pytest.raises(UserError, match=r"'\[INST\]' has the id"):
    Tokenizer.load(folder)


def test_a_prefix_only_at_the_start_of_the_text(spm_models, tmp_path):
  folder = tmp_path / "in"
  folder.mkdir()
  (folder / "tokenizer.model").write_bytes(spm_models["bpe"].read_bytes())
  (folder / "tokenizer_config.json").write_text(
    json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False})
  )
  tokenizer = Tokenizer.load(folder)
  whole = Tokenizer.load(spm_models["bpe"])
  assert tokenizer.encode_text("hei") == whole.encode_text("hei")
  assert tokenizer.encode_text("</s>hei") != whole.encode_text("</s>hei")
  theirs = load_exported(tokenizer.files, tmp_path / "out")
  for text in ["hei", "</s>hei", "a</s>b c[INST] d", *TEXTS]:
    assert tokenizer.encode_text(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_the_unknown_piece_is_the_one_the_model_marks(spm_models):
  """A published model was reordered and its trainer_spec still names the old id."""
  from sentencepiece import sentencepiece_model_pb2

  proto = sentencepiece_model_pb2.ModelProto.FromString(spm_models["unigram"].read_bytes())
  proto.trainer_spec.unk_id = 2
  path = spm_models["unigram"].with_name("stale.model")
  path.write_bytes(proto.SerializeToString())
  tokenizer = Tokenizer.load(path)
  exported = tokenizers.Tokenizer.from_str(tokenizer.files["tokenizer.json"].decode())
  for text in ["Ωmega", "a ᚠ b"]:
    assert exported.encode(text, add_special_tokens=False).ids == tokenizer.encode_text(text)


def test_markers_are_such_as_the_vocabulary_can_spell(tmp_path):
  spm = pytest.importorskip("sentencepiece")
  model = io.BytesIO()
  lines = ["[system] [user] [assistant] habari ya asubuhi"] * 4
  spm.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=model,
    vocab_size=30,
    minloglevel=2,
    hard_vocab_limit=False,
  )
  (tmp_path / "t5.model").write_bytes(model.getvalue())
  tokenizer = Tokenizer.load(tmp_path / "t5.model")  # has no "<"
  text = tokenizer.template.render(
    [{"role": "user", "content": "habari"}, {"role": "assistant", "content": "ya"}]
  ).text
  assert text == "<s>[user]\nhabari\n[assistant]\nya</s>\n"
  assert tokenizer.unk_id not in tokenizer.encode_text(text)


@pytest.mark.parametrize("kind", ["json", "bpe"])
def test_a_tokenizer_travels_to_another_process(kind, spm_models, tmp_path):
  tokenizer = Tokenizer.load(write_folder(tmp_path) if kind == "json" else spm_models["bpe"])
  again = pickle.loads(pickle.dumps(tokenizer))
  assert [again.encode_text(t) for t in TEXTS] == [tokenizer.encode_text(t) for t in TEXTS]
  assert again.fingerprint == tokenizer.fingerprint


def test_parts_of_characters_are_known(spm_models, tmp_path):
  """By byte fallback the bytes from 0x80 on; in a byte-level vocabulary whatever is no whole character."""
  bpe = Tokenizer.load(str(spm_models["bpe"]))
  pieces = [bpe.engine._model.id_to_piece(i) for i in bpe.partial_ids]
  assert pieces == [f"<0x{b:02X}>" for b in range(0x80, 0x100)]
  (tmp_path / "exported").mkdir()
  for name, data in bpe.files.items():
    (tmp_path / "exported" / name).write_bytes(data)
  again = Tokenizer.load(str(tmp_path / "exported"))  # the same vocabulary as a tokenizer.json
  assert sorted(again.partial_ids) == sorted(bpe.partial_ids)

  level = Tokenizer.load(str(write_folder(tmp_path / "level")))
  partial = set(level.partial_ids.tolist())
  for i in range(level.vocab_size):
    if i not in level.special_ids:
      assert (i in partial) == ("\ufffd" in level.decode([i])), i
  assert len(partial) > 128
