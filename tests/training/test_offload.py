"""The optimizer's state in the host's memory: the same numbers, a layer on the device at a time, any checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlit_jax import mesh as meshes
from mlit_jax.config import load_config
from mlit_jax.model import decoder
from mlit_jax.stepping import make_stepping
from mlit_jax.training.checkpoint import Checkpoints, abstract_like
from tests.commands import ROOT
from tests.few import few
from tests.training.test_optimizers import CFG, SPECS, Trainer, optimizer_of, random_like

BY_LAYER = [  # also where the state is on the device
  ("adamw", "int8", "bfloat16"),
  ("muon", "int8", "float32"),
  ("adafactor", "float32", "bfloat16"),
]


def bits(tree) -> list[bytes]:
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def where(tree) -> set[str]:
  return {x.sharding.memory_kind for x in jax.tree.leaves(tree)}


class Updates:
  """The updates of one optimizer alone, from gradients made up, on a mesh of eight."""

  def __init__(self, name, moments, param_dtype, compiler_options=None, **changes):
    self.mesh = meshes.make_mesh(2, 2, 2)
    optimizer = optimizer_of(name, moments, **changes)
    at = meshes.param_shardings(SPECS, self.mesh)
    shapes = decoder.param_shapes(CFG, param_dtype)
    self.state_at = optimizer.shardings(at, shapes, self.mesh)
    place = lambda tree: jax.device_put(tree, at)  # noqa: E731
    self.params = place(decoder.init_params(CFG, jax.random.key(7), param_dtype))
    self.grads = [place(random_like(self.params, seed)) for seed in range(3)]
    self.state = jax.device_put(optimizer.init(self.params), self.state_at)
    self.update = jax.jit(
      lambda g, state, params, step: optimizer.apply(g, jnp.float32(0.5), state, params, step),
      out_shardings=(at, self.state_at),
      donate_argnums=(1, 2),
      compiler_options=compiler_options,
    )

  def run(self):
    with jax.set_mesh(self.mesh):
      for i, g in enumerate(self.grads):
        self.params, self.state = self.update(g, self.state, self.params, jnp.int32(i))
    return self

  def trace(self):
    with jax.set_mesh(self.mesh):
      return self.update.trace(self.grads[0], self.state, self.params, jnp.int32(0))


@pytest.mark.parametrize("name, moments, param_dtype", few(1, BY_LAYER))
def test_the_same_bits_wherever_the_state_rests(name, moments, param_dtype, as_for_users):
  there, here = (
    Updates(name, moments, param_dtype, as_for_users, offload=offload).run()
    for offload in (True, False)
  )
  assert where(there.state) == {"pinned_host"} and where(there.params) == {"device"}
  assert where(here.state) == {"device"}
  assert bits(there.params) == bits(here.params) and bits(there.state) == bits(here.state)
  assert any(np.asarray(x).any() for x in jax.tree.leaves(there.state))


@pytest.mark.parametrize("param_dtype", few(1, ["float32", "bfloat16"]))
def test_stacks_at_once_and_layer_by_layer(param_dtype, as_for_users):
  """Two programs, so a last digit may differ; what is rounded by chance is rounded by the same chance."""
  there, here = (
    Updates("adamw", param_dtype, param_dtype, as_for_users, offload=offload).run()
    for offload in (True, False)
  )
  assert where(there.state) == {"pinned_host"} and where(here.state) == {"device"}
  pairs = zip(jax.tree.leaves((there.params, there.state)), jax.tree.leaves((here.params, here.state)), strict=True)  # fmt: skip
  a, b = (np.concatenate([np.asarray(x, np.float32).ravel() for x in of]) for of in zip(*pairs))
  np.testing.assert_allclose(a, b, rtol=2**-7 if param_dtype == "bfloat16" else 1e-5, atol=1e-8)
  assert np.mean(a != b) < (0.001 if param_dtype == "bfloat16" else 0.2)


@pytest.mark.slow
def test_the_compiled_program_has_the_state_in_host_space():
  """Each array of the state is a parameter of the program, and a result in its place, in memory space 5."""
  run = Updates("adamw", "bfloat16", "bfloat16", offload=True)
  text = run.trace().lower().compile().as_text()
  head = text.split("\n", 1)[0]
  arguments = head.split("entry_computation_layout={", 1)[1]
  assert arguments.count("S(5)") == 2 * len(
    jax.tree.leaves(run.state)
  )  # as they come and as they go
  assert head.count("may-alias") == len(jax.tree.leaves((run.state, run.params)))
  without = Updates("adamw", "bfloat16", "bfloat16", offload=False).trace().lower().compile()
  assert "S(5)" not in without.as_text()


def moves(jaxpr, in_loop=False):
  """(shape, whether in a loop) of all that is moved between memories."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "device_put":
      yield from ((v.aval.shape, in_loop) for v in eqn.invars)
    for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
      if hasattr(inner, "jaxpr"):
        yield from moves(inner.jaxpr, in_loop or eqn.primitive.name in ("while", "scan"))


@pytest.mark.parametrize("name, moments", [("adamw", "float32"), ("muon", "int8")])
def test_a_layer_of_a_stack_is_moved_at_a_time(name, moments):
  run = Updates(name, moments, "float32", offload=True)
  found = sorted(moves(run.trace().jaxpr.jaxpr))
  stacked = [(1, *x.shape[1:]) for x in jax.tree.leaves(run.state["blocks"])]
  rest = [x.shape for stack, of in run.state.items() if stack != "blocks" for x in jax.tree.leaves(of)]  # fmt: skip
  assert found == sorted([*((s, True) for s in stacked), *((s, False) for s in rest)] * 2)


@pytest.mark.parametrize("first, then", [(True, False), (False, True)])
@pytest.mark.slow
def test_a_checkpoint_serves_both(tmp_path, first, then, as_for_users):
  """Two steps, saved, begun again with the state elsewhere: the run that stays, bit by bit."""
  kind = ("adamw", "int8", "bfloat16")
  how = dict(sizes=(1, 2, 1), options=as_for_users)
  stays, begun = Trainer(*kind, **how), Trainer(*kind, **how, offload=first)
  stays.run(range(4))
  begun.run(range(2))
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(begun.state, {"step": 2, "plan": "p", "trained": {}}, None)
    checkpoints.wait()
  again = Trainer(*kind, **how, offload=then)
  with Checkpoints(tmp_path) as checkpoints:
    again.state, _ = checkpoints.restore(2, abstract_like(again.shapes, again.shardings))
  assert where(again.state.opt_state) == {"pinned_host" if then else "device"}
  again.run(range(2, 4))
  assert where(again.state.opt_state) == {"pinned_host" if then else "device"}
  assert bits(stays.state) == bits(again.state)


def test_a_run_begins_with_a_state_that_was_never_on_the_devices():
  mesh = meshes.make_mesh(1, 4, 2)
  c = load_config(str(ROOT / "configs" / "quickstart.py"), ["--config.optimizer.offload=True"])
  stepping = make_stepping(c, CFG, mesh, total_steps=30, num_languages=1)
  params = decoder.init_params(CFG, jax.random.key(1))
  expected = jax.device_get(stepping.first_state(params))
  state = stepping.begin(jax.device_put(params, stepping.shardings.params))
  assert jax.tree.structure(state) == jax.tree.structure(expected)
  assert bits(state) == bits(expected)
  for part in ("step", "params", "opt_state"):
    found, wanted = (jax.tree.leaves(getattr(of, part)) for of in (state, stepping.shardings))
    assert all(x.sharding == s for x, s in zip(found, wanted, strict=True)), part
  assert where(state.opt_state) == {"pinned_host"}
