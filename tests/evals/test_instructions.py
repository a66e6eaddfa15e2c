"""Every checkable instruction on answers whose verdict is plain to a reader, in several scripts."""

import pytest

from mlit_jax.errors import UserError
from mlit_jax.evals.suites import local_instructions
from mlit_jax.evals.suites.counting import capital_words, sentences, words
from mlit_jax.evals.suites.instructions import known_ids, loose_variants, read_instruction

LESS, LEAST = {"relation": "less than"}, {"relation": "at least"}
ENGLISH = "the old bridge over the river was closed for two weeks because of the heavy rain"
FINNISH = "Vanha silta joen yli oli suljettuna kaksi viikkoa rankkojen sateiden vuoksi."
SPANISH = "El viejo puente sobre el río estuvo cerrado dos semanas por las fuertes lluvias."
FRENCH = "Le vieux pont sur la rivière est resté fermé deux semaines à cause des fortes pluies."
HINDI = "भारी बारिश के कारण नदी पर बना पुराना पुल दो सप्ताह तक बंद रहा।"

# id, what it names, {answer: followed?}
CASES = [
  ("keywords:existence", {"keywords": ["Bridge", "river"]}, {"A RIVERSIDE bridge": True, "a bridge": False}),
  ("keywords:existence", {"keywords": ["c++ (old)"]}, {"about C++ (OLD)": True, "about c": False}),
  ("keywords:existence", {"keywords": ["мост", "река"]}, {"МОСТ и Река": True, "мост и реки": False}),
  ("keywords:existence", {"keywords": ["橋"]}, {"古い橋がある": True, "はし": False}),
  ("keywords:frequency", {"keyword": "el", "frequency": 2, **LEAST}, {"El agua, el río": True, "El agua": False}),
  ("keywords:frequency", {"keyword": "पुल", "frequency": 2, **LESS}, {"पुल": True, "पुल पुल": False}),
  ("keywords:forbidden_words", {"forbidden_words": ["art", "war"]}, {"start a party": True, "no ART": False}),
  ("keywords:forbidden_words", {"forbidden_words": ["है"]}, {"हैं": True, "वह है": False}),
  ("keywords:forbidden_words", {"forbidden_words": ["桥"]}, {"河很宽": True, "老桥很长": False}),
  ("keywords:forbidden_words", {"forbidden_words": ["שלום"]}, {"בשלום": True, "שלום!": False}),
  ("keywords:letter_frequency", {"letter": "E", "let_frequency": 3, "let_relation": "at least"}, {"eEe": True, "ee": False}),
  ("keywords:letter_frequency", {"letter": "é", "let_frequency": 2, "let_relation": "less than"}, {"e\u0301 e": True, "É e\u0301": False}),
  ("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": "at least"}, {"no! no!": True, "no!": False}),
  ("keywords:letter_frequency", {"letter": "ж", "let_frequency": 2, "let_relation": "at least"}, {"Жжение": True, "Жизнь": False}),
  ("language:response_language", {"language": "fi"}, {FINNISH: True, ENGLISH: False, "kala on vene": False, "xyz": False, "123": False, f"{ENGLISH}.\n{FINNISH}": False}),
  ("language:response_language", {"language": "hi"}, {HINDI: True, f'{HINDI} क्या तुमने "The Secret Life of the Old Bridge" पढ़ी है?': True, "Bhaari baarish ke kaaran": False}),
  ("length_constraints:number_sentences", {"num_sentences": 3, **LEAST}, {"Dr. No came. He saw e.g. us. Gone!": True, "At 3.30 p.m. we left. Yes.": False}),
  ("length_constraints:number_sentences", {"num_sentences": 2, **LESS}, {"一个句子。": True, "一个！两个？": False}),
  ("length_constraints:number_sentences", {"num_sentences": 2, **LEAST}, {"यह है। वह है।": True, "هل هذا؟ نعم.": True, "यह है।": False}),
  ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, {"a\n***\nb": True, "***\na *** b\n***": True, "a": False, "a\n***\n***\nb": False}),
  ("length_constraints:number_words", {"num_words": 4, **LEAST}, {"I don't know": True, "three words only": False}),
  ("length_constraints:number_words", {"num_words": 5, **LESS}, {"किताब मेज पर है": True, "老桥很长吗": False, "می‌خواهم بروم": True}),
  ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weather"}, {"a\n\n“WEATHER, b": True, "a\n\n\n\nweather": True, "a\n\nweathered": False, "weather\n\na": False, "a\n\nweather\n\nb": False}),
  ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "天气"}, {"天气很好": True, "好天气": False}),
  ("detectable_content:number_placeholders", {"num_placeholders": 2}, {"[a] [b c]": True, "［名前］と［住所］": True, "[a\nb] [c]": False}),
  ("detectable_content:postscript", {"postscript_marker": "P.S."}, {"a\nP.S. b": True, "a. p. s. b": True, "PS b": False, "grp.s. b": False}),
  ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, {"P.P.S. a": True, "p.p.s a": True, "P.S. a": False}),
  ("detectable_format:number_bullet_lists", {"num_bullets": 2}, {"* a\n* b": True, "- a\n  + b": True, "- a\n* * *\n---\n- b": True, "*so* it is\n* a": False, "- a\n- b\n- c": False, "- a\n-5 b": False}),
  ("detectable_format:constrained_response", {}, {"My answer is maybe.": True, "Well. My answer is no. Why?": True, "My answer is yes": False}),
  ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, {"*a* and **b c**": True, "***a*** *б*": True, "* a\n* b": False, "** ** *a*": False, "2 * 3 * 4 * 5": False}),
  ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2}, {"Section 1\na\nSection 2\nb": True, "Section ١ a Section ٢": True, "Section A Section B": False}),
  ("detectable_format:json_format", {}, {'{"a": "б"}': True, '```JSON\n["a"]\n```': True, "a: 1": False, "[" * 100_000: False}),
  ("detectable_format:title", {}, {"<<ода радости>>\nda": True, "<< >>": False, "<a>": False, "<<a\nb>>": False}),
  ("combination:two_responses", {}, {"a\n******\nb": True, "******a******b******": True, "a******a": False, "a": False, "a******b******c": False}),
  ("combination:repeat_prompt", {"prompt_to_repeat": " Why is it\nSO? "}, {"why is it\nso? Because.": True, "Well, why is it\nso?": False}),
  ("combination:repeat_prompt", {"prompt_to_repeat": "كم عمرك؟"}, {"كم عمرك؟ عشرة": True, "عشرة": False}),
  ("startend:end_checker", {"end_phrase": "Any other questions?"}, {'"No. ANY other questions?"': True, "Any other questions? Yes": False}),
  ("startend:end_checker", {"end_phrase": "谢谢。"}, {"好的，谢谢。」": True, "谢谢。好": False}),
  ("startend:quotation", {}, {'"a"': True, " „а“ ": True, "«а»": True, "「あ」": True, '"a': False, '"': False, "'a'": False}),
  ("change_case:english_capital", {}, {ENGLISH.upper(): True, ENGLISH: False, FINNISH.upper(): False}),
  ("change_case:english_lowercase", {}, {ENGLISH: True, ENGLISH.capitalize(): False, FINNISH.lower(): False}),
  ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, {"NASA's UTF-8": True, "США и ЕС": True, "ΕΛΛΑΔΑ": False, "北京 上海": False}),
  ("punctuation:no_comma", {}, {"a; b.": True, "a, b": False, "أ، ب": False, "一、二": False, "一，二": False}),
  ("es:change_case:spanish_capital", {}, {SPANISH.upper(): True, SPANISH: False, ENGLISH.upper(): False}),
  ("es:change_case:spanish_lowercase", {}, {SPANISH.lower(): True, SPANISH: False}),
  ("es:punctuation:question_marks", {}, {"¿Qué? Sí.": True, "Qué?": False, "¿ ?": False}),
  ("es:punctuation:exclamation_marks", {}, {"¡Sí!": True, "Sí!": False, "¡¡!!": False}),
  ("es:special_character:enie", {"let_frequency": 2}, {"Niño y AÑO": True, "nin\u0303o ñoño": True, "niño": False}),
  ("es:special_character:dieresis", {"let_frequency": 1}, {"El pingüino": True, "la vergüenza del pingüino": False}),
  ("es:special_character:tildes", {"num_words": 2, "relation": "al menos"}, {"Él está aquí": True, "Él es": False, "años": False}),
  ("es:special_character:tildes", {"num_words": 1, "relation": "como máximo"}, {"Él es": True, "Él está": False}),
  ("es:length_constraints:number_words", {"num_words": 2, "relation": "como máximo"}, {"1. uno\n2. dos": True, "uno 2 dos": False}),
  ("es:startend:end_checker", {"end_phrase": "Un saludo"}, {"Gracias. Un saludo.": True, "Un saludo a todos": False}),
  ("es:detectable_format:constrained_response", {}, {"Quizás.": True, "Quizá": False}),
  ("es:length_constraints:nth_paragraph_first_word", {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "En mi opinión"}, {"En mi opinión, sí": True, "En mi casa": False}),
  ("fr:change_case:french_capital", {}, {FRENCH.upper(): True, FRENCH: False}),
  ("fr:change_case:french_lowercase", {}, {FRENCH.lower(): True, ENGLISH: False}),
  ("fr:change_case:capital_word_frequency", {"capital_frequency": 1, "capital_relation": "moins de"}, {"C'est ça": True, "L'ONU et l'OTAN ou UE": False}),
  ("fr:special_character:ethel_or_cedilla", {"forbidden_char": "œ"}, {"oeuf, ça": True, "Œuf": False}),
  ("fr:special_character:no_accents", {}, {"Un ete \u2764\ufe0f": True, "Un été": False, "garc\u0327on": False}),
  ("fr:special_character:accents", {"word_to_accentuate": {"ecole": "école", "a": "à"}}, {"À l'école": True, "Il va à l'école": True, "Ecole à": False, "Non.": False}),
  ("fr:detectable_content:informal_address", {}, {"Que veux-tu ?": True, "Je t’aime": True, "Vous tuez": False}),
  ("fr:detectable_content:no_digits", {}, {"vingt": True, "20": False, "٢٠": False}),
  ("fr:startend:quotation", {}, {"« Oui »": True, "'Oui'": True, "Oui": False}),
  ("fr:detectable_format:title", {}, {"## Été ##": True, "## Été": False, "####": False}),
  ("fr:startend:end_checker", {"end_phrase": "D'autres questions ?"}, {"Voilà. D'autres questions\u202f?": True, "D'autres": False}),
  ("fr:detectable_content:postscript", {"postscript_marker": "PS"}, {"Voilà.\nPS : oui": True, "le corps humain": False}),
  ("ja:keywords:letter_frequency", {"letter": "し", "let_frequency": 2, "let_relation": "以上"}, {"しシ": True, "ｼしか": True, "しか": False, "じじ": False}),
  ("ja:length_constraints:number_letters", {"num_letters": 4, "relation": "未満"}, {"あ い\nう": True, "あいうえ": False}),
  ("ja:length_constraints:number_sentences", {"num_sentences": 2, "relation": "以上"}, {"はい\nいいえ": True, "はい。": False}),
  ("ja:detectable_format:number_numbered_lists", {"num_items": 2}, {"1. あ\n２．い": True, "1. あ": False, "3.14 あ\n1. い": False}),
  ("ja:detectable_format:number_highlighted_sections", {"num_highlights": 1}, {"《橋》": True, "《》*橋*": False}),
  ("ja:detectable_format:number_bullet_lists", {"num_bullets": 2}, {"・あ\n・ い": True, "* あ\n* い": False}),
  ("ja:detectable_format:multiple_sections", {"section_spliter": "章", "num_sections": 2}, {"第1章 あ\n第２章 い": True, "第一章\n第二章": True, "章\n章": False}),
  ("ja:detectable_format:title", {}, {"『橋』": True, "『』「橋」": False}),
  ("ja:detectable_format:constrained_response", {}, {"はい、そうです。": True, "はい": False}),
  ("ja:startend:quotation", {}, {"「はい」": True, '"はい"': False}),
  ("ja:startend:sentence_unified_end", {"ending": "です"}, {"橋です。彼は「行く。」と言う人です！\n": True, "橋です。長い。": False, "。": False}),
  ("ja:letters:furigana", {}, {"古（ふる）い橋(はし)": True, "古（ふる）い橋": False, "時々（ときどき）": True, "時（とき）々": False}),
  ("ja:letters:kanji", {"kanji_limit": 3, "relation": "以上"}, {"古い木橋": True, "古い橋": False}),
  ("ja:letters:kansuuji", {}, {"二十年": True, "20年": False, "２０年": False}),
  ("ja:letters:no_katakana", {}, {"はし": True, "ハシ": False, "ﾊｼ": False}),
  ("ja:letters:katakana_only", {}, {"ハシー、1ツ。": True, "ハシは": False, "123": False}),
  ("ja:letters:no_hiragana", {}, {"橋ハ長シ": True, "橋は": False}),
  ("ja:letters:hiragana_only", {}, {"はしー。1": True, "はシ": False, "bridge": False}),
  ("ja:punctuation:no_period", {}, {"はい": True, "はい。": False, "はい｡": False}),
  ("ja:punctuation:no_comma", {}, {"1,000円。": True, "はい、": False, "はい，": False}),
]  # fmt: skip
FLAT = [
  (name, given, answer, right)
  for name, given, answers in CASES
  for answer, right in answers.items()
]


