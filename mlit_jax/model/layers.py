"""The parts of a decoder: each parameter is declared once, with the names of its axes."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlit_jax import mesh
from mlit_jax.model import experts
from mlit_jax.model.config import DecoderConfig
from mlit_jax.model.lookup import look_up
from mlit_jax.model.rope import rotate


def param(shape: tuple[int, ...], axes: tuple[str, ...], *, std: float, mean: float = 0.0):
  """An abstract parameter: shape, the names of its axes, and how it starts."""
  return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), axes=axes, std=std, mean=mean)


_SCALES = {
  "embed": "scale_D",
  "head_dim": "scale_H",
  "heads": "scale_NH",
  "kv_heads": "scale_KH",
  "layer_input": "scale_P",
}


class RmsNorm(nnx.Module):
  """x / rms(x) * scale in float32, over the scale's axes: the last one, or heads and head width.

  Gemma and OLMo multiply before the cast back, the others after it.
  """

  def __init__(self, width: int, axis: str, cfg: DecoderConfig):
    self.eps, self.plus_one, self.late_cast = cfg.norm_eps, cfg.norm_plus_one, cfg.norm_late_cast
    self.name = _SCALES[axis]
    over_heads = axis in ("heads", "kv_heads")
    shape, axes = ((width, cfg.head_dim), (axis, "head_dim")) if over_heads else ((width,), (axis,))
    setattr(self, self.name, param(shape, axes, std=0.0, mean=0.0 if self.plus_one else 1.0))

  def __call__(self, x):
    scale = getattr(self, self.name)[...]
    normed = _over_rms(x.astype(jnp.float32), self.eps, over=tuple(range(-scale.ndim, 0)))
    scale = scale.reshape((1,) * (x.ndim - scale.ndim) + scale.shape)
    if self.plus_one:
      return (normed * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)
    if self.late_cast:
      return (normed * scale.astype(jnp.float32)).astype(x.dtype)
    return normed.astype(x.dtype) * scale.astype(x.dtype)


def _over_rms(x_f32, eps: float, over: tuple[int, ...]) -> jax.Array:
  """x / rms(x) over these axes."""
  return x_f32 * jax.lax.rsqrt(jnp.mean(x_f32 * x_f32, axis=over, keepdims=True) + eps)


class LayerNorm(nnx.Module):
  """(x - mean) / std * scale in float32, plus a bias if the family has one; per width, or per head."""

  def __init__(
    self, letters: str, shape: tuple[int, ...], axes: tuple[str, ...], cfg: DecoderConfig
  ):
    self.eps, self.letters, self.bias = cfg.norm_eps, letters, cfg.norm_bias
    setattr(self, f"scale_{letters}", param(shape, axes, std=0.0, mean=1.0))
    if self.bias:
      setattr(self, f"bias_{letters}", param(shape, axes, std=0.0))

  def __call__(self, x):
    x_f32 = x.astype(jnp.float32)
    x_f32 = x_f32 - jnp.mean(x_f32, axis=-1, keepdims=True)
    normed = x_f32 * jax.lax.rsqrt(jnp.mean(x_f32 * x_f32, axis=-1, keepdims=True) + self.eps)
    out = normed * self._weight("scale", x.ndim)
    return (out + self._weight("bias", x.ndim) if self.bias else out).astype(x.dtype)

  def _weight(self, name: str, ndim: int) -> jax.Array:
    weight = getattr(self, f"{name}_{self.letters}")[...].astype(jnp.float32)
    return weight.reshape((1,) * (ndim - weight.ndim) + weight.shape)


def stream_norm(cfg: DecoderConfig) -> nnx.Module:
  """The family's norm of the residual stream."""
  if cfg.norm == "layer":
    return LayerNorm("D", (cfg.d_model,), ("embed",), cfg)
  return RmsNorm(cfg.d_model, "embed", cfg)


