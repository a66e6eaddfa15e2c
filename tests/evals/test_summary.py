import dataclasses
import io
import json
import math
import os

import pytest
from rich.console import Console

from mlit_jax.detect import LanguageDetector
from mlit_jax.evals.summary import (
  Record,
  flatten,
  generation_rows,
  score_responses,
  summarise,
  table,
  write_evaluation,
)


def likelihoods(lang, sums, *, set="dev", group=lambda i: None):
  return [
    Record(set, lang, f"{i}", group_id=group(i), nll=nll, tokens=tokens, bytes=num_bytes)
    for i, (nll, tokens, num_bytes) in enumerate(sums)
  ]


def generations():
  def record(lang, i, response, reference, stopped):
    return Record(
      "chat",
      lang,
      f"{lang}{i}",
      group_id=str(i),
      prompt=f"p{i}",
      response=response,
      reference=reference,
      stopped=stopped,
      response_tokens=len(response.split()),
    )

  return [
    record("fi", 0, "Museossa kannattaa käydä aamulla.", "Museossa kannattaa käydä aamulla.", True),
    record("fi", 1, "", "Kiitos paljon avusta.", True),
    record("sw", 0, "It is best to visit the museum in the morning.", "Tembelea asubuhi.", False),
    record("sw", 1, "Asante sana kwa msaada wako wote.", None, True),
  ]


def test_every_metric_by_hand():
  records = likelihoods("fi", [(2.0, 1, 4), (9.0, 9, 12)]) + likelihoods("sw", [(6.0, 2, 3)])
  summary = summarise(records)["dev"]
  assert list(summary) == ["fi", "sw", "mean", "worst"]
  loss = {lang: figures["loss"] for lang, figures in summary.items()}
  assert loss["fi"]["value"] == pytest.approx(1.1)  # tokens weigh, not examples
  assert loss["fi"]["n"] == 2 and loss["fi"]["low"] <= 1.1 <= loss["fi"]["high"]
  assert loss["sw"] == {"value": 3.0, "n": 1, "low": None, "high": None}
  assert loss["mean"]["value"] == pytest.approx((1.1 + 3.0) / 2)  # languages weigh the same
  assert loss["mean"]["n"] == 3
  assert loss["worst"] == {**loss["sw"], "lang": "sw"}
  assert summary["fi"]["bits_per_byte"]["value"] == pytest.approx(11 / math.log(2) / 16)
  assert summary["worst"]["bits_per_byte"]["lang"] == "sw"
  assert "fidelity" not in summary["fi"]


def test_generations_are_scored_and_empty_answers_fail():
  summary = summarise(score_responses(generations(), LanguageDetector(["fi", "sw"])))["chat"]
  names = {"fidelity", "coverage", "line_pass", "stopped", "chrf", "exact"}
  assert set(summary["fi"]) == names  # Latin words are looked for in other scripts
  assert summary["fi"]["coverage"]["value"] == 0.5 and summary["sw"]["coverage"]["value"] == 1.0
  assert summary["fi"]["line_pass"]["value"] == 1.0 and summary["fi"]["line_pass"]["n"] == 1
  assert summary["fi"]["fidelity"]["value"] == 0.5  # the empty answer counts
  assert summary["sw"]["fidelity"]["value"] == 0.5  # the English one fails
  assert summary["fi"]["stopped"]["value"] == 1.0
  assert summary["worst"]["stopped"]["value"] == 0.5 and summary["worst"]["stopped"]["lang"] == "sw"
  assert summary["fi"]["chrf"]["value"] == pytest.approx(50.0)
  assert summary["fi"]["exact"] == pytest.approx({**summary["fi"]["exact"], "value": 0.5, "n": 2})
  assert summary["sw"]["exact"]["n"] == summary["sw"]["chrf"]["n"] == 1  # no reference, no overlap
  assert summary["worst"]["chrf"]["lang"] == "sw"
  assert summary["mean"]["fidelity"]["n"] == 4


def test_without_a_detector_fidelity_is_not_measured():
  summary = summarise(score_responses(generations(), None))["chat"]
  assert set(summary["mean"]) == {"stopped", "chrf", "exact"}


def test_worst_names_the_first_of_equals_and_the_broken_before_all():
  records = likelihoods("sw", [(2.0, 1, 1)]) + likelihoods("fi", [(2.0, 1, 1)])
  assert summarise(records)["dev"]["worst"]["loss"]["lang"] == "fi"
  records += likelihoods("it", [(math.nan, 1, 1), (1.0, 1, 1)])
  summary = summarise(records)["dev"]
  assert summary["it"]["loss"] == {"value": None, "n": 2, "low": None, "high": None}
  assert summary["worst"]["loss"] == {**summary["it"]["loss"], "lang": "it"}
  assert summary["mean"]["loss"]["value"] is None and summary["mean"]["loss"]["n"] == 4
  json.dumps(summary, allow_nan=False)


