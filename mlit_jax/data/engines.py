"""The two libraries behind a tokenizer: ids, offsets in characters, added tokens."""

import array
import hashlib
import itertools
import re

import numpy as np
import tokenizers

from mlit_jax.errors import UserError


class HuggingFace:
  """A tokenizer.json. `added` are the tokens that are matched whole in the text: token -> id."""

  def __init__(self, data: bytes, place: str):
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
      self.framing = self._prepare()
      self._refresh()
    except BaseException as error:  # the library raises bare Exception, and panics that are none
      if not _is_of_library(error):
        raise
      raise UserError(
        f"{place}: not a tokenizer.json that this version can read ({error}). Fetch it again."
      ) from None
    self.digest = hashlib.sha256(data).hexdigest()

  def _prepare(self) -> list[int]:
    """Leave nothing of it that cuts, fills or frames a text; the tokens that would stand before one."""
    # Files may say that texts are cut or filled: a cut answer would never be seen.
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    # It says which tokens frame a text, and none is wanted here.
    framed = self._tokenizer.encode("a").ids
    framing = framed[: len(framed) - len(self._tokenizer.encode("a", add_special_tokens=False).ids)]
    # It also cuts white space out of offsets, so a token of white space alone would be in no span.
    self._tokenizer.post_processor = None
    return framing

  def _refresh(self):
    self.added = {
      token.content: i for i, token in self._tokenizer.get_added_tokens_decoder().items()
    }
    self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

  def add(self, tokens: list[tuple[int, dict]], place: str):
    """Adds the tokens of tokenizer_config.json that tokenizer.json lacks, at their ids."""
    for i, token in sorted(tokens, key=lambda pair: pair[0]):
      if self.token_id(token["content"]) is None:
        keys = ("single_word", "lstrip", "rstrip", "normalized", "special")
        added = tokenizers.AddedToken(token["content"], **{k: token[k] for k in keys if k in token})
        add = (
          self._tokenizer.add_special_tokens if token.get("special") else self._tokenizer.add_tokens
        )
        add([added])
      if self.token_id(token["content"]) != i:
        raise UserError(
          f"{place}: tokenizer_config.json gives {token['content']!r} the id {i}, tokenizer.json "
          f"{self.token_id(token['content'])}. The two files are not of one tokenizer: fetch both "
          f"again."
        )
    self._refresh()

  def mark(self, tokens: list[str]):
    """Has the special tokens found whole in the text, as transformers does with named ones."""
    known = [t for t in tokens if t not in self.added and self.token_id(t) is not None]
    self._tokenizer.add_special_tokens(
      [tokenizers.AddedToken(t, special=True, normalized=False) for t in known]
    )
    self._refresh()

  @property
  def whole(self) -> tuple[str, ...]:
    """The tokens that a template may end an answer with."""
    return tuple(self.added)

  def token_id(self, token: str | None) -> int | None:
    return None if token is None else self._tokenizer.token_to_id(token)

  def partial_ids(self) -> list[int]:
    """The tokens that spell no whole character: bytes of one, by byte fallback or in a byte-level vocabulary."""
    vocab = self._tokenizer.get_vocab(with_added_tokens=False)
    decoder = self._tokenizer.decoder
    if decoder is not None and '"ByteLevel"' in decoder.__getstate__().decode():
      return [i for token, i in vocab.items() if not _is_whole(token)]
    return [i for token, i in vocab.items() if _is_high_byte(token)]

  def encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def encode_with_offsets(self, texts):
    encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
    return [
      (np.array(encoding.ids, np.int32), *_offsets(encoding, text))
      for text, encoding in zip(texts, encodings, strict=True)
    ]

  def encode_marked(self, texts, spans):
    encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
    flat = array.array("I")  # a list goes into it four times as fast as into a numpy array
    ends = []
    for encoding in encodings:
      flat.fromlist(encoding.ids)
      ends.append(len(flat))
    ids, mask = np.array(flat, np.uint32), np.zeros(len(flat), bool)
    found = [(ids[a:b], mask[a:b]) for a, b in itertools.pairwise([0, *ends])]
    for (_, own), encoding, text, of_text in zip(found, encodings, texts, spans, strict=True):
      _mark(own, encoding, text, of_text)
    return found

  def decode(self, ids, skip_special):
    return self._tokenizer.decode(ids, skip_special_tokens=skip_special)


def _is_of_library(error: BaseException) -> bool:
  return isinstance(error, Exception) or type(error).__name__ == "PanicException"


