"""One tile of the pairs: cosines, and the labels that mark positives and hidden pairs.

    c_ij = inverse_i inverse_j (rows_i . rows_j),   x_ij = scale c_ij

Every kernel takes its tile from here, in one cut, so that all see the same bits. They are compiled without fused
multiply-adds: x would be another number in each place that uses it.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .assembler import kernel

Labels = tuple[Tensor, Tensor]  # of the rows (N,) and of the columns (M,), int64: equal ones mark a pair


@triton.jit
def product_tile(
    a, offs_m, b, offs_n, DIM,  # (padded N, DIM), (BLOCK_M,), (padded M, DIM), (BLOCK_N,)
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(BLOCK_M, BLOCK_N) products of rows."""
    offs_d = tl.arange(0, BLOCK_D)
    a_ptrs = a + offs_m.to(tl.int64)[:, None] * DIM + offs_d[None, :]
    b_ptrs = b + offs_n.to(tl.int64)[None, :] * DIM + offs_d[:, None]
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(0, DIM, BLOCK_D):
        product = tl.dot(tl.load(a_ptrs), tl.load(b_ptrs), product, input_precision=PRECISION)
        a_ptrs += BLOCK_D
        b_ptrs += BLOCK_D
    return product


@triton.jit
def cosine_tile(
    a, a_inverse, offs_m,  # (padded N, DIM), (padded N,), (BLOCK_M,)
    b, b_inverse, offs_n,  # (padded M, DIM), (padded M,), (BLOCK_N,)
    DIM,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(BLOCK_M, BLOCK_N) cosines."""
    product = product_tile(a, offs_m, b, offs_n, DIM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
    return product * (tl.load(a_inverse + offs_m)[:, None] * tl.load(b_inverse + offs_n)[None, :])


@triton.jit
def load_labels(labels, offs, N):
    """Labels of a block; beyond the end the last one again."""
    return tl.load(labels + tl.minimum(offs, N - 1))


@kernel
def label_ranges_kernel(
    labels, ranges,  # (N,), (tiles, 2): the least and the largest of each tile; int64
    N, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile."""
    block = load_labels(labels, tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), N)
    tl.store(ranges + 2 * tl.program_id(0), tl.min(block, 0))
    tl.store(ranges + 2 * tl.program_id(0) + 1, tl.max(block, 0))


@triton.jit
def may_meet(row_ranges, col_ranges, row_tile, col_tile):
    """Whether the labels of two tiles overlap: without that no pair of theirs is marked."""
    row_low, row_high = tl.load(row_ranges + 2 * row_tile), tl.load(row_ranges + 2 * row_tile + 1)
    col_low, col_high = tl.load(col_ranges + 2 * col_tile), tl.load(col_ranges + 2 * col_tile + 1)
    return (row_low <= col_high) & (col_low <= row_high)


@triton.jit
def is_special(
    row_key_ranges, col_key_ranges, row_skip_ranges, col_skip_ranges,  # (row tiles, 2), (column tiles, 2), ...
    row_tile, col_tile, N, M,
    HAS_SKIP: tl.constexpr, SYMMETRIC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Whether a tile may have marks, or ends beyond a side, or meets the diagonal of a symmetric problem."""
    special = may_meet(row_key_ranges, col_key_ranges, row_tile, col_tile)
    if HAS_SKIP:
        special = special | may_meet(row_skip_ranges, col_skip_ranges, row_tile, col_tile)
    if SYMMETRIC:
        special = special | (col_tile * BLOCK_N < (row_tile + 1) * BLOCK_M)
    return special | ((row_tile + 1) * BLOCK_M > N) | ((col_tile + 1) * BLOCK_N > M)


@triton.jit
def pair_marks(
    row_key, col_key, row_skip, col_skip, offs_m, offs_n, N, M,  # (N,), (M,), (N,) or None, (M,) or None
    HAS_SKIP: tl.constexpr, SKIP_POSITIVES: tl.constexpr, SYMMETRIC: tl.constexpr,
):  # fmt: skip
    """Three (BLOCK_M, BLOCK_N) masks: positives; pairs in the denominator; all pairs, i <= j if symmetric."""
    there = (offs_m < N)[:, None] & (offs_n < M)[None, :]
    if SYMMETRIC:
        there = there & (offs_m[:, None] <= offs_n[None, :])
    positive = there & (load_labels(row_key, offs_m, N)[:, None] == load_labels(col_key, offs_n, M)[None, :])
    visible = there
    if HAS_SKIP:
        differ = load_labels(row_skip, offs_m, N)[:, None] != load_labels(col_skip, offs_n, M)[None, :]
        if SKIP_POSITIVES:
            visible = there & differ
            positive = positive & differ
        else:
            visible = there & (differ | positive)
    return positive, visible, there


def marks_of(labels: Labels | None, tile: Any) -> tuple[Tensor | None, ...]:
    """Labels of both sides as the kernels take them: rows', columns', and the ranges of each one's tiles."""
    if labels is None:
        return None, None, None, None
    blocks = tile.block_m, tile.block_n
    ranges = [side.new_empty((triton.cdiv(len(side), block), 2)) for side, block in zip(labels, blocks, strict=True)]
    for side, of_tiles, block in zip(labels, ranges, blocks, strict=True):
        label_ranges_kernel[(len(of_tiles),)](side, of_tiles, len(side), BLOCK=block, num_warps=4, num_stages=1)
    return *labels, *ranges