class Attention(nnx.Module):
  """Grouped-query attention with rotary positions, or with ALiBi.

  A layer that borrows keys and values has no parameters for them. together: queries, keys and values by one
  product, see `products`.
  """

  def __init__(self, cfg: DecoderConfig, together: bool = False):
    self.together = together
    D, N, K, H = cfg.d_model, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
    self.cfg = cfg
    self.q_DNH = param((D, N, H), ("embed", "heads", "head_dim"), std=D**-0.5)
    if not cfg.borrows_kv:
      self.k_DKH = param((D, K, H), ("embed", "kv_heads", "head_dim"), std=D**-0.5)
    if not (cfg.borrows_kv or cfg.keys_as_values):
      self.v_DKH = param((D, K, H), ("embed", "kv_heads", "head_dim"), std=D**-0.5)
    out_std = (N * H * 2 * cfg.num_layers) ** -0.5  # residual branches add up: GPT-2's scaling
    self.o_NHD = param((N, H, D), ("heads", "head_dim", "embed"), std=out_std)
    if cfg.attn_bias:
      self.q_bias_NH = param((N, H), ("heads", "head_dim"), std=0.0)
      self.k_bias_KH = param((K, H), ("kv_heads", "head_dim"), std=0.0)
      self.v_bias_KH = param((K, H), ("kv_heads", "head_dim"), std=0.0)
    if cfg.out_bias:
      self.o_bias_D = param((D,), ("embed",), std=0.0)
    if cfg.qk_norm_full:
      self.q_norm = RmsNorm(N, "heads", cfg)
      self.k_norm = RmsNorm(K, "kv_heads", cfg)
    elif cfg.qk_norm_per_head:
      self.q_norm = LayerNorm("NH", (N, H), ("heads", "head_dim"), cfg)
      self.k_norm = LayerNorm("KH", (K, H), ("kv_heads", "head_dim"), cfg)
    elif cfg.qk_norm:
      self.q_norm = RmsNorm(H, "head_dim", cfg)
      if not cfg.borrows_kv:
        self.k_norm = RmsNorm(H, "head_dim", cfg)

  def queries_keys_values(self, x_BTD, rope_BTH, growth_BT=None, lent=None):
    """`queries` and `keys_values`; `lent` are the keys and values of a layer that borrows them."""
    if lent:
      return self.queries(x_BTD, rope_BTH, growth_BT), *lent
    q_BTNH, *kv = products(x_BTD, self.q_DNH, *self._kv_weights(), together=self.together)
    return self._finish_queries(q_BTNH, rope_BTH, growth_BT), *self._finish_kv(
      *kv, rope_BTH=rope_BTH
    )

  def queries(self, x_BTD, rope_BTH, growth_BT=None):
    """Rotated queries, times `growth` where there is one; no `rope`, no rotation."""
    return self._finish_queries(*products(x_BTD, self.q_DNH), rope_BTH, growth_BT)

  def keys_values(self, x_BTD, rope_BTH):
    """Rotated keys, and values."""
    return self._finish_kv(*products(x_BTD, *self._kv_weights()), rope_BTH=rope_BTH)

  def _kv_weights(self):
    return (self.k_DKH,) if self.cfg.keys_as_values else (self.k_DKH, self.v_DKH)

  def _finish_queries(self, q_BTNH, rope_BTH, growth_BT):
    if self.cfg.attn_bias:
      q_BTNH = q_BTNH + _use(self.q_bias_NH, q_BTNH.dtype)[None, None]
    if self.cfg.qk_norm:
      q_BTNH = self.q_norm(q_BTNH)
    q_BTNH = mesh.constrain(q_BTNH, "batch", "length", "heads", "head_dim")
    if rope_BTH is not None:
      q_BTNH = rotate(q_BTNH, *rope_BTH, self.cfg.rope_interleaved)
    if growth_BT is not None:
      q_BTNH = q_BTNH * growth_BT[:, :, None, None].astype(q_BTNH.dtype)
    return q_BTNH

  def _finish_kv(self, k_BTKH, v_BTKH=None, *, rope_BTH):
    if self.cfg.attn_bias:
      k_BTKH = k_BTKH + _use(self.k_bias_KH, k_BTKH.dtype)[None, None]
    if self.cfg.keys_as_values:
      v_BTKH = k_BTKH
    elif self.cfg.attn_bias:
      v_BTKH = v_BTKH + _use(self.v_bias_KH, v_BTKH.dtype)[None, None]
    if self.cfg.value_norm:
      v_f32 = v_BTKH.astype(jnp.float32)
      v_BTKH = _over_rms(v_f32, self.cfg.norm_eps, over=(-1,)).astype(v_BTKH.dtype)
    if self.cfg.qk_norm:
      k_BTKH = self.k_norm(k_BTKH)
    if rope_BTH is not None:
      k_BTKH = rotate(k_BTKH, *rope_BTH, self.cfg.rope_interleaved)
    return k_BTKH, v_BTKH

  def out(self, o_BTNH):
    """out_BTD: what the heads read, brought back to the stream."""
    out_BTD = jnp.einsum("BTNH,NHD->BTD", o_BTNH, _use(self.o_NHD, o_BTNH.dtype))
    if self.cfg.out_bias:
      out_BTD = out_BTD + _use(self.o_bias_D, o_BTNH.dtype)[None, None]
    return out_BTD


