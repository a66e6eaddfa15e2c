"""What each chat template makes of ten scripts, and what of it is trained: tests/golden/rendered."""

import pytest

from tests import rendered


@pytest.mark.parametrize("name", rendered.NAMES)
def test_rows_are_as_the_golden_file_has_them(name):
  """On purpose? `python -m tests.rendered` writes them again."""
  wanted = (rendered.GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
  assert rendered.golden(name) == wanted


def test_every_template_has_its_file_and_every_file_its_template():
  assert {path.stem for path in rendered.GOLDEN.iterdir()} == set(rendered.NAMES)
  assert {path.stem for path in rendered.TEMPLATES.glob("*.jinja")} < set(rendered.NAMES)


def test_every_script_is_in_every_file_with_both_ends_trained():
  for path in rendered.GOLDEN.iterdir():
    text = path.read_text(encoding="utf-8")
    end = text.removeprefix("A turn ends with ").split(". Trained")[0]
    for script, (_, *said) in rendered.SCRIPTS.items():
      (part,) = (p for p in text.split("--- ") if p.startswith(f"{script}: "))
      assert part.startswith(f"{script}: the answers end with {end} and {end}, trained")
      answers = part.split("⟦")[1:]
      assert len(answers) == 2
      for answer, content in zip(answers, said[::2], strict=True):
        assert answer.split("⟧")[0].endswith(content + end.rsplit(" ", 1)[0])