@pytest.mark.parametrize(
  "name, given, answer, right", FLAT, ids=[f"{c[0]}-{i}" for i, c in enumerate(FLAT)]
)
def test_verdict(name, given, answer, right):
  assert read_instruction(name, given, "here").follows(answer) == right


def test_nouns_at_the_end_of_japanese_sentences():
  pytest.importorskip("fugashi")
  pytest.importorskip("unidic_lite")
  twice = read_instruction("ja:detectable_format:nominal_ending", {"count": 2}, "here")
  assert twice.follows("長い橋。古い町！橋は長い。")
  assert not twice.follows("長い橋。彼は「古い町。」と言った。")


def test_nouns_cannot_be_told_without_their_library(monkeypatch):
  monkeypatch.setattr(local_instructions, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"x.jsonl:3.*pip install 'mlit_jax\[fidelity\]'"):
    read_instruction("ja:detectable_format:nominal_ending", {"count": 2}, "x.jsonl:3")


def test_every_instruction_has_cases():
  tested = {name for name, _, _ in CASES} | {"ja:detectable_format:nominal_ending"}
  shared = {f"{p}:{n}" for p in ("es", "fr", "ja") for n in known_ids() if n.count(":") == 1}
  assert set(known_ids()) - shared <= tested
  assert len([n for n in known_ids() if n.count(":") == 1]) == 25
  assert (
    len(known_ids()) == 25 + 30 + 30 + 35
  )  # es, fr, ja; the data of ja count no words and capitals


