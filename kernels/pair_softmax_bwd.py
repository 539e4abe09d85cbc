"""Gradients of the softmax losses from the statistics, x_ij = scale c_ij. Row i's part of dx, and likewise column j's:

    dx_ij = share softmax_ij - target_ij = ((share e - target) - target rest_i) / (1 + rest_i)
    e = exp(x_ij - reference_i)
    share = (1 - s) [row i has a positive] + s,   target = (1 - s) positive_ij / count_i + s / M,   s = label_smoothing

in which share e - target cancels exactly where a positive dominates. Columns count N / M.
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
def line_gradient(x, positive, visible, reference, rest, share, target, uniform):
    """dx times 1 + rest; lines' arguments are broadcast along them."""
    e = tl.where(visible, tl.exp(x - reference), 0.0)
    wanted = tl.where(positive, target, 0.0) + uniform
    return (share * e - wanted) - wanted * rest


@kernel
def pair_softmax_bwd_kernel(
    a, a_inverse, b, b_inverse, scale,  # (padded N, DIM), (padded N,), (padded M, DIM), (padded M,), ()
    row_key, col_key, row_key_ranges, col_key_ranges,  # (N,), (M,), (row tiles, 2), (column tiles, 2); int64
    row_skip, col_skip, row_skip_ranges, col_skip_ranges,  # likewise, or None
    row_values, row_count, col_values, col_count,  # (4, N), (N,), (4, M) or None, (M,) or None
    g, sums,  # (chunk rows, stride_g) or None, (1, row tiles, column tiles): of dx c
    N, M, DIM, first_row_tile, first_col_tile, stride_g, chunk_rows, smoothing, col_weight, lift,
    WITH_COLS: tl.constexpr, SYMMETRIC: tl.constexpr, SMOOTH: tl.constexpr, WITH_G: tl.constexpr,
    HAS_SKIP: tl.constexpr, SKIP_POSITIVES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of a chunk."""
    row_tile, col_tile = first_row_tile + tl.program_id(0), first_col_tile + tl.program_id(1)
    if SYMMETRIC and (col_tile + 1) * BLOCK_N <= row_tile * BLOCK_M:
        return
    offs_m = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    cosine = cosine_tile(a, a_inverse, offs_m, b, b_inverse, offs_n, DIM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
    x = cosine * tl.load(scale)
    special = is_special(
        row_key_ranges, col_key_ranges, row_skip_ranges, col_skip_ranges, row_tile, col_tile, N, M,
        HAS_SKIP, SYMMETRIC, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if SMOOTH or special:
        positive, visible, there = pair_marks(
            row_key, col_key, row_skip, col_skip, offs_m, offs_n, N, M, HAS_SKIP, SKIP_POSITIVES, SYMMETRIC
        )
        reference, rest, share, target = load_line(row_values, row_count, offs_m, N, smoothing)
        dx = line_gradient(
            x, positive, visible, reference[:, None], rest[:, None], share[:, None], target[:, None], smoothing / M
        ) * (1.0 / (1.0 + rest))[:, None]  # fmt: skip
        if WITH_COLS:
            reference, rest, share, target = load_line(col_values, col_count, offs_n, M, smoothing)
            dx += line_gradient(
                x, positive, visible, reference[None, :], rest[None, :], share[None, :], target[None, :], smoothing / N
            ) * (col_weight / (1.0 + rest))[None, :]  # fmt: skip
        dx = tl.where(there, dx, 0.0)
    else:
        reference, rest, share, _ = load_line(row_values, row_count, offs_m, N, smoothing)
        dx = tl.exp(x - reference[:, None]) * (share / (1.0 + rest))[:, None]
        if WITH_COLS:
            reference, rest, share, _ = load_line(col_values, col_count, offs_n, M, smoothing)
            dx += tl.exp(x - reference[None, :]) * (col_weight * share / (1.0 + rest))[None, :]
    moment = dx * cosine
    if SYMMETRIC:
        moment = tl.where(offs_m[:, None] == offs_n[None, :], 0.5 * moment, moment)  # dx is both its parts there
    tl.store(sums + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.sum(moment))
    if WITH_G:
        store_gradient(
            g, dx, a_inverse, b_inverse, lift, offs_m, offs_n, first_row_tile * BLOCK_M, first_col_tile * BLOCK_N,
            stride_g, chunk_rows, SYMMETRIC,
        )  # fmt: skip


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

    key_marks, skip_marks = marks_of(keys, tile), marks_of(skips, tile)

    def fill(chunk: Chunk) -> None:
        pair_softmax_bwd_kernel[chunk.grid](
            a.rows, a.inverse, b.rows, b.inverse, scale,
            *key_marks, *skip_marks,
            rows, row_count, cols, col_count,
            chunk.g, chunk.sums,
            a.n, b.n, a.rows.shape[1], chunk.first_row // tile.block_m, chunk.first_col // tile.block_n,
            chunk.grid[1] * tile.block_n, chunk.grid[0] * tile.block_m,
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
