import pytest

from mlit_jax.data.languages import normalise_tag
from mlit_jax.errors import UserError


@pytest.mark.parametrize(
  "tag, normal",
  [
    ("en", "en"), ("EN", "en"), (" en ", "en"), ("eng", "en"), ("eng_Latn", "en"), ("english", "en"), ("English", "en"),
    ("en-US", "en-US"), ("en_us", "en-US"), ("pt-BR", "pt-BR"), ("pt_br", "pt-BR"),
    ("zho-CN", "zh"), ("zh-cn", "zh"), ("zh-Hans", "zh"), ("zh-Hans-CN", "zh"), ("cmn_Hans", "zh"), ("Chinese", "zh"),
    ("zh-Hant", "zh-Hant"), ("zho_Hant", "zh-Hant"), ("zh-TW", "zh-Hant"), ("zh-HK", "zh-Hant-HK"), ("yue", "yue"),
    ("sr_Latn", "sr-Latn"), ("sr-Cyrl", "sr"), ("uzn_Latn", "uz"), ("hin_Deva", "hi"),
    ("arb", "ar"), ("arb_Arab", "ar"), ("Standard Arabic", "ar"), ("arz", "arz"),
    ("iw", "he"), ("heb", "he"), ("swh_Latn", "sw"), ("Swahili", "sw"), ("swa", "sw"), ("ekk_Latn", "et"), ("est", "et"),
    ("ces", "cs"), ("czech", "cs"), ("fin", "fi"), ("ita_Latn", "it"), ("rus_Cyrl", "ru"), ("spa", "es"), ("spanish", "es"),
    ("pes", "fa"), ("Persian", "fa"), ("nob", "nb"), ("tl", "fil"), ("Modern Greek", "el"), ("Serbo-Croatian", "sr-Latn"),
  ],
)  # fmt: skip
def test_one_spelling_for_each_language(tag, normal):
  assert normalise_tag(tag) == normal
  assert normalise_tag(normal) == normal


@pytest.mark.parametrize(
  "tag, nearest",
  [("englsh", "'en' .english."), ("engl", "'en'"), ("fnnish", "'fi' .finnish."), ("sw_Lant", "'sw'"), ("en-latin", "'en'"),
   ("xx", "'xh'"), ("klingonn", "'tlh'"), ("und", ""), ("mul", "")],
)  # fmt: skip
def test_an_unknown_tag_is_refused_with_the_nearest_known_one(tag, nearest):
  with pytest.raises(UserError, match=f"'{tag}' is not a language.*Did you mean {nearest}"):
    normalise_tag(tag)


@pytest.mark.parametrize("tag", ["", "  ", None, 7])
def test_what_is_no_tag_at_all(tag):
  with pytest.raises(UserError, match="is not a language tag"):
    normalise_tag(tag)