@pytest.mark.parametrize("answer", ["", " \n\t", "\u3000"])
def test_an_empty_answer_follows_nothing(answer):
  for name, given, _ in CASES:
    instruction = read_instruction(name, given, "here")
    assert not instruction.follows(answer) and not instruction.follows_loosely(answer), name


def test_the_eight_loose_variants():
  assert loose_variants("*a*\nb\n c*") == [
    "*a*\nb\n c*",
    "b\n c*",
    "*a*\nb",
    "b",
    "a\nb\n c",
    "b\n c",
    "a\nb",
  ]
  assert loose_variants("*a*") == ["*a*", "", "a"]


@pytest.mark.parametrize(
  "name, given, answer",
  [
    ("startend:quotation", {}, 'Here it is:\n"Yes."'),
    ("startend:end_checker", {"end_phrase": "Да."}, "Да.\n(Конец)"),
    ("keywords:existence", {"keywords": ["мост и река"]}, "*мост* и *река*"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 1}, "Sure!\n***\nद्वार\n***\nBye"),
    ("detectable_format:json_format", {}, "**JSON:**\n[1]\n*done*"),
    ("punctuation:no_comma", {}, "Sure, here:\nनमस्ते"),
  ],
)
def test_loosely_followed_only(name, given, answer):
  instruction = read_instruction(name, given, "here")
  assert not instruction.follows(answer) and instruction.follows_loosely(answer)


