"""Files of answers, a short template, and an endpoint that is tried again at once."""

import json

import pytest

from tests.evals.judging.answered import SHORT


@pytest.fixture
def files(tmp_path):
  """files(a=rows, b=rows) -> [--a, PATH, --b, PATH]."""

  def files(**rows_of):
    words = []
    for name, rows in rows_of.items():
      path = tmp_path / f"{name}.jsonl"
      lines = [json.dumps(row, ensure_ascii=False) for row in rows]
      path.write_text("\n".join(lines) + "\n", encoding="utf-8")
      words += [f"--{name}", path]
    return words

  return files


@pytest.fixture
def template(tmp_path):
  path = tmp_path / "short.txt"
  path.write_text(SHORT)
  return path


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr("mlit_jax.evals.judging.endpoint.FIRST_WAIT_SECONDS", 0.01)
  monkeypatch.setattr("mlit_jax.evals.judging.endpoint.SAY_SECONDS", 0.0)
