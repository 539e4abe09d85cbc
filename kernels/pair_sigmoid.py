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

from .pair_chunks import Chunk, pair_gradients, store_gradient
from .pair_features import Side, feature_grad
from .pair_tile import Labels, cosine_tile, load_labels, may_meet
from .precision import dot_precision


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


@triton.jit
def pair_sigmoid_kernel(
    a, a_inverse, b, b_inverse, scale, bias,  # (padded N, DIM), (padded N,), (padded M, DIM), (padded M,), (), ()
    row_key, col_key,  # (N,), (M,); int64
    g, sums,  # (chunk rows, stride_g) or None, (3, row tiles, column tiles): of the loss, dx c, dx
    N, M, DIM, first_row, stride_g, plane, lift,  # plane: elements of one of the sums
    WITH_G: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of a chunk."""
    row, col = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    offs_m = first_row + row + tl.arange(0, BLOCK_M)
    offs_n = col + tl.arange(0, BLOCK_N)
    cosine, inverses = cosine_tile(
        a, a_inverse, offs_m, b, b_inverse, offs_n, DIM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION
    )
    z = cosine * tl.load(scale) + tl.load(bias)
    rows_key, cols_key = load_labels(row_key, offs_m, N), load_labels(col_key, offs_n, M)
    meets = may_meet(rows_key, cols_key)
    if meets:
        z = tl.where(rows_key[:, None] == cols_key[None, :], -z, z)
    e = tl.exp(-tl.abs(z))
    dx = tl.where(z < 0, e, 1.0) / (1.0 + e)
    loss = tl.maximum(z, 0.0) + log1p_unit(e)
    if meets:
        dx = tl.where(rows_key[:, None] == cols_key[None, :], -dx, dx)
    if (first_row + row + BLOCK_M > N) | (col + BLOCK_N > M):
        there = (offs_m < N)[:, None] & (offs_n < M)[None, :]
        dx = tl.where(there, dx, 0.0)
        loss = tl.where(there, loss, 0.0)
    to = sums + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(to, tl.sum(loss))
    tl.store(to + plane, tl.sum(dx * cosine))
    tl.store(to + 2 * plane, tl.sum(dx))
    if WITH_G:
        store_gradient(g, dx, inverses, lift, offs_m - first_row, offs_n, stride_g, 0, dx == dx, False)


def pair_sigmoid(
    a: Side, b: Side, scale: Tensor, bias: Tensor, keys: Labels, needs: list[bool], tile: Any
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
    """loss, da (N, D), db (M, D), float32, None where not needed, dscale and dbias; scalars are float64."""

    def fill(chunk: Chunk) -> None:
        pair_sigmoid_kernel[chunk.grid](
            a.rows, a.inverse, b.rows, b.inverse, scale, bias,
            *keys,
            chunk.g, chunk.sums,
            a.n, b.n, a.rows.shape[1], chunk.first_row, b.rows.shape[0], chunk.sums.stride(0), chunk.lift,
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