@pytest.mark.parametrize(
  "name, given, says",
  [
    ("keywords:love", {}, "the instruction 'keywords:love' is not known; known are keywords:existence, "),
    ("es:letters:kanji", {}, "the instruction 'es:letters:kanji' is not known"),
    ("length_constraints:number_words", {"num_words": 3}, "names no relation"),
    ("length_constraints:number_words", {"num_words": 3.5, **LESS}, "num_words is 3.5; it must be a whole number"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "about"}, "relation is 'about'; it must be one of less than"),
    ("keywords:existence", {"keywords": [" "]}, "keywords is [' ']; it must be texts"),
    ("keywords:frequency", {"keyword": " ", "frequency": 1, **LESS}, "keyword is ' '; it must be a text"),
    ("language:response_language", {"language": "tlh-x"}, "tlh-x"),
  ],
)  # fmt: skip
def test_what_is_unknown_or_missing_is_refused(name, given, says):
  with pytest.raises(UserError) as e:
    read_instruction(name, given, "x.jsonl:7")
  assert says in str(e.value) and str(e.value).startswith("x.jsonl:7")


def test_nulls_and_counts_of_tables():
  given = {"num_words": 3.0, "relation": "at least", "keywords": None, "letter": ""}
  assert read_instruction("length_constraints:number_words", given, "").given == {
    "num_words": 3,
    **LEAST,
  }