class SentencePiece:
  """A SentencePiece model, and the tokens that a folder adds to it.

  Control pieces and added tokens are found by a regular expression, since SentencePiece never
  reads them from
  text; what stands between them is encoded piece by piece, each with the dummy prefix if the model
  has one. User
  defined pieces are left to SentencePiece, which keeps them whole.
  """

  def __init__(
    self, data: bytes, added: dict[str, int], place: str, *, prefix_everywhere: bool = True
  ):
    try:
      import sentencepiece
    except ImportError:
      raise UserError(
        f"{place}: reading it needs sentencepiece. Run: pip install sentencepiece protobuf"
      ) from None
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
    except (RuntimeError, ValueError, TypeError) as error:
      raise UserError(
        f"{place}: neither a tokenizer.json nor a SentencePiece model that sentencepiece "
        f"{sentencepiece.__version__} can read ({str(error).strip()}). Fetch the file again, or "
        f"use the folder's "
        "tokenizer.json."
      ) from None
    if not all(isinstance(piece.piece, str) for piece in _parse_proto(data).pieces):
      raise UserError(f"{place}: a piece of the vocabulary is not UTF-8. Fetch the file again.")
    self.proto = data
    self.digest = hashlib.sha256(data + (b"" if prefix_everywhere else b"first")).hexdigest()
    size = self._model.get_piece_size()
    control = {self._model.id_to_piece(i): i for i in range(size) if self._model.is_control(i)}
    for token, i in added.items():
      own = self.token_id_of_model(token)
      if own != i and (own is not None or i < size):
        raise UserError(
          f"{place}: {token!r} has the id {i} in the folder's added tokens, {own} in the model. "
          f"The files are not "
          "of one tokenizer: fetch them again."
        )
    self.vocab_size = max([size - 1, *added.values()]) + 1
    self.framing = [self._model.bos_id()] if self._model.bos_id() >= 0 else []
    self.prefix_everywhere = prefix_everywhere
    self._inner = (
      self._model
      if prefix_everywhere
      else sentencepiece.SentencePieceProcessor(model_proto=_without_dummy_prefix(data))
    )
    self._user_defined = [i for i, p in enumerate(_parse_proto(data).pieces) if p.type == 4]
    self._set_added(control | added)

  def _set_added(self, added: dict[str, int]):
    self.added = added
    self.ids = {i: token for token, i in added.items()}
    longest_first = sorted(added, key=len, reverse=True)
    self._special = (
      re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
    )

  def mark(self, tokens: list[str]):
    """Has the special tokens found whole in the text, such as the unknown piece."""
    self._set_added(
      self.added | {t: self.token_id(t) for t in tokens if self.token_id(t) is not None}
    )

  @property
  def whole(self) -> tuple[str, ...]:
    """The tokens that a template may end an answer with, user defined pieces too."""
    pieces = (self._model.id_to_piece(i) for i in self._user_defined)
    return (*self.added, *(piece for piece in pieces if piece.replace("▁", " ").strip()))

  def token_id_of_model(self, token: str) -> int | None:
    i = self._model.piece_to_id(token)
    return (
      i if 0 <= i < self._model.get_piece_size() and self._model.id_to_piece(i) == token else None
    )

  def token_id(self, token: str | None) -> int | None:
    if token is None:
      return None
    return self.added[token] if token in self.added else self.token_id_of_model(token)

  def partial_ids(self) -> list[int]:
    """The tokens that spell no whole character: single bytes of one."""
    model = self._model
    return [
      i
      for i in range(model.get_piece_size())
      if model.is_byte(i) and _is_high_byte(model.id_to_piece(i))
    ]

  def named(self) -> dict[str, str]:
    """The special tokens that the model itself names."""
    m = self._model
    ids = {
      "bos_token": m.bos_id(),
      "eos_token": m.eos_id(),
      "pad_token": m.pad_id(),
      "unk_token": m.unk_id(),
    }
    return {key: m.id_to_piece(i) for key, i in ids.items() if i >= 0}

  def encode(self, text: str) -> list[int]:
    ids = []
    for is_special, part, start in self._parts(text):
      ids += [self.added[part]] if is_special else self._model_for(start).encode(part)
    return ids

  def encode_with_offsets(self, texts):
    parts = [self._parts(text) for text in texts]
    plain = [
      (self._model_for(start), part)
      for text in parts
      for special, part, start in text
      if not special
    ]
    encoded = iter(_spm_offsets(plain))
    result = []
    for text in parts:
      ids, starts, ends = [], [], []
      for is_special, part, start in text:
        if is_special:
          part_ids, a, b = [self.added[part]], [0], [len(part)]
        else:
          part_ids, a, b = next(encoded)
          a, b = _widen(np.array(a, np.int32), np.array(b, np.int32), 0, len(part))
        ids.append(np.array(part_ids, np.int32))
        starts.append(np.array(a, np.int32) + start)
        ends.append(np.array(b, np.int32) + start)
      empty = [np.zeros(0, np.int32)]
      result.append(tuple(np.concatenate(x or empty).astype(np.int32) for x in (ids, starts, ends)))
    return result

  def encode_marked(self, texts, spans):
    return [
      (ids.astype(np.uint32), overlapping(of_text, starts, ends))
      for of_text, (ids, starts, ends) in zip(spans, self.encode_with_offsets(texts), strict=True)
    ]

  def decode(self, ids, skip_special):
    text, run = [], []
    for i in [*ids, None]:
      if i is None or i in self.ids:
        text.append(self._model.decode(run) if run else "")
        run = []
        if i is not None and not skip_special:
          text.append(self.ids[i])
      elif i < self._model.get_piece_size():
        run.append(i)
    return "".join(text)

  def _model_for(self, start: int):
    return self._model if start == 0 else self._inner

  def _parts(self, text: str) -> list[tuple[bool, str, int]]:
    """(is it a special token, text, where it starts), in order, without empty parts."""
    parts, at = [], 0
    for k, part in enumerate(self._special.split(text) if self._special else [text]):
      if part:
        parts.append((k % 2 == 1, part, at))
      at += len(part)
    return parts


