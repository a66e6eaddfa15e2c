"""Local copies in the layouts that data sets are published in: which files, which rows, which language."""

import gzip
import json
from pathlib import Path

import pytest

from mlit_jax.errors import UserError
from mlit_jax.evals.suites.copies import language_of, read_copy


def put(root: Path, name: str, rows, *, columns=()) -> Path:
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  if name.endswith(".parquet"):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
  elif name.endswith((".tsv", ".csv")):
    mark = "\t" if name.endswith(".tsv") else ","
    lines = [list(columns)] * bool(columns) + rows
    path.write_text("".join(mark.join(line) + "\n" for line in lines), encoding="utf-8")
  else:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
  return path


@pytest.mark.parametrize(
  "path, lang",
  [
    ("sw/test-00000-of-00001.parquet", "sw"),
    ("data/swh_Latn.jsonl", "sw"),
    ("mgsm_te.tsv", "te"),
    ("xquad.ar.json", "ar"),
    ("xquad.zh/validation-00000-of-00001.parquet", "zh"),
    ("val.et.jsonl", "et"),
    ("annotated/zho_Hans/test.tsv", "zh"),
    ("zho_Hant/test.jsonl.gz", "zh-Hant"),
    ("pt-BR/dev.jsonl", "pt-BR"),
    ("test.jsonl", None),
    ("data/validation.jsonl", None),
    ("de/dev/val.jsonl", "de"),
  ],
)
def test_the_path_names_the_language(path, lang):
  assert language_of(Path("root") / path, Path("root")) == lang


def test_one_split_of_a_folder_is_read_whatever_the_format(tmp_path):
  put(tmp_path, "sw/test.jsonl", [{"q": "a"}])
  put(tmp_path, "fi/test-00000-of-00001.parquet", [{"q": "b"}, {"q": "c"}])
  put(tmp_path, "he/test.tsv", [["d"]], columns=["q"])
  put(tmp_path, "hi/test.csv", [['"e, f"']], columns=["q"])
  put(tmp_path, "ru/test.jsonl.gz", [{"q": "g"}])
  put(tmp_path, "ru/train.jsonl", [{"q": "not this"}])
  put(tmp_path, "dataset_info.json", [{"q": "nor this"}])
  rows = list(read_copy(str(tmp_path)))
  assert {(r.language(), r["q"]) for r in rows} == {
    ("sw", "a"), ("fi", "b"), ("fi", "c"), ("he", "d"), ("hi", "e, f"), ("ru", "g"),
  }  # fmt: skip
  assert rows[0].place.endswith("fi/test-00000-of-00001.parquet:1")


def test_another_split_stands_in_and_a_column_of_the_language_wins(tmp_path):
  put(tmp_path, "sw/dev.jsonl", [{"q": "a", "language": "fin"}, {"q": "b"}])
  put(tmp_path, "sw/train.jsonl", [{"q": "not this"}])
  assert [(r.language(), r["q"]) for r in read_copy(str(tmp_path))] == [("fi", "a"), ("sw", "b")]


def test_quotes_of_a_tsv_are_text_and_columns_can_be_given(tmp_path):
  put(tmp_path, "mgsm_en.tsv", [['"Who', "1"], ["b", "2"]])
  rows = list(read_copy(str(tmp_path), columns=("question", "answer")))
  assert [(r["question"], r["answer"]) for r in rows] == [('"Who', "1"), ("b", "2")]


@pytest.mark.parametrize(
  "make, says",
  [
    (lambda p: None, "no files of rows"),
    (lambda p: put(p, "en/test.jsonl", [[1]]), "test.jsonl:1: 1 is no object"),
    (lambda p: (p / "en.jsonl").write_text("{broken\n"), "en.jsonl:1: broken JSON"),
    (lambda p: put(p, "en/test.tsv", [["a", "b"]], columns=["q"]), "2 fields, but 1 columns"),
    (lambda p: put(p, "test.jsonl", [{"q": 1}]), "neither a column"),
    (lambda p: put(p, "test.jsonl", [{"q": 1, "lang": "klingonese"}]), "klingonese"),
    (lambda p: put(p, "en/test.jsonl", [{"other": 1}]), "has no column 'q'; it has other"),
  ],
)
def test_bad_copies_are_named(tmp_path, make, says):
  make(tmp_path)
  with pytest.raises(UserError, match=".*") as e:
    for row in read_copy(str(tmp_path)):
      row.language(), row["q"]
  assert says in str(e.value)