@pytest.mark.parametrize(
  "text, wanted",
  [
    ("don't 北京 2008", ["don", "t", "北", "京", "2008"]),
    ("किताब है", ["किताब", "है"]),
    ("می‌خواهم", ["می‌خواهم"]),
    ("דו״ח", ["דו", "ח"]),
    ("น้ำดี", ["น้", "ำ", "ดี"]),
    ("ラーメン", ["ラ", "ー", "メ", "ン"]),
  ],
)
def test_words(text, wanted):
  assert words(text) == wanted


@pytest.mark.parametrize(
  "text, count",
  [
    ("Hello there. Dr. Smith came.", 2),
    ("It cost 3.50 in the U.S. and more. The U.S. The end.", 3),
    ("Wait... what? No!", 2),
    ("See No. 5. No. I won't.", 3),
    ('He said "Go." Then left.', 2),
    ("La Sra. Gil vive en EE. UU. desde 2001.", 1),
    ("«Привет!» Да. Т. е. нет.", 3),
    ("你好。“走吧！”他说。好", 4),
    ("क्या? हाँ।नहीं।", 3),
    ("مرحبا؟ نعم۔ شكرا.", 3),
    ("สวัสดีครับ\nสบายดี", 2),
    ("Title\n\nOne sentence.", 1),
    ("!!! ...", 0),
  ],
)
def test_sentences(text, count):
  assert len(sentences(text)) == count


def test_capital_words():
  assert capital_words("NASA's I'm C'est ΕΛΛΑΔΑ DON'T Abc U.S. 42 ſ") == [
    "NASA",
    "I",
    "ΕΛΛΑΔΑ",
    "DON'T",
    "U.S",
  ]
