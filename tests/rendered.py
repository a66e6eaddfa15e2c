"""Conversations in ten scripts as the model sees them under each chat template, what is trained marked.

`python -m tests.rendered` writes tests/golden/rendered/ again; look at the diff before you commit it.
"""

import pathlib
import tempfile

import numpy as np

import mlit_jax
from configs import base
from mlit_jax.data.tokenizer import Tokenizer
from tests.data.twelve import SPECIALS, byte_level, write_folder

GOLDEN = pathlib.Path(__file__).parent / "golden" / "rendered"
TEMPLATES = pathlib.Path(__file__).parent / "data" / "templates"
BUNDLED = pathlib.Path(mlit_jax.__file__).parent / "assets" / "tokenizer12"
KWARGS = dict(base.get_config().tokenizer.template_kwargs)  # what a run hands to templates
FRAME = ("<pad>", "<s>", "</s>")
MARKERS = {
  "chatml": ("<|im_start|>", "<|im_end|>"),
  "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
  "gemma": ("<start_of_turn>", "<end_of_turn>"),
  "mistral": ("[INST]", "[/INST]"),
  "plain": (),
}
NAMES = (
  *sorted(path.stem for path in TEMPLATES.glob("*.jinja")),
  "qwen3_thinking",
  *(f"builtin_{name}" for name in MARKERS),
  "tokenizer12",
)
END = "␃"  # where a text ends: white space after the last token shows

# Two questions and two answers. Vowel signs and tone marks in composed and decomposed form, conjuncts,
# characters beyond the first plane, text from right to left with Latin and digits in it, no spaces.
SCRIPTS = {
  "Latin (vi)": (
    "Bạn có khoẻ không, chị Nguyễn?",
    "Tôi khoẻ, cảm ơn! Cafe\u0301 sữa đá nhé?",
    "Giá bao nhiêu?",
    "25.000₫ một ly — rẻ lắm.",
  ),
  "Cyrillic (uk)": (
    "Як тебе звати, їжачку?",
    "Мене звати Ґудзик; я живу під ґанком.",
    "А що ти їси?",
    "Об’їдаю п’ять яблук — «щодня»!",
  ),
  "Arabic (ar)": (
    "مَرْحَبًا، كَيْفَ حَالُكَ؟",
    "أنا بخير، شُكْرًا. لغتي المفضلة هي Python 3.12.",
    "كم عدد الأيام؟",
    "سبعة (٧) أيام.",
  ),
  "Hebrew (he)": (
    "שָׁלוֹם, מה שלומך?",
    "הכול בסדר, תודה! קראתי 3 ספרים של J. R. R. Tolkien.",
    "איזה הכי טוב?",
    "ה״הוביט״, כמובן.",
  ),
  "Devanagari (hi)": (
    "क्षत्रिय और ज्ञान का अर्थ क्या है?",
    "ज्ञान का अर्थ है जानकारी; क्षत्रिय एक वर्ण है।",
    "श्री कैसे लिखें?",
    "श + ् + र + ी = श्री।",
  ),
  "Han (zh)": (
    "你好，今天天气怎么样？",
    "晴，二十五度。适合去𠮷野家吃饭。",
    "远吗？",
    "不远，走路５分钟。",
  ),
  "Kana (ja)": (
    "おはよう！きょうは なにを しますか？",
    "コーヒーを飲んで、か\u3099っこうへ行きます。",
    "ｶﾀｶﾅも読めますか？",
    "はい、「ヴ」も「ゞ」も読めます。",
  ),
  "Hangul (ko)": (
    "안녕하세요, 어디 가세요?",
    "도서관에 가요. \u1112\u1161\u11ab글 책을 읽으려고요.",
    "뭐 읽어요?",
    "『훈민정음』이요 ㅋㅋ",
  ),
  "Thai (th)": (
    "สวัสดีครับ วันนี้เป็นอย่างไรบ้าง",
    "สบายดีค่ะ กำลังดื่มน้ำอยู่ที่ตลาดน้ำ",
    "ราคาเท่าไหร่",
    "๕๐ บาทค่ะ ไม่แพงเลยๆ",
  ),
  "Ethiopic (am)": (
    "ሰላም፣ እንዴት ነህ? 👋🏾",
    "ደህና ነኝ፤ ቤተሰቤም ደህና ነው። 👩🏾‍👩🏾‍👧🏾‍👦🏾 🇪🇹",
    "ስንት ናችሁ?",
    "አምስት ነን ❤️‍🔥",
  ),
}
SYSTEM = "Trả lời ngắn gọn."  # of the first conversation, once more