def test_parallel_groups_are_resampled_together():
  sums = [(float(i % 7) ** 2, 1, 1) for i in range(60)]
  width = {}
  for name, group in (("together", lambda i: f"g{i}"), ("apart", lambda i: None)):
    records = [r for lang in ("ar", "fi", "he", "zh") for r in likelihoods(lang, sums, group=group)]
    mean = summarise(records)["dev"]["mean"]["loss"]
    width[name] = mean["high"] - mean["low"]
  assert width["together"] == pytest.approx(2 * width["apart"], rel=0.2)


def test_several_examples_of_a_group_add_up():
  records = likelihoods("fi", [(1.0, 1, 1), (5.0, 3, 1)], group=lambda i: "g")
  mean = summarise(records)["dev"]["mean"]["loss"]
  assert (mean["value"], mean["n"]) == (pytest.approx(1.5), 2)


def test_order_of_records_does_not_matter():
  records = [r for lang in ("sw", "fi") for r in likelihoods(lang, [(1.0, 2, 3), (4.0, 5, 6)])]
  assert list(summarise(records)["dev"]) == list(summarise(records[::-1])["dev"])


def test_flat_names():
  summary = summarise(likelihoods("sr-Latn", [(2.0, 1, 4)]))
  assert flatten(summary) == pytest.approx(
    {
      f"eval/dev/{lang}/{metric}": value
      for lang in ("sr-Latn", "mean", "worst")
      for metric, value in (("loss", 2.0), ("bits_per_byte", 0.5 / math.log(2)))
    }
  )


def test_table_shows_every_language_and_metric():
  records = score_responses(generations(), LanguageDetector(["fi", "sw"]))
  records += likelihoods("fi", [(2.0, 1, 4), (9.0, 9, 12)], set="chat")
  console = Console(width=200, record=True, file=io.StringIO())
  console.print(table(summarise(records), "chat"))
  lines = console.export_text().splitlines()
  header = next(line for line in lines if "language" in line)
  assert all(m in header for m in ("loss", "bits_per_byte", "fidelity", "stopped", "chrf", "exact"))
  fi, sw, mean, worst = [
    next(line for line in lines if f" {name} " in line[:14])
    for name in ("fi", "sw", "mean", "worst")
  ]
  assert "1.100" in fi and "1.100" in mean and "1.100" not in sw
  assert "50.0" in fi
  assert "fi 1.100" in worst and "sw 0.500" in worst


def test_files(tmp_path):
  records = score_responses(generations(), None)
  records[0] = dataclasses.replace(records[0], prompt="שלום 你好 \ud83d")  # half an emoji
  summary = summarise(records + likelihoods("fi", [(2.0, 1, 4)]))
  folder = tmp_path / "evals" / "20"
  write_evaluation(folder, summary, records, model="runs/a@20")
  assert sorted(p.name for p in folder.iterdir()) == ["chat.json", "dev.json", "generations.jsonl"]
  assert json.loads((folder / "dev.json").read_text("utf-8")) == summary["dev"]
  lines = (folder / "generations.jsonl").read_text("utf-8").splitlines()
  assert [json.loads(line) for line in lines] == generation_rows(records, "runs/a@20")
  assert "שלום 你好" in lines[0]  # readable, not escaped
  assert json.loads(lines[3]) == {
    "id": "sw1",
    "lang": "sw",
    "prompt": "p1",
    "response": "Asante sana kwa msaada wako wote.",
    "stopped": True,
    "tokens": 6,
    "model": "runs/a@20",
    "set": "chat",
    "group_id": "1",
  }
  first = json.loads(lines[0])
  assert (first["chrf"], first["exact"], first["group_id"]) == (100.0, True, "0")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  write_evaluation(tmp_path, {"dev": {"fi": {}}})

  def fail(source, target):
    raise OSError("disk full")

  monkeypatch.setattr(os, "replace", fail)
  with pytest.raises(OSError, match="disk full"):
    write_evaluation(tmp_path, {"dev": {"sw": {}}})
  assert [p.name for p in tmp_path.iterdir()] == ["dev.json"]
  assert json.loads((tmp_path / "dev.json").read_text()) == {"fi": {}}
