"""The parts of a decoder: each parameter is declared once, with the names of its axes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mlit_jax import mesh
from mlit_jax.model import attention, experts
from mlit_jax.model.config import DecoderConfig
from mlit_jax.model.rope import rotate


def param(shape: tuple[int, ...], axes: tuple[str, ...], *, std: float, mean: float = 0.0):
  """An abstract parameter: shape, the names of its axes, and how it starts."""
  return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), axes=axes, std=std, mean=mean)


class RmsNorm(nnx.Module):
  """x / rms(x) * scale in float32. Gemma multiplies before the cast back, the others after it."""

  def __init__(self, width: int, axis: str, cfg: DecoderConfig):
    self.eps, self.plus_one = cfg.norm_eps, cfg.norm_plus_one
    name = "scale_H" if axis == "head_dim" else "scale_D"
    setattr(self, name, param((width,), (axis,), std=0.0, mean=0.0 if self.plus_one else 1.0))
    self.name = name

  def __call__(self, x):
    scale = getattr(self, self.name)[...]
    x_f32 = x.astype(jnp.float32)
    normed = x_f32 * jax.lax.rsqrt(jnp.mean(x_f32 * x_f32, axis=-1, keepdims=True) + self.eps)
    scale = scale.reshape((1,) * (x.ndim - 1) + scale.shape)
    if self.plus_one:
      return (normed * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)
    return normed.astype(x.dtype) * scale.astype(x.dtype)


class Attention(nnx.Module):
  """Grouped-query attention with rotary positions."""

  def __init__(self, cfg: DecoderConfig):
    D, N, K, H = cfg.d_model, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
    self.cfg = cfg
    self.q_DNH = param((D, N, H), ("embed", "heads", "head_dim"), std=D**-0.5)
    self.k_DKH = param((D, K, H), ("embed", "kv_heads", "head_dim"), std=D**-0.5)
    self.v_DKH = param((D, K, H), ("embed", "kv_heads", "head_dim"), std=D**-0.5)
    out_std = (N * H * 2 * cfg.num_layers) ** -0.5  # residual branches add up: GPT-2's scaling
    self.o_NHD = param((N, H, D), ("heads", "head_dim", "embed"), std=out_std)
    if cfg.attn_bias:
      self.q_bias_NH = param((N, H), ("heads", "head_dim"), std=0.0)
      self.k_bias_KH = param((K, H), ("kv_heads", "head_dim"), std=0.0)
      self.v_bias_KH = param((K, H), ("kv_heads", "head_dim"), std=0.0)
    if cfg.out_bias:
      self.o_bias_D = param((D,), ("embed",), std=0.0)
    if cfg.qk_norm:
      self.q_norm = RmsNorm(H, "head_dim", cfg)
      self.k_norm = RmsNorm(H, "head_dim", cfg)

  def qkv(self, x_BTD, rope_BTH, growth_BT=None):
    """Rotated queries (times `growth`, where there is one), rotated keys, values."""
    q_BTNH = jnp.einsum("BTD,DNH->BTNH", x_BTD, _use(self.q_DNH, x_BTD.dtype))
    k_BTKH = jnp.einsum("BTD,DKH->BTKH", x_BTD, _use(self.k_DKH, x_BTD.dtype))
    v_BTKH = jnp.einsum("BTD,DKH->BTKH", x_BTD, _use(self.v_DKH, x_BTD.dtype))
    if self.cfg.attn_bias:
      q_BTNH = q_BTNH + _use(self.q_bias_NH, x_BTD.dtype)[None, None]
      k_BTKH = k_BTKH + _use(self.k_bias_KH, x_BTD.dtype)[None, None]
      v_BTKH = v_BTKH + _use(self.v_bias_KH, x_BTD.dtype)[None, None]
    if self.cfg.qk_norm:
      q_BTNH, k_BTKH = self.q_norm(q_BTNH), self.k_norm(k_BTKH)
    q_BTNH = mesh.constrain(q_BTNH, "batch", "length", "heads", "head_dim")
    q_BTNH = rotate(q_BTNH, *rope_BTH)
    if growth_BT is not None:
      q_BTNH = q_BTNH * growth_BT[:, :, None, None].astype(q_BTNH.dtype)
    return q_BTNH, rotate(k_BTKH, *rope_BTH), v_BTKH

  def __call__(self, q_BTNH, k_BSKH, v_BSKH, mask_BTS):
    o_BTNH = attention.attend(
      q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale=self.cfg.query_scale, softcap=self.cfg.attn_softcap
    )
    o_BTNH = checkpoint_name(o_BTNH, "attn_out")
    out_BTD = jnp.einsum("BTNH,NHD->BTD", o_BTNH, _use(self.o_NHD, o_BTNH.dtype))
    if self.cfg.out_bias:
      out_BTD = out_BTD + _use(self.o_bias_D, o_BTNH.dtype)[None, None]
    return out_BTD


class Mlp(nnx.Module):
  """down(act(gate x) * up x)."""

  def __init__(self, cfg: DecoderConfig):
    D, F = cfg.d_model, cfg.d_ff
    self.activation, self.bias = cfg.activation, cfg.mlp_bias
    if cfg.mlp_bias:
      self.gate_bias_F = param((F,), ("mlp",), std=0.0)
      self.up_bias_F = param((F,), ("mlp",), std=0.0)
      self.down_bias_D = param((D,), ("embed",), std=0.0)
    self.gate_DF = param((D, F), ("embed", "mlp"), std=D**-0.5)
    self.up_DF = param((D, F), ("embed", "mlp"), std=D**-0.5)
    self.down_FD = param((F, D), ("mlp", "embed"), std=(F * 2 * cfg.num_layers) ** -0.5)

  def __call__(self, x_BTD):
    gate_BTF = matmul(x_BTD, _use(self.gate_DF, x_BTD.dtype))
    up_BTF = matmul(x_BTD, _use(self.up_DF, x_BTD.dtype))
    if self.bias:
      gate_BTF = gate_BTF + _use(self.gate_bias_F, x_BTD.dtype)[None, None]
      up_BTF = up_BTF + _use(self.up_bias_F, x_BTD.dtype)[None, None]
    silu = self.activation == "silu"
    act_BTF = jax.nn.silu(gate_BTF) if silu else jax.nn.gelu(gate_BTF, approximate=True)
    h_BTF = act_BTF * up_BTF
    h_BTF = mesh.constrain(h_BTF, "batch", "length", "mlp")
    out_BTD = matmul(h_BTF, _use(self.down_FD, x_BTD.dtype))
    return out_BTD + _use(self.down_bias_D, x_BTD.dtype)[None, None] if self.bias else out_BTD


class Moe(nnx.Module):
  """Each token's C of E gated MLPs, weighted by the router's probabilities; the router is float32."""

  def __init__(self, cfg: DecoderConfig):
    D, F, E = cfg.d_model, cfg.d_ff, cfg.num_experts
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
      experts.run,
      (x_BTD, choice_BTC, weight_BTC),
      tuple(p[...].astype(x_BTD.dtype) for p in params),
      tuple(p.axes for p in params),
    )
    return out_BTD, (probs_BTE, choice_BTC)


class Block(nnx.Module):
  """One layer: attention and MLP, each normalised before (and, for Gemma 3, after)."""

  def __init__(self, cfg: DecoderConfig):
    self.attn_norm = RmsNorm(cfg.d_model, "embed", cfg)
    self.attn = Attention(cfg)
    self.mlp_norm = RmsNorm(cfg.d_model, "embed", cfg)
    self.sparse = cfg.num_experts > 0
    if self.sparse:
      self.moe = Moe(cfg)
    else:
      self.mlp = Mlp(cfg)
    self.post_norms, self.residual_scale = cfg.post_norms, cfg.residual_scale
    if cfg.post_norms:
      self.post_attn_norm = RmsNorm(cfg.d_model, "embed", cfg)
      self.post_mlp_norm = RmsNorm(cfg.d_model, "embed", cfg)

  def read(self, x_BTD):
    """What attention reads."""
    return self.attn_norm(x_BTD)

  def add(self, x_BTD, h_BTD, o_BTD):
    """The residual stream `x` with attention's output `o` and the MLP's added; attention read `h`.

    And how experts were routed: Moe's second result, None without experts.
    """
    x_BTD = x_BTD + self._scaled(self.post_attn_norm(o_BTD) if self.post_norms else o_BTD)
    y_BTD = self.mlp_norm(x_BTD)
    m_BTD, routed = self.moe(y_BTD) if self.sparse else (self.mlp(y_BTD), None)
    x_BTD = x_BTD + self._scaled(self.post_mlp_norm(m_BTD) if self.post_norms else m_BTD)
    return x_BTD, routed

  def _scaled(self, o_BTD):
    """In float32: bfloat16 would make Granite's 0.22 a 0.2197."""
    if self.residual_scale == 1.0:
      return o_BTD
    return (o_BTD.astype(jnp.float32) * self.residual_scale).astype(o_BTD.dtype)


class Decoder(nnx.Module):
  """The whole declaration. `block` stands for all layers: decoder.py stacks it along a first axis L."""

  def __init__(self, cfg: DecoderConfig):
    V, D = cfg.vocab_size, cfg.d_model
    self.embed = Embedding(V, D)
    self.blocks = Block(cfg)
    self.final_norm = RmsNorm(D, "embed", cfg)
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


def _use(p: nnx.Param, dtype) -> jax.Array:
  """A weight on its way into a matmul: cast first, then gathered, so that half the bytes travel."""
  return mesh.gather(p[...].astype(dtype), p.axes)
