import pytest

from mlit_jax.detect import GROUPS, accepted_languages, own_names
from mlit_jax.detectors.labels import language_of_label


@pytest.mark.parametrize(
  "labels, language",
  [
    (["ru", "rus_Cyrl", "__label__ru", "__label__rus_Cyrl"], "ru"),
    (["zh", "zho_Hans", "zho_Hant", "cmn_Hani", "__label__zh"], "zh"),
    (["ar", "arb_Arab"], "ar"),
    (["sw", "swh_Latn"], "sw"),
    (["et", "ekk_Latn"], "et"),
    (["sr", "srp_Cyrl", "srp_Latn", "sh"], "sr"),
    (["ms", "zsm_Latn"], "ms"),
    (["he", "iw", "heb_Hebr"], "he"),
    (["sq", "als_Latn"], "sq"),
    (["als", "gsw_Latn"], "gsw"),
    (["tl", "fil_Latn", "tgl_Latn"], "fil"),
    (["nob_Latn", "nb"], "nb"),
    (["zxx_Zzzz"], "zxx_Zzzz"),
    (["und_Latn"], "und_Latn"),
  ],
)
def test_one_language_whatever_it_is_called(labels, language):
  assert {language_of_label(label) for label in labels} == {language}


@pytest.mark.parametrize(
  "tag, also, not_even",
  [
    ("hr", {"hr", "sr", "bs", "sh", "cnr"}, "sl"),
    ("sr-Latn", {"hr", "sr", "bs"}, "sl"),
    ("id", {"id", "ms"}, "jv"),
    ("no", {"no", "nb", "nn", "da"}, "sv"),
    ("nb", {"no", "nb", "nn", "da"}, "sv"),
    ("zh-Hant", {"zh", "yue", "wuu"}, "ja"),
    ("arb", {"ar", "arb"}, "fa"),
    ("fi", {"fi"}, "et"),
  ],
)
def test_groups(tag, also, not_even):
  known = frozenset({"hr", "sr", "id", "no", "zh", "ar", "fi"})
  accepted = accepted_languages([tag], known)[tag]
  assert also <= accepted and not_even not in accepted


def test_no_language_is_in_two_groups():
  members = [member for group in GROUPS for member in group]
  assert len(members) == len(set(members))
  assert own_names("fil") == {"fil", "tl"}