class Xielu(nnx.Module):
  """Quadratic above 0 and an integrated ELU below it (Huang & Schlag 2024); a trained shape per layer."""

  def __init__(self):
    self.alpha_p = param((), (), std=0.0, mean=math.log(math.expm1(0.8)))
    self.alpha_n = param((), (), std=0.0, mean=math.log(math.expm1(0.3)))
    # Buffers in the checkpoints: kept as they are found, and never trained.
    self.beta = param((), (), std=0.0, mean=0.5)
    self.eps = param((), (), std=0.0, mean=-1e-6)

  def __call__(self, x):
    x_f32 = x.astype(jnp.float32)  # expm1(x) - x cancels
    alpha_p, alpha_n, beta, eps = (
      _use(p, jnp.float32).reshape((1,) * x.ndim)
      for p in (self.alpha_p, self.alpha_n, self.beta, self.eps)
    )
    beta, eps = jax.lax.stop_gradient((beta, eps))
    above = jax.nn.softplus(alpha_p) * x_f32 * x_f32
    # The minimum keeps the branch that is not taken finite, and with it the gradient.
    below = (beta + jax.nn.softplus(alpha_n)) * (jnp.expm1(jnp.minimum(x_f32, eps)) - x_f32)
    return (jnp.where(x_f32 > 0, above, below) + beta * x_f32).astype(x.dtype)


class Mlp(nnx.Module):
  """down(act(gate x) * up x), or down(act(up x)) without a gate."""

  def __init__(self, cfg: DecoderConfig):
    D, F = cfg.d_model, cfg.d_ff
    self.activation, self.bias, self.gated = cfg.activation, cfg.mlp_bias, cfg.gated
    if cfg.mlp_bias:
      if self.gated:
        self.gate_bias_F = param((F,), ("mlp",), std=0.0)
      self.up_bias_F = param((F,), ("mlp",), std=0.0)
      self.down_bias_D = param((D,), ("embed",), std=0.0)
    if self.activation == "xielu":
      self.xielu = Xielu()
    if self.gated:
      self.gate_DF = param((D, F), ("embed", "mlp"), std=D**-0.5)
    self.up_DF = param((D, F), ("embed", "mlp"), std=D**-0.5)
    self.down_FD = param((F, D), ("mlp", "embed"), std=(F * 2 * cfg.num_layers) ** -0.5)

  def __call__(self, x_BTD):
    if self.gated:
      gate_BTF, up_BTF = products(x_BTD, self.gate_DF, self.up_DF)
      if self.bias:
        gate_BTF = gate_BTF + _use(self.gate_bias_F, x_BTD.dtype)[None, None]
      h_BTF = self._activate(gate_BTF) * self._biased(up_BTF)
    else:
      h_BTF = self._activate(self._biased(matmul(x_BTD, _use(self.up_DF, x_BTD.dtype))))
    h_BTF = mesh.constrain(h_BTF, "batch", "length", "mlp")
    out_BTD = matmul(h_BTF, _use(self.down_FD, x_BTD.dtype))
    return out_BTD + _use(self.down_bias_D, x_BTD.dtype)[None, None] if self.bias else out_BTD

  def _biased(self, up_BTF):
    return up_BTF + _use(self.up_bias_F, up_BTF.dtype)[None, None] if self.bias else up_BTF

  def _activate(self, x_BTF):
    if self.activation == "xielu":
      return self.xielu(x_BTF)
    silu = self.activation == "silu"
    return jax.nn.silu(x_BTF) if silu else jax.nn.gelu(x_BTF, approximate=True)


