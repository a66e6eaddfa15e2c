"""Bytes that kernels move, by hand, of a module as XLA for GPUs writes it."""

import pytest

from mlit_jax.planning.kernels import Moved, moved_bytes

MODULE = """HloModule step

%cut (p0: f32[4,8,16], p1: s32[]) -> bf16[8,16] {
  %p0 = f32[4,8,16]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %piece = f32[1,8,16]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  %flat = f32[8,16]{1,0} bitcast(%piece)
  ROOT %out = bf16[8,16]{1,0} convert(%flat)
}

%put (p0: f32[4,8,16], p1: f32[8,16], p2: s32[]) -> f32[4,8,16] {
  %p0 = f32[4,8,16]{2,1,0} parameter(0)
  %p1 = f32[8,16]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %twice = f32[8,16]{1,0} add(%p1, %p1)
  %part = f32[1,8,16]{2,1,0} bitcast(%twice)
  ROOT %put.1 = f32[4,8,16]{2,1,0} dynamic-update-slice(%p0, %part, %p2, %zero, %zero)
}

%two (p0: f32[8,16]) -> (f32[8,16], f32[8,16]) {
  %p0 = f32[8,16]{1,0} parameter(0)
  %a = f32[8,16]{1,0} negate(%p0)
  ROOT %both = (f32[8,16]{1,0}, f32[8,16]{1,0}) tuple(%a, %p0)
}

%product (p0: bf16[8,16], p1: bf16[16,32]) -> f32[8,32] {
  %p0 = bf16[8,16]{1,0} parameter(0)
  %p1 = bf16[16,32]{1,0} parameter(1)
  ROOT %dot = f32[8,32]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (arg: (s32[], f32[4,8,16], bf16[16,32])) -> (s32[], f32[4,8,16], bf16[16,32]) {
  %arg = (s32[], f32[4,8,16]{2,1,0}, bf16[16,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %stack = f32[4,8,16]{2,1,0} get-tuple-element(%arg), index=1
  %w = bf16[16,32]{1,0} get-tuple-element(%arg), index=2
  %fusion.1 = bf16[8,16]{1,0} fusion(%stack, %i), kind=kLoop, calls=%cut
  %gemm = f32[8,32]{1,0} fusion(%fusion.1, %w), kind=kCustom, calls=%product
  %begun = ((f32[4,8,16]{2,1,0}, f32[8,16]{1,0}, s32[]), f32[4,8,16]{2,1,0}, u32[]) fusion-start(%stack, %x, %i), kind=kLoop, calls=%put
  %ended = f32[4,8,16]{2,1,0} fusion-done(%begun)
  %x = f32[8,16]{1,0} slice(%gemm), slice={[0:8], [0:16]}
  ROOT %next = (s32[], f32[4,8,16]{2,1,0}, bf16[16,32]{1,0}) tuple(%i, %ended, %w)
}

%condition (arg: (s32[], f32[4,8,16], bf16[16,32])) -> pred[] {
  %arg = (s32[], f32[4,8,16]{2,1,0}, bf16[16,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %four = s32[] constant(4)
  ROOT %less = pred[] compare(%i, %four), direction=LT
}

ENTRY %main (stack: f32[4,8,16], w: bf16[16,32], x: f32[8,16]) -> f32[4,8,16] {
  %stack = f32[4,8,16]{2,1,0} parameter(0)
  %w = bf16[16,32]{1,0} parameter(1)
  %x = f32[8,16]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %first = (s32[], f32[4,8,16]{2,1,0}, bf16[16,32]{1,0}) tuple(%zero, %stack, %w)
  %loop = (s32[], f32[4,8,16]{2,1,0}, bf16[16,32]{1,0}) while(%first), condition=%condition, body=%body
  %pair = (f32[8,16]{1,0}, f32[8,16]{1,0}) fusion(%x), kind=kLoop, calls=%two
  %kernel = f32[8,16]{1,0} custom-call(%x, %w), custom_call_target="__cudnn$fmha"
  ROOT %out = f32[4,8,16]{2,1,0} get-tuple-element(%loop), index=1
}
"""
PIECE = 8 * 16 * 4


def test_pieces_loops_and_products():
  in_loop = (
    4 + PIECE + PIECE / 2
  )  # cut: the number of the layer, a piece read, and written in half the bytes
  in_loop += 4 + PIECE + PIECE  # put: the number, what is put, and the part of the whole
  in_loop += 8 * 32 * 4 + PIECE  # the slice outside of a fusion
  product = PIECE / 2 + 16 * 32 * 2 + 8 * 32 * 4
  others, kernel = 4 * in_loop + 3 * PIECE, 2 * PIECE + 16 * 32 * 2
  assert moved_bytes(MODULE) == Moved(4 * product + kernel, others)


@pytest.mark.parametrize(
  "old, new, more",
  [
    # Read whole where anything else is done with it.
    ("%flat = f32[8,16]{1,0} bitcast(%piece)", "%flat = f32[8,16]{1,0} reduce(%p0, %zero)", 4 * 3 * PIECE),
    # A loop of unknown length counts once.
    ("direction=LT", "direction=NE", None),
  ],
)  # fmt: skip
def test_what_changes_it(old, new, more):
  before, after = moved_bytes(MODULE).total, moved_bytes(MODULE.replace(old, new)).total
  assert after - before == more if more else after < before / 2
