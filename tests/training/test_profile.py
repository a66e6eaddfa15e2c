"""Traces of some steps."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from mlit_jax.errors import UserError
from mlit_jax.training.profile import Profile, parse_steps


def test_steps_are_first_and_end():
  assert parse_steps("") == (0, 0)
  assert parse_steps("10:13") == (10, 13)


@pytest.mark.parametrize("text", ["10", "13:10", "5:5", "a:b", "-1:3", "1:2:3"])
def test_other_texts_are_refused(text):
  with pytest.raises(UserError, match="profile.steps is .* such as 10:13"):
    parse_steps(text)


def run(profile, steps):
  step = jax.jit(lambda x: jnp.sin(x @ x))
  x = jnp.ones((32, 32))
  for number in range(steps):
    with profile.step(number) as traced:
      x = step(x)
      traced(x)
  profile.close()


def test_the_steps_asked_for_are_in_the_trace(tmp_path):
  said = []
  run(Profile(tmp_path, "2:4", said.append), 6)
  assert said == [f"trace of the steps 2 to 3: tensorboard --logdir {tmp_path}"]
  (trace,) = tmp_path.rglob("*.trace.json.gz")
  events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
  steps = {e["args"]["step_num"] for e in events if e.get("name") == "train" and "args" in e}
  assert steps == {"2", "3"}


def test_a_run_that_ends_within_them_writes_what_there_is(tmp_path):
  said = []
  run(Profile(tmp_path, "1:9", said.append), 3)
  assert said and list(tmp_path.rglob("*.xplane.pb"))


def test_nothing_is_traced_where_nothing_is_asked_for(tmp_path):
  run(Profile(tmp_path, "", pytest.fail), 3)
  assert not list(tmp_path.iterdir())
