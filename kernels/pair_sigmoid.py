"""Sigmoid loss over all pairs, its gradients in the same sweep. x_ij = scale c_ij + bias, z = -label x:

loss = sum softplus(z),   softplus(z) = max(z, 0) + log1p(e),   e = exp(-|z|)
dx   = -label sigmoid(z),     sigmoid(z) = (z < 0 ? e : 1) / (1 + e)
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .assembler import kernel
from .pair_chunks import Chunk, pair_gradients, store_gradient
from .pair_features import Side, feature_grad
from .pair_tile import Labels, cosine_tile, is_special, marks_of, pair_marks
from .precision import dot_precision

NOWHERE = tl.constexpr(-1e38)  # z of a pair that is not there: no loss, no gradient


@triton.jit
def log1p_unit(e):
    """log(1 + e) for e in [0, 1], relative error 1.3e-7: a minimax fit of log(1 + e) / e that is 1 at 0."""
    p = 5.364813946e-3 * e - 3.006575078e-2
    p = tl.fma(p, e, 7.920446820e-2)
    p = tl.fma(p, e, -1.375379666e-1)
    p = tl.fma(p, e, 1.915365229e-1)
    p = tl.fma(p, e, -2.485716300e-1)
    p = tl.fma(p, e, 3.332132254e-1)
    p = tl.fma(p, e, -4.999964796e-1)
    return e * tl.fma(p, e, 1.0)


@kernel
def pair_sigmoid_kernel(
    a, a_inverse, b, b_inverse, scale, bias,  # (padded N, DIM), (padded N,), (padded M, DIM), (padded M,), (), ()
    row_key, col_key, row_key_ranges, col_key_ranges,  # (N,), (M,), (row tiles, 2), (column tiles, 2); int64
    g, sums,  # (chunk rows, stride_g) or None, (3, row tiles, column tiles): of the loss, dx c, dx
    N, M, DIM, first_row_tile, stride_g, plane, lift,  # plane: elements of one of the sums
    WITH_G: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of a chunk."""
    row_tile, col_tile = first_row_tile + tl.program_id(0), tl.program_id(1)
    offs_m = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    cosine = cosine_tile(a, a_inverse, offs_m, b, b_inverse, offs_n, DIM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
    special = is_special(
        row_key_ranges, col_key_ranges, None, None, row_tile, col_tile, N, M, False, False, BLOCK_M, BLOCK_N
    )
    z = cosine * tl.load(scale) + tl.load(bias)
    if special:
        positive, _, there = pair_marks(row_key, col_key, None, None, offs_m, offs_n, N, M, False, False, False)
        z = tl.where(positive, -z, tl.where(there, z, NOWHERE))
    to = sums + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    e = tl.exp(-tl.abs(z))
    tl.store(to, tl.sum(tl.maximum(z, 0.0) + log1p_unit(e)))
    dx = tl.where(z < 0, e, 1.0) / (1.0 + e)
    if special:
        positive, _, _ = pair_marks(row_key, col_key, None, None, offs_m, offs_n, N, M, False, False, False)
        dx = tl.where(positive, -dx, dx)
    tl.store(to + plane, tl.sum(dx * cosine))
    tl.store(to + 2 * plane, tl.sum(dx))
    if WITH_G:
        store_gradient(
            g, dx, a_inverse, b_inverse, lift, offs_m, offs_n, first_row_tile * BLOCK_M, 0, stride_g, 0, False
        )


def pair_sigmoid(
    a: Side, b: Side, scale: Tensor, bias: Tensor, keys: Labels, needs: list[bool], tile: Any
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
    """loss, da (N, D), db (M, D), float32, None where not needed, dscale and dbias; scalars are float64."""
    marks = marks_of(keys, tile)

    def fill(chunk: Chunk) -> None:
        pair_sigmoid_kernel[chunk.grid](
            a.rows, a.inverse, b.rows, b.inverse, scale, bias,
            *marks,
            chunk.g, chunk.sums,
            a.n, b.n, a.rows.shape[1], chunk.first_row // tile.block_m,
            b.rows.shape[0], chunk.sums.stride(0), chunk.lift,
            WITH_G=chunk.g is not None,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=tile.block_d, PRECISION=dot_precision(a.rows.dtype),
            num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
        )  # fmt: skip

    gradients = pair_gradients(a, b, (needs[0], needs[1]), 1.0, 3, fill, tile)
    multiplier = (scale.double() / gradients.lift).float()
    da, db = (
        None if t is None else feature_grad(side, t, multiplier, torch.float32)
        for side, t in ((a, gradients.t_a), (b, gradients.t_b))
    )
    loss, dscale, dbias = gradients.sums
    return loss, da, db, dscale, dbias