def overlapping(spans, starts, ends) -> np.ndarray:
  """bool [tokens]: the tokens that overlap a span, which are those that are trained.

      text      <u>Hola<a>Bonjour<e>          spans  ((10, 20),)
      tokens    <u> Ho la <a> Bon jour <e>
      starts     0   3  5   7  10   13  17
      ends       3   5  7  10  13   17  20
      overlap    0   0  0   0   1    1   1

  An empty token is one where a span begins at it or holds it: it is the first thing that the model writes.
  """
  mask = np.zeros(starts.shape, bool)
  for start, end in spans:
    mask |= (starts < end) & ((ends > start) | ((starts == ends) & (starts >= start)))
  return mask


def _offsets(encoding, text: str) -> tuple[np.ndarray, np.ndarray]:
  offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
  return _widen(offsets[:, 0], offsets[:, 1], 0, len(text))


def _mark(mask, encoding, text: str, spans) -> None:
  """`overlapping` into a mask of zeros, asking only for the tokens at the ends of spans: all offsets cost 0.3
  of the encoding."""
  for start, end in spans:
    first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
    if first is None or last is None or not _is_clear(encoding, first, last, start, end):
      mask[:] = overlapping(spans, *_offsets(encoding, text))
      return
    mask[first : last + 1] = True


def _is_clear(encoding, first: int, last: int, start: int, end: int) -> bool:
  """Whether the neighbours of tokens first to last surely lie outside of the span."""
  if first > 0:
    a, b = encoding.token_to_chars(first - 1) or (0, 0)
    if not a < b <= start:
      return False
  if last + 1 < len(encoding):
    a, b = encoding.token_to_chars(last + 1) or (0, 0)
    if not end <= a < b:
      return False
  return True


def _is_high_byte(token: str) -> bool:
  """<0x80> to <0xFF>: a part of a character. The lower ones are characters."""
  return re.fullmatch(r"<0x[89A-F][0-9A-F]>", token) is not None


def _is_whole(token: str) -> bool:
  """Whether the bytes that a byte-level token stands for are whole characters."""
  try:
    bytes(_BYTES[ch] for ch in token).decode("utf-8")
  except (KeyError, UnicodeDecodeError):
    return False
  return True


# The characters by which byte-level vocabularies (GPT-2's and after) write bytes: those that can be seen stand for
# themselves, the others for the next free ones from U+0100.
_SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_UNSEEN = [b for b in range(256) if b not in _SEEN]
_BYTES = {chr(b): b for b in _SEEN} | {chr(0x100 + i): b for i, b in enumerate(_UNSEEN)}


def _spm_offsets(jobs):
  """(ids, starts, ends) in characters for (model, text) pairs."""
  result = []
  for model, text in jobs:
    if hasattr(model, "EncodeAsOffsetMapping"):
      found = model.encode(text, out_type="offset_mapping")
      offsets = found["offsets"]
      result.append((found["ids"], [a for a, _ in offsets], [b for _, b in offsets]))
    else:  # before 0.2.1
      pieces = list(model.encode(text, out_type="immutable_proto").pieces)
      result.append(([p.id for p in pieces], [p.begin for p in pieces], [p.end for p in pieces]))
  return result


def _widen(starts, ends, low: int, high: int):
  """Gives an empty span the character that follows it, and makes starts and ends never go back.

  The first bytes of a character, and the prefix that SentencePiece puts before a text, come with
  empty spans.
  """
  starts = np.maximum.accumulate(np.clip(starts, low, high)) if len(starts) else starts
  ends = np.maximum(np.clip(ends, low, high), starts)
  empty = ends == starts
  starts = np.where(empty & (starts == high), np.maximum(starts - 1, low), starts)
  ends = np.where(empty, np.minimum(starts + 1, high), ends)
  ends = np.maximum.accumulate(ends) if len(ends) else ends
  return starts.astype(np.int32), ends.astype(np.int32)


