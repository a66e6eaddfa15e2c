"""Characters that no text should hold, and answers that hold no text."""

import re

import regex

# Never part of a text: C0 and C1 but tab and line ends; what replaces bytes that could not be read;
# a byte order mark; annotation and deprecated format characters; private use; noncharacters.
NEVER = (
  r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
  r"\ufffc\ufffd\ufeff\ufff9-\ufffb\u206a-\u206f"
  r"\ue000-\uf8ff\U000f0000-\U0010ffff"
  r"\ufdd0-\ufdef\ufffe\uffff"
)
BIDI = r"\u202a-\u202e\u2066-\u2069"  # right as pairs: an opening one and the one that closes it
TAGS = r"\U000e0000-\U000e007f"  # right in the flags of England, Scotland and Wales

_SUSPECT = re.compile(f"[{NEVER}{BIDI}{TAGS}]")
_NEVER = re.compile(f"[{NEVER}{TAGS}]")
_BIDI = re.compile(f"[{BIDI}]")
_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f")
_EMBEDDINGS, _ISOLATES = "\u202a\u202b\u202d\u202e", "\u2066\u2067\u2068"
_CLOSES = {"\u202c": _EMBEDDINGS, "\u2069": _ISOLATES}

# Letters, digits and symbols (an emoji is an answer), but not those that show nothing.
_SHOWN = regex.compile(r"(?V1)[[\p{L}\p{N}\p{S}]--\p{Default_Ignorable_Code_Point}--\u2800]")


def has_control_characters(text: str) -> bool:
  """Whether the text holds a character of NEVER, a tag outside a flag, or an unpaired bidi control.

  Joiners (Indic, Persian, emoji), variation selectors, direction marks, soft hyphens and zero-width
  spaces are text.
  """
  if not _SUSPECT.search(text):
    return False
  return bool(_NEVER.search(_FLAG.sub("", text))) or _has_unpaired_bidi(text)


def says_nothing(text: str) -> bool:
  """Whether there is only punctuation, white space and what shows nothing."""
  return not _SHOWN.search(text)


def _has_unpaired_bidi(text: str) -> bool:
  open_ones = []
  for control in _BIDI.findall(text):
    if control not in _CLOSES:
      open_ones.append(control)
    elif not open_ones or open_ones.pop() not in _CLOSES[control]:
      return True
  return bool(open_ones)
