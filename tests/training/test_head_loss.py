"""The loss fused with the head, against float64 numpy that has all logits at once."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mlit_jax import mesh as meshes
from mlit_jax.head import Head
from mlit_jax.training import head_loss as head_losses
from mlit_jax.training.head_loss import head_loss, head_scores
from mlit_jax.training.loss import plain_loss

TIED, UNTIED = ("vocab", "embed"), ("embed", "vocab")
# Of eight rows of six tokens: on a mesh that gives each device a row, two devices have nothing to do.
TRAINED = [1, 6, 2, 5, 0, 0, 3, 6]


@dataclasses.dataclass(frozen=True)
class Case:
  axes: tuple = TIED
  scale: float = 1.0
  softcap: float | None = None
  z_loss: float = 0.0
  rows: int = 8
  vocab: int = 64
  width: int = 16
  all_trained: bool = False

  def arrays(self, dtype=np.float32):
    """x_BTD, kernel, targets_BT, weights_BT."""
    rng = np.random.default_rng(0)
    sizes = {"vocab": self.vocab, "embed": self.width}
    x_BTD = rng.standard_normal((self.rows, 6, self.width)).astype(dtype)
    kernel = rng.standard_normal([sizes[axis] for axis in self.axes]).astype(np.float32)
    targets_BT = rng.integers(0, self.vocab, (self.rows, 6)).astype(np.int32)
    weights_BT = np.zeros((self.rows, 6), np.float32)
    for row_T, trained in zip(weights_BT, TRAINED, strict=False):
      row_T[rng.permutation(6)[: 6 if self.all_trained else trained]] = 1
    return x_BTD, kernel, targets_BT, weights_BT

  def head(self, kernel):
    return Head(jnp.asarray(kernel), self.axes, self.scale, self.softcap)


def by_numpy(case: Case, x_BTD, kernel, targets_BT, weights_BT):
  """(loss, nll_BT, dx_BTD, dkernel), float64."""
  x_BTD, kernel = np.asarray(x_BTD, np.float64), np.asarray(kernel, np.float64)
  kernel_VD = kernel if case.axes == TIED else kernel.T
  logits = case.scale * x_BTD @ kernel_VD.T
  slope = np.ones_like(logits)
  if case.softcap:
    logits = case.softcap * np.tanh(logits / case.softcap)
    slope = 1 - (logits / case.softcap) ** 2
  log_z = np.log(np.exp(logits).sum(-1))
  gold = np.eye(case.vocab)[targets_BT]
  nll = (log_z - (gold * logits).sum(-1)) * (weights_BT > 0)
  loss = (weights_BT * (nll + case.z_loss * log_z**2)).sum()
  probs = np.exp(logits - log_z[..., None])
  d = probs * (1 + 2 * case.z_loss * log_z[..., None]) - gold
  d *= weights_BT[..., None] * case.scale * slope
  dkernel_VD = np.einsum("btv,btd->vd", d, x_BTD)
  return loss, nll, d @ kernel_VD, dkernel_VD if case.axes == TIED else dkernel_VD.T


@contextlib.contextmanager
def on(sizes: dict | None):
  """With a mesh of these sizes set, or none."""
  with contextlib.ExitStack() as stack:
    if sizes is not None:
      devices = jax.devices()[: int(np.prod(list(sizes.values())))]
      stack.enter_context(jax.set_mesh(meshes.make_mesh(**sizes, devices=devices)))
    yield


def put(axes, array):
  """Where the parameters of a run lie."""
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return jnp.asarray(array)
  return jax.device_put(array, NamedSharding(mesh, P(*meshes.spread(axes, array.shape))))


def run(case: Case, sizes, *, chunk=4, loss_of=None, arrays=None):
  """(loss, nll_BT, dx_BTD, dkernel) as a train step on a mesh would have them."""
  x_BTD, kernel, targets_BT, weights_BT = case.arrays() if arrays is None else arrays
  loss_of = loss_of or (lambda *args: head_loss(*args, chunk=chunk, z_loss=case.z_loss))

  def objective(x_BTD, kernel, targets_BT, weights_BT):
    # Multiplied: what comes back is not 1, as it is not with experts or a scaled loss.
    loss, nll_BT = loss_of(x_BTD, case.head(kernel), targets_BT, weights_BT)
    return 3.0 * loss, nll_BT

  with on(sizes):
    kernel = put(case.axes, kernel)
    grad = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
    (loss, nll_BT), (dx_BTD, dkernel) = jax.device_get(grad(x_BTD, kernel, targets_BT, weights_BT))
  return loss / 3, nll_BT, dx_BTD / 3, dkernel / 3


CASES = {
  "tied": Case(),
  "untied": Case(UNTIED),
  "capped, scaled, z": Case(scale=0.5, softcap=5.0, z_loss=1e-3),
  "untied, capped, z": Case(UNTIED, scale=2.0, softcap=5.0, z_loss=1e-3),
  "all trained": Case(all_trained=True),
}
MESHES = {
  "no mesh": None,
  "one device": dict(fsdp=1),
  "2,2,2": dict(data=2, fsdp=2, tensor=2),
  "1,8,1": dict(fsdp=8),
  "1,2,4": dict(fsdp=2, tensor=4),
  "8,1,1": dict(data=8, fsdp=1),
  "experts": dict(fsdp=2, expert=2, tensor=2),
  "context": dict(fsdp=2, context=2, tensor=2),
}


@pytest.mark.parametrize(
  "case, sizes",
  [
    *((case, sizes) for case in ("tied", "untied, capped, z") for sizes in MESHES),
    *((case, sizes) for case in ("untied", "capped, scaled, z") for sizes in ("no mesh", "2,2,2")),
    ("all trained", "1,2,4"),
  ],
)
def test_loss_and_gradients_are_exact(case, sizes, assert_close):
  case, sizes = CASES[case], MESHES[sizes]
  assert_close(run(case, sizes), by_numpy(case, *case.arrays()), tolerance=1e-6)


@pytest.mark.parametrize(
  "case, sizes",
  [("capped, scaled, z", "no mesh"), ("tied", "2,2,2"), ("untied, capped, z", "1,2,4")],
)
def test_the_sums_that_gpus_take(case, sizes, assert_close, monkeypatch):
  one_pass = head_losses._sums_in_one_pass
  monkeypatch.setattr(head_losses, "_sums", lambda *arrays: one_pass(*arrays))
  test_loss_and_gradients_are_exact(case, sizes, assert_close)


def test_sums_of_large_logits_in_one_pass(assert_close):
  """They would overflow or vanish without the highest taken off, which may be the first, the last or any."""
  rng = np.random.default_rng(0)
  logits = 200 * rng.standard_normal((6, 300)).astype(np.float32)
  logits[:3, [0, 150, 299]] += 2000 * np.eye(3, dtype=np.float32)
  logits[3:] -= 1e5
  gold = np.where(rng.random(logits.shape) < 0.01, logits, 0)
  peak, z, _ = found = head_losses._sums_in_one_pass(logits, gold)
  assert_close(found, head_losses._sums(logits, gold), tolerance=1e-6)
  exact = np.logaddexp.reduce(logits.astype(np.float64), axis=1)
  assert_close([peak + np.log(z)], [exact], tolerance=1e-6)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_one_logit_that_is_no_number_shows_in_one_pass(bad):
  logits = np.zeros((2, 40), np.float32)
  logits[0, 7] = bad
  peak, z, _ = head_losses._sums_in_one_pass(logits, logits)
  assert list(np.isfinite(peak + np.log(z))) == [False, True]


@pytest.mark.parametrize(
  "platform, tokens, chunk",
  [
    ("cpu", 1 << 20, 256),
    ("gpu", 0, 1024),
    ("gpu", 32_000, 1024),
    ("gpu", 32_768, 2048),
    ("tpu", 50_000, 3072),
    ("tpu", 1 << 20, 4096),
  ],
)
def test_usual_chunk(platform, tokens, chunk):
  assert head_losses.usual_chunk(platform, tokens) == chunk


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_plain_loss_is_the_same(case, assert_close):
  def loss_of(x_BTD, head, targets_BT, weights_BT):
    loss, nll_BT = plain_loss(x_BTD, head, targets_BT, weights_BT, z_loss=case.z_loss)
    return loss, nll_BT * weights_BT

  assert_close(run(case, None, loss_of=loss_of), by_numpy(case, *case.arrays()), tolerance=1e-6)


@pytest.mark.parametrize("axes", [TIED, UNTIED])
@pytest.mark.parametrize(
  "sizes, odd",
  [
    (dict(fsdp=2, tensor=4), dict(vocab=63)),  # every device has all words
    (dict(fsdp=8), dict(width=18)),  # the head lies whole on every device
    (
      dict(data=2, fsdp=2, tensor=2),
      dict(rows=6),
    ),  # every device has all rows, but part of the head
  ],
  ids=["vocab", "width", "rows"],
)
def test_what_the_mesh_does_not_divide(axes, sizes, odd, assert_close):
  case = Case(axes, **odd)
  assert_close(run(case, sizes), by_numpy(case, *case.arrays()), tolerance=1e-6)


@pytest.mark.parametrize("chunk", [1, 5, 48, 1000])
def test_any_chunk(chunk, assert_close):
  case = Case(z_loss=1e-3)
  assert_close(run(case, None, chunk=chunk), by_numpy(case, *case.arrays()), tolerance=1e-6)


def test_nothing_is_trained():
  x_BTD, kernel, targets_BT, weights_BT = Case().arrays()
  arrays = x_BTD, kernel, targets_BT, np.zeros_like(weights_BT)
  assert all(not x.any() for x in run(Case(), dict(data=2, fsdp=2, tensor=2), arrays=arrays))


def test_what_is_not_trained_is_not_even_looked_at():
  """Infinite hidden states there, and other targets, change nothing, bit by bit."""
  x_BTD, kernel, targets_BT, weights_BT = Case().arrays()
  untrained_BT = weights_BT == 0
  x_BTD[untrained_BT] = np.inf
  targets_BT[untrained_BT] = 63
  with_inf = run(Case(), None, arrays=(x_BTD, kernel, targets_BT, weights_BT))
  for a, b in zip(with_inf, run(Case(), None), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("trained, loops", [(0, 0), (1, 1), (8, 1), (9, 2), (48, 6)])
def test_only_chunks_with_trained_tokens_are_walked(trained, loops):
  x_BTD, kernel, _, weights_BT = Case().arrays()
  weights_BT[:] = 0
  weights_BT.reshape(-1)[np.random.default_rng(0).permutation(48)[:trained]] = 1
  how = head_losses._how(x_BTD, Case().head(kernel), 8)
  assert int(head_losses._chunks(how, jnp.asarray(weights_BT)).loops) == loops


@pytest.mark.parametrize("sizes", [None, dict(data=2, fsdp=2, tensor=2)], ids=["one", "eight"])
def test_the_same_bits_every_time(sizes):
  first, second = (run(CASES["capped, scaled, z"], sizes) for _ in range(2))
  for a, b in zip(first, second, strict=True):
    np.testing.assert_array_equal(a, b)


def test_bfloat16_products_float32_sums(assert_close):
  """1,536 tokens: were the loss summed in bfloat16, it would be wrong in the third digit."""
  case = Case(vocab=512, width=64, rows=256, all_trained=True)
  x_BTD, kernel, targets_BT, weights_BT = case.arrays(jnp.bfloat16)
  weights_BT[:] = 1
  kernel = (0.3 * kernel).astype(jnp.bfloat16).astype(np.float32)
  arrays = x_BTD, kernel, targets_BT, weights_BT
  ours, exact = run(case, None, chunk=64, arrays=arrays), by_numpy(case, *arrays)
  assert_close(ours[:2], exact[:2], tolerance=1e-6)
  assert ours[2].dtype == jnp.bfloat16 and ours[3].dtype == np.float32
  for a, b in zip(ours[2:], exact[2:], strict=True):
    assert np.linalg.norm(a.astype(np.float64) - b) < 4e-3 * np.linalg.norm(b)


@pytest.mark.parametrize("sizes", [None, dict(fsdp=2, tensor=4)], ids=["one", "eight"])
def test_scores(sizes, assert_close):
  """The first of several likeliest words, wherever it lies."""
  case = Case(softcap=5.0)
  x_BTD, kernel, targets_BT, weights_BT = case.arrays()
  kernel[40:] = kernel[:24]  # each of these words a second time, on another device
  arrays = x_BTD, kernel, targets_BT, weights_BT
  with on(sizes):
    scores = jax.jit(
      lambda x_BTD, kernel, *rest: head_scores(x_BTD, case.head(kernel), *rest, chunk=3, best=True)
    )
    nll_BT, best_BT = jax.device_get(scores(x_BTD, put(case.axes, kernel), targets_BT, weights_BT))
  alone = jax.jit(functools.partial(head_scores, chunk=64))(
    x_BTD, case.head(kernel), targets_BT, weights_BT
  )
  assert alone[1] is None
  assert_close(nll_BT, by_numpy(case, *arrays)[1], tolerance=1e-6)
  assert_close(alone[0], nll_BT, tolerance=1e-6)
  likeliest_BT = np.argmax(x_BTD @ kernel.T, axis=-1)
  np.testing.assert_array_equal(best_BT, np.where(weights_BT > 0, likeliest_BT, 0))
  assert (likeliest_BT[weights_BT > 0] < 24).any()