def _without_dummy_prefix(data: bytes) -> bytes:
  proto = _parse_proto(data)
  proto.normalizer_spec.add_dummy_prefix = False
  return proto.SerializeToString()


def _parse_proto(data: bytes):
  try:
    from sentencepiece import sentencepiece_model_pb2
  except ImportError:
    raise UserError(
      "reading a SentencePiece model needs protobuf. Run: pip install protobuf"
    ) from None
  return sentencepiece_model_pb2.ModelProto.FromString(data)


def to_tokenizer_json(engine: SentencePiece, special_tokens: dict[str, str]) -> bytes:
  """A tokenizer.json that gives the ids of a SentencePiece model.

  transformers converts such models too, by rules that differ between its versions and model
  classes; a file
  written here is read as it stands by all of them, by vLLM and by every other reader of
  tokenizer.json.
  """
  proto = _parse_proto(engine.proto)
  trainer, normal = proto.trainer_spec, proto.normalizer_spec
  if trainer.model_type not in (1, 2) or trainer.treat_whitespace_as_suffix:
    raise UserError(
      "the SentencePiece model is neither unigram nor BPE, or has white space as a suffix: it has "
      "no tokenizer.json "
      "form, so a tuned model could not be exported. Use a folder that has a tokenizer.json."
    )
  user_defined = [piece.piece for piece in proto.pieces if piece.type == 4]
  unk = next(
    i for i, piece in enumerate(proto.pieces) if piece.type == 2
  )  # trainer_spec.unk_id may be stale
  if trainer.model_type == 1:
    model = tokenizers.models.Unigram(
      [(p.piece, p.score) for p in proto.pieces], unk_id=unk, byte_fallback=trainer.byte_fallback
    )
  else:
    model = tokenizers.models.BPE(
      {piece.piece: i for i, piece in enumerate(proto.pieces)},
      _merges(proto),
      unk_token=proto.pieces[unk].piece,
      fuse_unk=True,
      byte_fallback=trainer.byte_fallback,
      # User defined pieces have no merges. It costs one text: a bare "<0x41>" becomes that byte's
      # piece.
      ignore_merges=bool(user_defined),
    )
  tokenizer = tokenizers.Tokenizer(model)
  n, regex = tokenizers.normalizers, tokenizers.Regex
  steps = [n.Precompiled(normal.precompiled_charsmap)] if normal.precompiled_charsmap else []
  if normal.remove_extra_whitespaces:
    steps += [n.Replace(regex(r"\A +| +\z"), ""), n.Replace(regex(" {2,}"), " ")]
  prefix = normal.add_dummy_prefix
  if prefix and engine.prefix_everywhere:
    steps.append(n.Prepend(" "))  # of each part between special tokens
  if normal.escape_whitespaces:
    steps.append(n.Replace(" ", "▁"))
  tokenizer.normalizer = n.Sequence(steps)
  p = tokenizers.pre_tokenizers
  splits = []
  if prefix and not engine.prefix_everywhere:
    splits.append(p.Metaspace(replacement="▁", prepend_scheme="first", split=False))
  if user_defined:
    pattern = "|".join(re.escape(piece) for piece in sorted(user_defined, key=len, reverse=True))
    splits.append(p.Split(regex(pattern), behavior="isolated"))
  if splits:
    tokenizer.pre_tokenizer = p.Sequence(splits)
  d = tokenizers.decoders
  steps = [d.Replace("▁", " "), d.ByteFallback(), d.Fuse()]
  tokenizer.decoder = d.Sequence([*steps, d.Strip(" ", 1, 0)] if prefix else steps)
  special = {*special_tokens.values(), *(piece.piece for piece in proto.pieces if piece.type == 3)}
  for token, _ in sorted(engine.added.items(), key=lambda pair: pair[1]):
    tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False, special=token in special)])
  return tokenizer.to_str(pretty=False).encode("utf-8")


def _merges(proto) -> list[tuple[str, str]]:
  """The merges of a BPE model, best piece first: SentencePiece keeps only the pieces."""
  score = {
    piece.piece: (-piece.score, i) for i, piece in enumerate(proto.pieces) if piece.type == 1
  }
  ranked = []
  for piece, rank in score.items():
    for cut in range(1, len(piece)):
      left, right = piece[:cut], piece[cut:]
      if left in score and right in score:
        ranked.append((rank, left, right))
  return [(left, right) for _, left, right in sorted(ranked)]