class Moe(nnx.Module):
  """Each token's C of E gated MLPs, weighted by the router's probabilities; the router is float32."""

  def __init__(self, cfg: DecoderConfig):
    D, F, E = cfg.d_model, cfg.d_ff, cfg.num_experts
    self.num_experts = E
    self.choices, self.norm_choices = cfg.experts_per_token, cfg.norm_choices
    self.router_DE = param((D, E), ("embed", "router"), std=D**-0.5)
    self.gate_EDF = param((E, D, F), ("expert", "embed", "mlp"), std=D**-0.5)
    self.up_EDF = param((E, D, F), ("expert", "embed", "mlp"), std=D**-0.5)
    down_std = (F * 2 * cfg.num_layers) ** -0.5
    self.down_EFD = param((E, F, D), ("expert", "mlp", "embed"), std=down_std)

  def __call__(self, x_BTD):
    """The output, and how it was routed: (probs_BTE, choice_BTC)."""
    x_f32, router_DE = x_BTD.astype(jnp.float32), _use(self.router_DE, jnp.float32)
    probs_BTE = jax.nn.softmax(matmul(x_f32, router_DE, precision="highest"), axis=-1)
    weight_BTC, choice_BTC = mesh.by_row(lambda p: jax.lax.top_k(p, self.choices), probs_BTE)
    if self.norm_choices:
      weight_BTC = weight_BTC / jnp.sum(weight_BTC, axis=-1, keepdims=True)
    params = (self.gate_EDF, self.up_EDF, self.down_EFD)
    out_BTD = mesh.by_expert(
      functools.partial(experts.run, of=self.num_experts),
      (x_BTD, choice_BTC, weight_BTC),
      tuple(p[...].astype(x_BTD.dtype) for p in params),
      tuple(p.axes for p in params),
    )
    return out_BTD, (probs_BTE, choice_BTC)


class Block(nnx.Module):
  """One layer: attention and MLP, each normalised before.

  Gemma normalises after as well, OLMo only after; Cohere's two read one norm.
  """

  def __init__(self, cfg: DecoderConfig, together: bool = False):
    self.attn = Attention(cfg, together)
    self.sparse = cfg.num_experts > 0
    if self.sparse:
      self.moe = Moe(cfg)
    else:
      self.mlp = Mlp(cfg)
    self.pre_norms, self.post_norms = cfg.pre_norms, cfg.post_norms
    self.parallel, self.residual_scale = cfg.parallel, cfg.residual_scale
    self.residual_after_norm = cfg.residual_after_norm
    self.takes_input, self.scaled = cfg.layer_input_dim > 0, cfg.layer_scalar
    if self.takes_input:
      self.layer_input = LayerInput(cfg)
    if self.scaled:
      # A buffer in the checkpoints: kept as it is found, and never trained.
      self.layer_scalar = param((), (), std=0.0, mean=1.0)
    if cfg.pre_norms:
      self.attn_norm = stream_norm(cfg)
    if cfg.pre_norms and not cfg.parallel:
      self.mlp_norm = stream_norm(cfg)
    if cfg.post_norms:
      self.post_attn_norm = stream_norm(cfg)
      self.post_mlp_norm = stream_norm(cfg)

  def read(self, x_BTD):
    """What attention reads."""
    return self.attn_norm(x_BTD) if self.pre_norms else x_BTD

  def add(self, x_BTD, h_BTD, o_BTD, input_BTP=None):
    """The residual stream `x` with attention's output `o` and the MLP's added; attention read `h`.

    Last comes what the layer makes of its own `input`, where it has one. And how experts were routed: Moe's second result, None without experts.
    """
    if self.parallel:
      m_BTD, routed = self._mlp(h_BTD)
      return x_BTD + self._scaled(o_BTD) + self._scaled(m_BTD), routed
    x_BTD = h_BTD if self.residual_after_norm else x_BTD
    x_BTD = x_BTD + self._scaled(self.post_attn_norm(o_BTD) if self.post_norms else o_BTD)
    h_BTD = self.mlp_norm(x_BTD) if self.pre_norms else x_BTD
    m_BTD, routed = self._mlp(h_BTD)
    x_BTD = h_BTD if self.residual_after_norm else x_BTD
    x_BTD = x_BTD + self._scaled(self.post_mlp_norm(m_BTD) if self.post_norms else m_BTD)
    if self.takes_input:
      x_BTD = x_BTD + self.layer_input(x_BTD, input_BTP)
    if self.scaled:
      scalar = jax.lax.stop_gradient(_use(self.layer_scalar, x_BTD.dtype))
      x_BTD = x_BTD * scalar.reshape((1,) * x_BTD.ndim)
    return x_BTD, routed

  def _mlp(self, h_BTD):
    return self.moe(h_BTD) if self.sparse else (self.mlp(h_BTD), None)

  def _scaled(self, o_BTD):
    """In float32: bfloat16 would make Granite's 0.22 a 0.2197."""
    if self.residual_scale == 1.0:
      return o_BTD
    return (o_BTD.astype(jnp.float32) * self.residual_scale).astype(o_BTD.dtype)


