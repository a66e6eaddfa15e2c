"""Generation with a key/value cache: batched for evaluation, token by token for a chat."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mlit_jax import mesh as meshes
from mlit_jax.errors import UserError
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig

NO_TOKEN = -1


@dataclasses.dataclass(frozen=True)
class Completion:
  """The tokens of an answer without the stop token, and whether a stop token came."""

  tokens: list[int]
  stopped: bool


class Generator:
  """Answers prompts in a few fixed shapes: one compilation for each bucket, greedy or sampled.

  prompt_buckets: lengths in tokens to which prompts are padded, such as powers of two.
  rows: prompts decoded at once, rounded up to what the mesh divides.
  """

  def __init__(
    self,
    cfg: DecoderConfig,
    mesh: Mesh,
    *,
    max_new_tokens: int,
    prompt_buckets,
    rows: int,
    dtype=jnp.bfloat16,
  ):
    if max_new_tokens < 1:
      raise UserError(f"max_new_tokens is {max_new_tokens}; an answer needs at least 1.")
    shards = meshes.batch_shards(mesh)
    self.cfg, self.mesh, self.dtype = cfg, mesh, dtype
    self.max_new_tokens = max_new_tokens
    self.prompt_buckets = tuple(sorted(prompt_buckets))
    self.min_rows = shards
    self.rows = -(-rows // shards) * shards
    # The model reads the mesh from the context (`constrain`), so each call sits in `set_mesh`.
    replicated = NamedSharding(mesh, P())
    self._generate = jax.jit(
      self._generate_batch,
      static_argnames=("greedy", "nucleus"),
      out_shardings=(replicated, replicated),
    )
    self._prefill = jax.jit(self._prefill_batch)
    self._step = jax.jit(
      self._next_token,
      static_argnames=("greedy", "nucleus"),
      donate_argnums=(2,),
      out_shardings=(replicated, None),
    )

  def generate(
    self,
    params,
    prompts: list[list[int]],
    *,
    stop_ids,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
  ) -> list[Completion]:
    """One completion for each prompt, in order. Temperature 0 is greedy.

    An answer depends on its prompt, its index and the seed, never on the prompts it is batched
    with. On several processes all pass the same prompts, and all get all answers.
    """
    sampling = _Sampling(temperature, top_p, seed)
    bucket_of = [self._bucket(prompt, f"prompt {i}") for i, prompt in enumerate(prompts)]
    completions: list[Completion | None] = [None] * len(prompts)
    pending = []  # one batch runs while the answers of the one before are read
    for index_B, bucket in self._batches(bucket_of):
      tokens_BT, length_B, real_B = _pad([prompts[i] for i in index_B], self.rows, bucket)
      number_B = np.zeros(self.rows, np.int32)
      number_B[: len(index_B)] = index_B
      with jax.set_mesh(self.mesh):
        out = self._generate(
          params,
          self._by_row(tokens_BT),
          self._by_row(length_B),
          self._by_row(number_B),
          self._by_row(real_B),
          self._everywhere(np.asarray(stop_ids, np.int32).reshape(-1)),
          *map(self._everywhere, sampling.values),
          **sampling.kind,
        )
      pending.append((index_B, out))
      if len(pending) > 1:
        _collect(pending.pop(0), completions)
    for batch in pending:
      _collect(batch, completions)
    return completions

  def stream(
    self,
    params,
    prompt: list[int],
    *,
    stop_ids,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
  ) -> Iterator[int]:
    """The tokens that generate(params, [prompt], ...) gives, each as soon as it is known."""
    sampling = _Sampling(temperature, top_p, seed)
    bucket = self._bucket(prompt, "the prompt")
    tokens_BT, length_B, _ = _pad([prompt], self.min_rows, bucket)
    stop_ids = {int(i) for i in np.asarray(stop_ids).reshape(-1)}
    with jax.set_mesh(self.mesh):
      params = self._cast(params)
      cache = self._prefill(params, self._by_row(tokens_BT), self._by_row(length_B))
    token_B = self._everywhere(tokens_BT[np.arange(self.min_rows), length_B - 1])
    length_B, number_B = self._by_row(length_B), self._by_row(np.zeros(self.min_rows, np.int32))
    values = [self._everywhere(value) for value in sampling.values]
    for count in range(self.max_new_tokens):
      with jax.set_mesh(self.mesh):  # not held over a yield: it would leak into the caller
        token_B, cache = self._step(
          params,
          token_B,
          cache,
          length_B,
          number_B,
          self._everywhere(np.int32(count)),
          *values,
          **sampling.kind,
        )
      token = int(jax.device_get(token_B)[0])
      if token in stop_ids:
        return
      yield token

  def _generate_batch(
    self,
    params,
    tokens_BT,
    length_B,
    number_B,
    real_B,
    stop_ids,
    temperature,
    top_p,
    seed,
    *,
    greedy,
    nucleus,
  ):
    """out_BN (NO_TOKEN after the end) and stopped_B."""
    params = _cast_matrices(params, self.dtype)
    cache = self._prefill_batch(params, tokens_BT, length_B)
    rows, new = tokens_BT.shape[0], self.max_new_tokens
    last_B = jnp.take_along_axis(tokens_BT, length_B[:, None] - 1, axis=1)[:, 0]

    def unfinished(state):
      count, _, done_B, _, _ = state
      return (count < new) & ~jnp.all(done_B)

    def advance(state):
      count, token_B, done_B, out_BN, cache = state
      token_B, cache = self._next_token(
        params,
        token_B,
        cache,
        length_B,
        number_B,
        count,
        temperature,
        top_p,
        seed,
        greedy=greedy,
        nucleus=nucleus,
      )
      done_B |= jnp.any(token_B[:, None] == stop_ids[None, :], axis=1)
      # A finished row goes on in its own slots: cheaper than a branch, and no other row sees it.
      kept_B = jnp.where(done_B, NO_TOKEN, token_B)
      out_BN = jax.lax.dynamic_update_slice(out_BN, kept_B[:, None], (0, count))
      return count + 1, token_B, done_B, out_BN, cache

    out_BN = jnp.full((rows, new), NO_TOKEN, jnp.int32)
    state = (jnp.int32(0), last_B, ~real_B, out_BN, cache)
    _, _, done_B, out_BN, _ = jax.lax.while_loop(unfinished, advance, state)
    return out_BN, done_B & real_B

  def _prefill_batch(self, params, tokens_BT, length_B):
    """The cache with all of each prompt but its last token, which the first step takes.

    So the logits of the prompt are never computed: [B, T, V] would be the largest array by far.
    """
    rows, bucket = tokens_BT.shape
    cache = decoder.init_cache(self.cfg, rows, bucket + self.max_new_tokens, self.dtype)
    cache = jax.tree.map(self._keep_on_mesh, cache)
    place_T = jnp.arange(bucket, dtype=jnp.int32)[None, :]
    positions_BT = jnp.where(place_T < length_B[:, None] - 1, place_T, -1)
    _, cache = decoder.apply_cached(
      params, self.cfg, tokens_BT, positions_BT, cache, dtype=self.dtype
    )
    return jax.tree.map(self._keep_on_mesh, cache)

  def _next_token(
    self,
    params,
    token_B,
    cache,
    length_B,
    number_B,
    count,
    temperature,
    top_p,
    seed,
    *,
    greedy,
    nucleus,
  ):
    """Token `count` of each answer, from the token before it."""
    position_B = length_B - 1 + count
    logits_B1V, cache = decoder.apply_cached(
      params, self.cfg, token_B[:, None], position_B[:, None], cache, dtype=self.dtype
    )
    cache = jax.tree.map(self._keep_on_mesh, cache)
    logits_BV = logits_B1V[:, 0]
    if greedy:
      return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32), cache
    logits_BV = logits_BV / temperature
    if nucleus:
      logits_BV = _keep_nucleus(logits_BV, top_p)
    # The key names the prompt and the token, so neither batch nor padding can change the draw.
    keys_B = jax.vmap(
      lambda number: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), count)
    )(number_B)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32), cache

  def _keep_on_mesh(self, x_LBSKH):
    return meshes.constrain(x_LBSKH, "layers", "batch", "length", "kv_heads", "head_dim")

  def _cast(self, params):
    """Weights for many calls of `_step`, which would otherwise cast them for every token."""
    if jax.eval_shape(lambda p: _cast_matrices(p, self.dtype), params) == jax.eval_shape(
      lambda p: p, params
    ):
      return params
    return _cast_for_stream(params, self.dtype)

  def _bucket(self, prompt, name) -> int:
    if not len(prompt):
      raise UserError(f"{name} has no tokens; the model needs at least one to begin from.")
    for bucket in self.prompt_buckets:
      if len(prompt) <= bucket:
        return bucket
    raise UserError(
      f"{name} has {len(prompt)} tokens; the longest that fits is {self.prompt_buckets[-1]}. "
      "Shorten the prompt, or raise the largest prompt bucket."
    )

  def _batches(self, bucket_of):
    """(indices of prompts, bucket), at most `rows` prompts of one bucket at a time."""
    for bucket in self.prompt_buckets:
      index = [i for i, b in enumerate(bucket_of) if b == bucket]
      for start in range(0, len(index), self.rows):
        yield index[start : start + self.rows], bucket

  def _by_row(self, x) -> jax.Array:
    return place(x, NamedSharding(self.mesh, P(meshes.RULES["batch"], *(None,) * (x.ndim - 1))))

  def _everywhere(self, x) -> jax.Array:
    return place(np.asarray(x), NamedSharding(self.mesh, P()))


@dataclasses.dataclass(frozen=True)
class _Sampling:
  """How tokens are drawn: `kind` shapes the compiled function, `values` are its arguments."""

  temperature: float
  top_p: float
  seed: int

  def __post_init__(self):
    if not (self.temperature >= 0 and np.isfinite(self.temperature)):
      raise UserError(f"temperature is {self.temperature}; it must be 0 (greedy) or more.")
    if not 0 < self.top_p <= 1:
      raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (1: all tokens).")
    if not 0 <= self.seed < 2**31:
      raise UserError(f"seed is {self.seed}; it must be at least 0 and below 2**31.")

  @property
  def kind(self) -> dict:
    return {"greedy": self.temperature == 0, "nucleus": self.top_p < 1 and self.temperature > 0}

  @property
  def values(self):
    return np.float32(self.temperature), np.float32(self.top_p), np.int32(self.seed)


def place(x: np.ndarray, sharding) -> jax.Array:
  """Put on the mesh what every process holds whole; meant, so the guard of training allows it."""
  with jax.transfer_guard_host_to_device("allow"):
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _cast_matrices(params, dtype):
  """Weights in the compute dtype, once for all tokens; norms and routers stay float32."""

  def cast(path, x):
    kept = path[-1].key.startswith(("scale_", "bias_", "router_"))
    return x if kept else x.astype(dtype)

  return jax.tree.map_with_path(cast, params)


_cast_for_stream = jax.jit(_cast_matrices, static_argnums=1)


def _keep_nucleus(logits_BV, top_p):
  """-inf outside the fewest tokens whose probability reaches top_p; there is always one."""
  sorted_BV = jnp.flip(jnp.sort(logits_BV, axis=-1), axis=-1)
  probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
  before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
  least_B1 = jnp.min(jnp.where(before_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)


def _pad(prompts, rows, bucket):
  """tokens_BT, length_B and real_B; missing rows are dummies of one token."""
  tokens_BT = np.zeros((rows, bucket), np.int32)
  length_B = np.ones(rows, np.int32)
  for row, prompt in enumerate(prompts):
    tokens_BT[row, : len(prompt)] = prompt
    length_B[row] = len(prompt)
  return tokens_BT, length_B, np.arange(rows) < len(prompts)


def _collect(batch, completions):
  index_B, out = batch
  out_BN, stopped_B = jax.device_get(out)
  for row, i in enumerate(index_B):
    tokens = [int(t) for t in out_BN[row] if t != NO_TOKEN]
    completions[i] = Completion(tokens, bool(stopped_B[row]))
