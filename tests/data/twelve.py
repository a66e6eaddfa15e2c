"""Text in twelve languages for the tests of rows, chat and tokenizers, and a small tokenizer to read it."""

import json

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

# Arabic and Hebrew with vowel signs, Hindi with conjuncts, Chinese without spaces, emoji of
# several code points,
# letters in composed and decomposed form, and indentation.
ASKED = {
  "ar": "مَرْحَبًا، كيف حالك اليوم؟",
  "cs": "Příliš žluťoučký kůň úpěl ďábelské ódy?",
  "en": "How do I sort a list in Python?",
  "es": "¿Cómo estás, señor Núñez?",
  "et": "Kus on jäääär ja öötöö?",
  "fi": "Mitä kuuluu, Äiti?  Hyvää yötä",
  "he": "שָׁלוֹם, מה שלומך? (טוב)",
  "hi": "क्षत्रिय और ज्ञान का अर्थ क्या है?",
  "it": "Perché è così? Cafe\u0301 o caffè?",
  "ru": "Как дела? Съешь же ещё этих мягких булок.",
  "sw": "Habari ya asubuhi, ng'ombe wako wapi?",
  "zh": "你好，今天天气怎么样？",
}
ANSWERED = {
  "ar": "أنا بخير، شُكْرًا 🌙",
  "cs": "Řeřicha roste na břehu.",
  "en": "for x in xs:\n        print(x)\n\n    done 👩‍👩‍👧‍👦",
  "es": "Muy bien; ¡gracias!",
  "et": "Jäääärel on õunapuu.",
  "fi": "Hyvää kuuluu.\n\nEntä sinulle?",
  "he": "הכול בסדר, תודה 🇮🇱",
  "hi": "क्षि, त्र, ज्ञ — संयुक्ताक्षर हैं।",
  "it": "Così fan tutte…",
  "ru": "Всё хорошо — ёлка зелёная.",
  "sw": "Nzuri sana, asante.",
  "zh": "很好，谢谢。𠮷野家",
}
LANGUAGES = tuple(sorted(ASKED))
SPECIALS = (
  "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
  "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]",
)  # fmt: skip


def conversation(lang, *, system=False, turns=1):
  """Messages of one conversation; later turns swap what is asked and answered, so that lengths differ."""
  messages = [{"role": "system", "content": f"({lang}) " + ANSWERED[lang]}] if system else []
  for i in range(turns):
    pair = (ASKED[lang], ANSWERED[lang]) if i % 2 == 0 else (ANSWERED[lang], ASKED[lang])
    messages.append({"role": "user", "content": pair[0]})
    messages.append({"role": "assistant", "content": pair[1]})
  return messages


def byte_level(specials=SPECIALS) -> tokenizers.Tokenizer:
  """A byte-level BPE of a few hundred merges, with the post-processor that published ones have."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=600,
    special_tokens=list(specials),
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator([*ASKED.values(), *ANSWERED.values()] * 3, trainer)
  # Frames a text by <s>, and cuts white space out of the offsets, as Llama 3's does.
  frame = processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
  )
  tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), frame])
  return tokenizer


def write_folder(folder, *, tokenizer=None, template=None, eos="<|im_end|>", **config):
  """A Hugging Face tokenizer folder."""
  folder.mkdir(parents=True, exist_ok=True)
  (tokenizer or byte_level()).save(str(folder / "tokenizer.json"))
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": eos, "pad_token": "<pad>",
    "clean_up_tokenization_spaces": False,
  } | config  # fmt: skip
  (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
  if template is not None:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
  return folder
