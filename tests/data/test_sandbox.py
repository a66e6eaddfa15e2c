"""A chat template from anybody: whatever it does, it ends soon, in little memory, with one message."""

import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlit_jax.data import chat
from mlit_jax.data import render_limits as limits
from mlit_jax.errors import UserError

ROOT = Path(__file__).parents[2]
DOUBLED = "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x SIGN ns.x %}{% endfor %}{{ ns.x }}"
HOSTILE = {
  "range": "{% for i in range(10**9) %}{% endfor %}",
  "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
  "long body": "{% for i in range(99999) %}{% for j in range(50) %}" + "{% if i == j %}x{% endif %}" * 50 + "{% endfor %}{% endfor %}",
  "written": "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxx{% endfor %}{% endfor %}",
  "written at once": "{% set x = 'y' * 999999 %}{% for i in range(40) %}{{ x }}{% endfor %}",
  "times": "{{ 'a' * 10**10 }}",
  "times a list": "{{ (['a'] * 10**10) | length }}",
  "times a list of lists": "{% set l = ['a' * 1000] * 1000 %}{{ [l] * 10000 }}",
  "power": "{{ 10 ** (10 ** 9) }}",
  "powers": "{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
  "center": "{{ 'x' | center(10**10) }}",
  "ljust": "{{ 'x'.ljust(10**10) }}",
  "zfill": "{{ '1'.zfill(9999999999) }}",
  "format": "{{ '%9999999999d' % 1 }}",
  "format with a star": "{{ '%*d' % (9999999999, 1) }}",
  "format filter": "{{ '%9999999999d' | format(1) }}",
  "str.format": "{{ '{:9999999999}'.format(1) }}",
  "str.format of an argument": "{{ '{:{}}'.format(1, 9999999999) }}",
  "format_map": "{{ '{a:9999999999}'.format_map({'a': 1}) }}",
  "doubled by +": DOUBLED.replace("SIGN", "+"),
  "doubled by ~": DOUBLED.replace("SIGN", "~"),
  "doubled in lines": "{% set a = 'ab' %}" + "{% set a = a + a %}" * 60 + "{{ a }}",
  "doubled in blocks": "{% set a = 'ab' %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60 + "{{ a }}",
  "doubled by with": "{% with a = 'ab' * 9999 %}" + "{% with a = a + a %}" * 15 + "{{ a }}" + "{% endwith %}" * 16,
  "doubled by loops": "{% set a = 'ab' * 9999 %}" + "{% for a in [a + a] %}" * 15 + "{{ a }}" + "{% endfor %}" * 15,
  "doubled by arguments": "{% macro f(a) %}{{ f(a + a) }}{% endmacro %}{{ f('ab') }}",
  "lists of lists": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
  "lists of lists as JSON": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
  "replace": "{% set a = 'x' * 99999 %}{{ a | replace('x', a) }}",
  "str.replace": "{% set a = 'x' * 99999 %}{{ a.replace('x', a) }}",
  "replace in a row": "{{ 'x' * 999 " + "| replace('x', 'x' * 999)" * 9 + "}}",
  "join": "{{ range(99999) | join('x' * 999999) }}",
  "str.join": "{{ ('x' * 999999).join('y' * 999999) }}",
  "join of a map": "{{ range(99999) | map('string') | map('replace', '1', 'x' * 99999) | join }}",
  "indent": "{{ ('\\n' * 99999) | indent(99999) }}",
  "expandtabs": "{{ ('\\t' * 99999).expandtabs(99999) }}",
  "tojson": "{{ messages | tojson(indent=999999) }}",
  "batch": "{{ [1] | batch(10**9, 'x') | list }}",
  "slice": "{{ [1] | slice(10**9) | list }}",
  "sum": "{{ range(99999) | batch(1) | sum(start=[]) }}",
  "calls of calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
  "endless calls": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
  "recursive loops": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
  "kept pieces": "{% set x %}{% for i in range(99999) %}{{ 'y' * 999999 + i | string }}{% endfor %}{% endset %}",
  "a long source": "{# " + "x" * (300 << 10) + " #}",
  "a deep source": "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
  "deep loops": "{% for x in [1] %}" * 40 + "{% endfor %}" * 40,
  "many operands": "{{ 'a'" + " ~ messages" * 300 + " }}",
  "another file": "{% include 'x' %}",
  "a block": "{% block a %}{{ self.a() }}{% endblock %}",
  "negative steps": "{% for i in range(99999) %}{% for j in [[1], [2]] | map('(over)', -9999, false) %}{% for k in range(999) %}{% endfor %}{% endfor %}{% endfor %}",
  "random": "{{ [1, 2] | random }}",
}  # fmt: skip