class LayerInput(nnx.Module):
  """Of one layer: its part of the second embedding, gated by the stream and brought to its width."""

  def __init__(self, cfg: DecoderConfig):
    D, P = cfg.d_model, cfg.layer_input_dim
    self.gate_DP = param((D, P), ("embed", "layer_input"), std=D**-0.5)
    self.out_PD = param((P, D), ("layer_input", "embed"), std=P**-0.5)
    self.norm = stream_norm(cfg)

  def __call__(self, x_BTD, input_BTP):
    gate_BTP = jax.nn.gelu(matmul(x_BTD, _use(self.gate_DP, x_BTD.dtype)), approximate=True)
    return self.norm(matmul(gate_BTP * input_BTP, _use(self.out_PD, x_BTD.dtype)))


class LayerInputs(nnx.Module):
  """Of all layers: the second embedding of a token, mixed with a projection of the first.

  Its table is the largest parameter of the small Gemma 4 models. It is looked up where it lies, so that
  what travels is the rows found and not the table.
  """

  def __init__(self, cfg: DecoderConfig):
    V, D, P, L = cfg.vocab_size, cfg.d_model, cfg.layer_input_dim, cfg.num_layers
    self.table_VLP = param((V, L, P), ("vocab", "layers", "layer_table"), std=0.02)
    self.proj_DLP = param((D, L, P), ("embed", "layers", "layer_input"), std=D**-0.5)
    self.norm = RmsNorm(P, "layer_input", cfg)

  def __call__(self, tokens_BT, x_BTD):
    """inputs_BTLP; `x` are the (first) embeddings as the layers read them."""
    D, P = x_BTD.shape[-1], self.table_VLP.shape[-1]
    table_VLP = self.table_VLP
    found_BTLP = look_up(table_VLP[...], table_VLP.axes, tokens_BT, x_BTD.dtype)
    found_BTLP = mesh.constrain(found_BTLP, "batch", "length", "layers", "layer_input")
    proj_BTLP = jnp.einsum("BTD,DLP->BTLP", x_BTD, _use(self.proj_DLP, x_BTD.dtype))
    proj_BTLP = self.norm(proj_BTLP * jnp.asarray(D**-0.5, x_BTD.dtype))
    found_BTLP = found_BTLP * jnp.asarray(P**0.5, x_BTD.dtype)
    return (proj_BTLP + found_BTLP) * jnp.asarray(0.5**0.5, x_BTD.dtype)


class Decoder(nnx.Module):
  """All but the layers, which decoder.py stacks along a first axis L."""

  def __init__(self, cfg: DecoderConfig):
    V, D = cfg.vocab_size, cfg.d_model
    self.embed = Embedding(V, D)
    if cfg.embed_norm:
      self.embed_norm = stream_norm(cfg)
    if cfg.layer_input_dim:
      self.layer_inputs = LayerInputs(cfg)
    self.final_norm = stream_norm(cfg)
    if not cfg.tied:
      self.head = Head(V, D)


class Embedding(nnx.Module):
  def __init__(self, V: int, D: int):
    self.table_VD = param((V, D), ("vocab", "embed"), std=0.02)


class Head(nnx.Module):
  def __init__(self, V: int, D: int):
    self.kernel_DV = param((D, V), ("embed", "vocab"), std=D**-0.5)


def matmul(x, w, **kwargs) -> jax.Array:
  """x @ w with the leading axes of x made one: on CPU twice as fast as a product of three axes."""
  out = jnp.matmul(x.reshape(-1, x.shape[-1]), w, **kwargs)
  return out.reshape(*x.shape[:-1], w.shape[-1])


def products(x_BTD, *weights: nnx.Param, together: bool = False) -> list[jax.Array]:
  """x_BTD by each of these weights, [D, ...]: their own products, or one with all of them side by side.

  One is faster on a CPU (docs/performance.md). Not measured on a GPU or TPU; where a mesh cuts the weights they
  would have to move first.
  """
  kernels = [_use(p, x_BTD.dtype) for p in weights]
  if not together:
    return [
      jnp.einsum("BTD,DNH->BTNH", x_BTD, w) if w.ndim == 3 else matmul(x_BTD, w) for w in kernels
    ]
  flat = [w.reshape(w.shape[0], -1) for w in kernels]
  found = matmul(x_BTD, jnp.concatenate(flat, axis=1))
  ends = np.cumsum([w.shape[1] for w in flat])[:-1].tolist()
  parts = jnp.split(found, ends, axis=-1)
  return [y.reshape(*y.shape[:-1], *w.shape[1:]) for y, w in zip(parts, kernels, strict=True)]


def _use(p: nnx.Param, dtype) -> jax.Array:
  """A weight on its way into a matmul: cast first, then gathered, so that half the bytes travel."""
  return mesh.gather(p[...].astype(dtype), p.axes)
