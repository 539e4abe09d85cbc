"""Gradients of the softmax losses from the statistics, x_ij = scale c_ij. Row i's part of dx, and likewise column j's:

    dx_ij = share softmax_ij - target_ij = ((share e - target) - target rest_i) / (1 + rest_i),   e = exp(x_ij - reference_i)
    share = (1 - s) [row i has a positive] + s,   target = (1 - s) positive_ij / count_i + s / M,   s = label_smoothing

in which share e - target cancels exactly where a positive dominates. Columns count N / M.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pair_chunks import Chunk, pair_gradients, store_gradient
from .pair_features import Side, feature_grad
from .pair_tile import Labels, cosine_tile, load_labels, may_meet, pair_marks
from .precision import dot_precision


@triton.jit
def load_line(values, count, offs, N, smoothing):
    """reference, rest, share, and the target of a positive, of a block of lines."""
    mask = offs < N
    positives = tl.load(count + offs, mask=mask, other=0)
    reference = tl.load(values + offs, mask=mask, other=0.0)
    rest = tl.load(values + N + offs, mask=mask, other=0.0)
    share = tl.where(positives > 0, 1.0 - smoothing, 0.0) + smoothing
    return reference, rest, share, (1.0 - smoothing) / tl.maximum(positives, 1).to(tl.float32)


@triton.jit
def line_gradient(x, positive, hidden, reference, rest, share, target, uniform):
    """dx times 1 + rest; lines' arguments are broadcast along them."""
    e = tl.where(hidden, 0.0, tl.exp(x - reference))
    wanted = tl.where(positive, target, 0.0) + uniform
    return (share * e - wanted) - wanted * rest


@triton.jit
def pair_softmax_bwd_kernel(
    a, a_inverse, b, b_inverse, scale,  # (padded N, DIM), (padded N,), (padded M, DIM), (padded M,), ()
    row_key, col_key, row_skip, col_skip,  # (N,), (M,), (N,) or None, (M,) or None; int64
    row_values, row_count, col_values, col_count,  # (4, N), (N,), (4, M) or None, (M,) or None
    g, sums,  # (chunk rows, stride_g) or None, (1, row tiles, column tiles): of dx c
    N, M, DIM, first_row, first_col, chunk_rows, stride_g, smoothing, col_weight, lift,
    WITH_COLS: tl.constexpr, SYMMETRIC: tl.constexpr, SMOOTH: tl.constexpr, WITH_G: tl.constexpr,
    HAS_SKIP: tl.constexpr, SKIP_POSITIVES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of a chunk."""
    row, col = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    offs_m = first_row + row + tl.arange(0, BLOCK_M)
    offs_n = first_col + col + tl.arange(0, BLOCK_N)
    if SYMMETRIC:
        if first_col + col + BLOCK_N <= first_row + row:
            return
    cosine, inverses = cosine_tile(
        a, a_inverse, offs_m, b, b_inverse, offs_n, DIM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION
    )
    x = cosine * tl.load(scale)
    rows_key, cols_key = load_labels(row_key, offs_m, N), load_labels(col_key, offs_n, M)
    rows_skip, cols_skip = rows_key, cols_key
    special = may_meet(rows_key, cols_key)
    if HAS_SKIP:
        rows_skip, cols_skip = load_labels(row_skip, offs_m, N), load_labels(col_skip, offs_n, M)
        special = special | may_meet(rows_skip, cols_skip)
    special = special | (first_row + row + BLOCK_M > N) | (first_col + col + BLOCK_N > M)
    if SYMMETRIC:
        special = special | (first_col + col < first_row + row + BLOCK_M)
    reference, rest, share, target = load_line(row_values, row_count, offs_m, N, smoothing)
    inverse = 1.0 / (1.0 + rest)
    if WITH_COLS:
        col_reference, col_rest, col_share, col_target = load_line(col_values, col_count, offs_n, M, smoothing)
        col_inverse = col_weight / (1.0 + col_rest)
    pairs = tl.full((BLOCK_M, BLOCK_N), True, tl.int1)
    if SYMMETRIC:
        pairs = offs_m[:, None] <= offs_n[None, :]
    if SMOOTH or special:
        positive, hidden = pair_marks(rows_key, cols_key, rows_skip, cols_skip, HAS_SKIP, SKIP_POSITIVES)
        dx = inverse[:, None] * line_gradient(
            x, positive, hidden, reference[:, None], rest[:, None], share[:, None], target[:, None], smoothing / M
        )
        if WITH_COLS:
            dx += col_inverse[None, :] * line_gradient(
                x, positive, hidden, col_reference[None, :], col_rest[None, :], col_share[None, :],
                col_target[None, :], smoothing / N,
            )  # fmt: skip
        dx = tl.where((offs_m < N)[:, None] & (offs_n < M)[None, :] & pairs, dx, 0.0)
    else:
        dx = tl.exp(x - reference[:, None]) * (share * inverse)[:, None]
        if WITH_COLS:
            dx += tl.exp(x - col_reference[None, :]) * (col_share * col_inverse)[None, :]
    moment = dx * cosine
    if SYMMETRIC:
        moment = tl.where(offs_m[:, None] == offs_n[None, :], 0.5 * moment, moment)  # dx is both its parts there
    tl.store(sums + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.sum(moment))
    if WITH_G:
        store_gradient(g, dx, inverses, lift, offs_m - first_row, offs_n - first_col, stride_g, chunk_rows, pairs,
                       SYMMETRIC)  # fmt: skip


def pair_softmax_bwd(
    unit: Tensor, a: Side, b: Side, scale: Tensor,
    keys: Labels, skips: Labels | None, skip_positives: bool,
    mode: str, label_smoothing: float, rows: Tensor, row_count: Tensor, cols: Tensor, col_count: Tensor,
    needs: list[bool], dtype: torch.dtype, tile: Any,
) -> tuple[Tensor | None, Tensor | None, Tensor]:  # fmt: skip
    """da (N, D), db (M, D), None where not needed, and dscale, 0-dim float64."""
    symmetric = mode == "symmetric"
    with_cols = symmetric or mode == "both"
    col_weight = 1.0 if symmetric else a.n / b.n
    if symmetric:
        cols, col_count = rows, row_count

    def fill(chunk: Chunk) -> None:
        pair_softmax_bwd_kernel[chunk.grid](
            a.rows, a.inverse, b.rows, b.inverse, scale,
            *keys, *(skips or (None, None)),
            rows, row_count, cols, col_count,
            chunk.g, chunk.sums,
            a.n, b.n, a.rows.shape[1], chunk.first_row, chunk.first_col,
            chunk.sums.shape[1] * tile.block_m, chunk.sums.shape[2] * tile.block_n,
            label_smoothing, col_weight, chunk.lift,
            WITH_COLS=with_cols, SYMMETRIC=symmetric, SMOOTH=label_smoothing > 0, WITH_G=chunk.g is not None,
            HAS_SKIP=skips is not None, SKIP_POSITIVES=skip_positives,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=tile.block_d, PRECISION=dot_precision(a.rows.dtype),
            num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
        )  # fmt: skip

    largest = 1.0 + (col_weight if with_cols else 0.0)
    gradients = pair_gradients(a, b, (needs[0], needs[1] and not symmetric), largest, 1, fill, tile)
    multiplier = (unit.double() * scale / gradients.lift).float()
    da, db = (
        None if t is None else feature_grad(side, t, multiplier, dtype)
        for side, t in ((a, gradients.t_a), (b, gradients.t_b))
    )
    return da, db, unit * gradients.sums[0]