SLOW = {"nested ranges", "long body", "calls of calls", "negative steps"}  # to their last second


def render(source: str, *contents: str) -> str:
  roles = ("user", "assistant")
  messages = [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents or ("q", "a"))]
  return chat.Template(source, {"eos_token": "</s>"}).prompt(messages)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_with_one_message(name):
  before = time.process_time()
  with pytest.raises(UserError) as caught:
    render(HOSTILE[name])
  assert time.process_time() - before < 5
  assert "chat template" in str(caught.value) and len(str(caught.value)) < 500


def test_hostile_templates_end_in_bounded_memory(tmp_path):
  """In a process of its own, whose memory would not hold what they ask for."""
  code = (
    "import sys; sys.path.insert(0, 'tests/data')\n"
    "import test_sandbox as t\n"
    "from mlit_jax.errors import UserError\n"
    "kept = 0\n"
    "for name in t.HOSTILE.keys() - t.SLOW:\n"
    "  try: t.render(t.HOSTILE[name])\n"
    "  except UserError as e: assert 'MemoryError' not in str(e), (name, e); kept += 1\n"
    # Of this program alone: getrusage counts what the process was before, a copy of the tests.
    "peak = next(x for x in open('/proc/self/status') if x.startswith('VmHWM'))\n"
    "print(kept, int(peak.split()[1]) >> 10)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)),
  )
  assert done.returncode == 0, done.stderr[-2000:]
  kept, mebibytes = map(int, done.stdout.split())
  assert kept == len(HOSTILE) - len(SLOW)
  assert mebibytes < 2048


def test_the_limits_hold_in_other_threads():
  said = []

  def run():
    try:
      render(HOSTILE["nested ranges"])
    except UserError as e:
      said.append(str(e))

  thread = threading.Thread(target=run)
  thread.start()
  thread.join(30)
  assert len(said) == 1 and "processor time" in said[0]


def test_long_rows_and_many_turns_pass():
  source = "{% for m in messages %}{% set c = m.content | trim %}{{ '<' + m.role + '>' + c + eos_token }}{% endfor %}"
  long = "ą" * 3_000_000
  assert render(source, long, long) == f"<user>{long}</s><assistant>{long}</s>"
  turns = [f"turn {i}" for i in range(20_000)]
  assert render(source, *turns).count("</s>") == 20_000
  gathered = "{% set ns = namespace(x='') %}{% for m in messages %}{% set ns.x = ns.x + m.content %}{% endfor %}{{ ns.x }}"
  assert render(gathered, *turns[:2000]) == "".join(turns[:2000])


def test_what_usual_templates_use_still_works():
  source = (
    "{%- macro say(x, end='!') %}{{ x | upper }}{{ end }}{% endmacro -%}"
    "{%- set words = messages[0].content.split(' ') | map('capitalize') | list -%}"
    "{{ say('a') }}{{ words | join('-') }}{{ messages | tojson(indent=2) | length }}{{ '%05.1f' % 3 }}{{ 2 ** 10 }}{{ 7 % 4 }}"
    "{{ 'ab' * 3 }}{{ [1] * 2 }}{{ '{:>4}'.format('x') }}{{ 'x' | center(5) }}{{ 'a\\nb' | indent }}{{ 'aXa' | replace('X', 'yy') }}"
    "{% for a in [1, 2, 3] if a != 2 %}{{ loop.length }}{{ loop.last }}{% endfor %}{% for m in messages[::-1] recursive %}{{ m.role[0] }}{% endfor %}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ [[1], [2]] | sum(start=[]) }}{{ range(5) | sum }}"
  )
  got = render(source, "one two", "a")
  assert got == "A!One-Two109003.010243ababab[1, 1]   x  x  a\n    bayya2False2Trueau1[1, 2]10"


@pytest.mark.parametrize("length", [10, 300, 5000])
def test_a_loop_tells_its_length_however_long(length):
  source = "{% for m in messages %}{% if loop.last %}{{ loop.length }} {{ loop.index }} {{ loop.revindex }}{% endif %}{% endfor %}"
  assert render(source, *["x"] * length) == f"{length} {length} 1"


def test_the_limits_are_those_of_the_page():
  assert limits.SECONDS <= 5 and limits.LEAST_CHARACTERS == 1 << 20 and limits.GROWTH == 8