def golden(name: str) -> str:
  """The golden file of a template: for each conversation its text, and which tokens end what is trained."""
  with tempfile.TemporaryDirectory() as folder:
    tokenizer = _tokenizer(name, pathlib.Path(folder))
  stop = tokenizer.stop_ids[0]
  conversations = {script: _messages(contents) for script, contents in SCRIPTS.items()}
  script, first = next(iter(conversations.items()))
  conversations[f"{script}, with a system text"] = [
    {"role": "system", "content": SYSTEM},
    *first,
  ]
  *_, question, _ = first
  asked = tokenizer.template.prompt(first[:-1]).split(question["content"])[1]
  lines = [
    f"A turn ends with {_token(tokenizer, stop)}. Trained are the tokens in ⟦ ⟧; {END} is the end of the text.",
    f"The model is asked to go on after {asked!r}.",
    "",
  ]
  for title, messages in conversations.items():
    text, last = marked(tokenizer, messages)
    assert all(token in tokenizer.stop_ids for token in last) and len(last) == 2, (name, title)
    ends = " and ".join(_token(tokenizer, token) for token in last)
    lines += [f"--- {title}: the answers end with {ends}, trained", text + END, ""]
  return "\n".join(lines)


def marked(tokenizer: Tokenizer, messages) -> tuple[str, list[int]]:
  """(what the tokens spell, each stretch of trained ones in ⟦ ⟧; the last token of each stretch)."""
  rendered = tokenizer.template.render(messages)
  ((ids, trained),) = tokenizer.encode_marked([rendered.text], [rendered.spans])
  edges = np.flatnonzero(np.diff(trained.astype(int), prepend=0, append=0))
  starts, ends = edges[::2], edges[1::2]
  pieces, at = [], 0
  for start, end in zip(starts, ends, strict=True):
    pieces += [tokenizer.decode(ids[at:start], False), "⟦"]
    pieces += [tokenizer.decode(ids[start:end], False), "⟧"]
    at = end
  pieces.append(tokenizer.decode(ids[at:], False))
  assert "".join(p for p in pieces if p not in "⟦⟧") == rendered.text
  return "".join(pieces), [int(ids[end - 1]) for end in ends]


def _messages(contents) -> list[dict]:
  roles = ("user", "assistant", "user", "assistant")
  return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]


def _token(tokenizer: Tokenizer, number: int) -> str:
  return f"{tokenizer.decode([number], False)} ({number})"


def _tokenizer(name: str, folder: pathlib.Path) -> Tokenizer:
  """The bundled one; else one of bytes, with the template or with the markers of a built-in one."""
  if name == "tokenizer12":
    return Tokenizer.load(str(BUNDLED), template_kwargs=KWARGS)
  kind, _, markers = name.partition("_")
  if kind == "builtin":
    write_folder(folder, tokenizer=byte_level((*FRAME, *MARKERS[markers])), eos="</s>")
    return Tokenizer.load(str(folder), template_kwargs=KWARGS)
  thinking = name == "qwen3_thinking"
  source = (TEMPLATES / f"{'qwen3' if thinking else name}.jinja").read_text(encoding="utf-8")
  write_folder(folder, tokenizer=byte_level(SPECIALS), template=source, eos="</s>")
  return Tokenizer.load(str(folder), template_kwargs={} if thinking else KWARGS)


if __name__ == "__main__":
  GOLDEN.mkdir(exist_ok=True)
  for old in GOLDEN.glob("*.txt"):
    old.unlink()
  for name in NAMES:
    (GOLDEN / f"{name}.txt").write_text(golden(name), encoding="utf-8")
