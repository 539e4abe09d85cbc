"""Statistics of the rows and of the columns of x = scale c, both from one sweep of tiles.

A line (row or column) keeps (top, rest): its largest visible logit so far, and the sum of exp(x - top) over the others,
so that a line with one dominant logit keeps its tiny rest in full. Two of them merge into

    top = max(top_1, top_2),   rest = sum_k rest_k exp(top_k - top) + exp(min(top_1, top_2) - top)

A program owns a range of rows and a range of columns. Its rows' statistics go to `row_parts` of its column range, its
columns' to `col_parts` of its row range, and a second kernel merges the parts in order: no atomics, memory
O((N + M) parts). Symmetric (b is a): a pair i <= j is visited once, and is in row i and, unless i = j, in column j.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .assembler import kernel
from .pair_features import Side
from .pair_tile import Labels, cosine_tile, is_special, marks_of, pair_marks
from .precision import dot_precision

HIDDEN = tl.constexpr(-1e38)  # a logit that is left out, and the top of nothing
_ROW_RANGES, _PROGRAMS = 128, 2048  # at most: what bounds the columns' parts, what keeps a GPU busy to the end
_TOP, _REST, _POSITIVE, _COUNT, _SUM = (tl.constexpr(i) for i in range(5))  # planes of the parts


@triton.jit
def sum_both(x, y, AXIS: tl.constexpr):
    """Two sums along AXIS at once, so that what both are made of dies before the threads meet."""
    return tl.split(tl.sum(tl.join(x, y), AXIS))


@triton.jit
def lines_of(x, AXIS: tl.constexpr):
    """(top, rest) of the lines of a tile of logits, which run along AXIS."""
    top = tl.max(x, AXIS)
    line = tl.expand_dims(top, AXIS)
    below = x < line
    others, equal = sum_both(tl.where(below, tl.exp(x - line), 0.0), tl.where(below, 0.0, 1.0), AXIS)
    return top, others + (equal - 1.0)


@triton.jit
def merge_lines(top, rest, other_top, other_rest):
    """Two disjoint parts of the same lines as one."""
    new = tl.maximum(top, other_top)
    e, other_e = tl.exp(top - new), tl.exp(other_top - new)
    return new, rest * e + other_rest * other_e + tl.minimum(e, other_e)


@kernel(do_not_specialize=("row_tiles", "col_tiles"))  # small problems have 1, and need no kernel of their own
def pair_softmax_fwd_kernel(
    a, a_inverse, b, b_inverse, scale,  # (padded N, DIM), (padded N,), (padded M, DIM), (padded M,), ()
    row_key, col_key, row_key_ranges, col_key_ranges,  # (N,), (M,), (row tiles, 2), (column tiles, 2); int64
    row_skip, col_skip, row_skip_ranges, col_skip_ranges,  # likewise, or None
    row_parts, col_parts,  # (4 or 5, parts, padded N), (4 or 5, parts, padded M) or None
    N, M, DIM, row_plane, col_plane, padded_n, padded_m,  # elements of a plane, of a part
    row_tiles, col_tiles,  # of a program
    WITH_COLS: tl.constexpr, SYMMETRIC: tl.constexpr, UNIFORM: tl.constexpr,
    HAS_SKIP: tl.constexpr, SKIP_POSITIVES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (p, q): row tiles [p, p + 1) row_tiles and column tiles [q, q + 1) col_tiles."""
    row_range, col_range = tl.program_id(0), tl.program_id(1)
    row_plane, col_plane = row_plane.to(tl.int64), col_plane.to(tl.int64)
    last_row = tl.minimum((row_range + 1) * row_tiles, tl.cdiv(N, BLOCK_M))
    last_col = tl.minimum((col_range + 1) * col_tiles, tl.cdiv(M, BLOCK_N))
    for row_tile in range(row_range * row_tiles, last_row):
        offs_m = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
        top = tl.full((BLOCK_M,), HIDDEN, tl.float32)
        rest = tl.zeros((BLOCK_M,), tl.float32)
        positive_sum = tl.zeros((BLOCK_M,), tl.float32)
        count = tl.zeros((BLOCK_M,), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        first_col = col_range * col_tiles
        if SYMMETRIC:
            first_col = tl.maximum(first_col, row_tile * BLOCK_M // BLOCK_N)
        for col_tile in range(first_col, last_col):
            offs_n = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
            cosine = cosine_tile(a, a_inverse, offs_m, b, b_inverse, offs_n, DIM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
            x = cosine * tl.load(scale)
            if WITH_COLS:
                at = col_parts + row_range.to(tl.int64) * padded_m + offs_n
            special = is_special(
                row_key_ranges, col_key_ranges, row_skip_ranges, col_skip_ranges, row_tile, col_tile, N, M,
                HAS_SKIP, SYMMETRIC, BLOCK_M, BLOCK_N,
            )  # fmt: skip
            if UNIFORM:  # beyond the ends x is 0
                total += tl.sum(tl.where(offs_m[:, None] <= offs_n[None, :], x, 0.0) if SYMMETRIC else x, 1)
                if WITH_COLS:
                    others = tl.where(offs_m[:, None] < offs_n[None, :], x, 0.0) if SYMMETRIC else x
                    add_to(at + _SUM * col_plane, tl.sum(others, 0))
            if special:
                positive, visible, _ = pair_marks(
                    row_key, col_key, row_skip, col_skip, offs_m, offs_n, N, M, HAS_SKIP, SKIP_POSITIVES, SYMMETRIC
                )
                x = tl.where(visible, x, HIDDEN)
                row_positive, row_count = sum_both(tl.where(positive, x, 0.0), tl.where(positive, 1.0, 0.0), 1)
                positive_sum += row_positive
                count += row_count
            tile_top, tile_rest = lines_of(x, 1)
            top, rest = merge_lines(top, rest, tile_top, tile_rest)
            if WITH_COLS:
                if special:
                    positive, _, _ = pair_marks(
                        row_key, col_key, row_skip, col_skip, offs_m, offs_n, N, M, HAS_SKIP, SKIP_POSITIVES, SYMMETRIC
                    )
                    if SYMMETRIC:
                        positive = positive & (offs_m[:, None] != offs_n[None, :])
                        x = tl.where(offs_m[:, None] != offs_n[None, :], x, HIDDEN)
                    col_positive, col_count = sum_both(tl.where(positive, x, 0.0), tl.where(positive, 1.0, 0.0), 0)
                    add_to(at + _POSITIVE * col_plane, col_positive)
                    add_to(at + _COUNT * col_plane, col_count)
                tile_top, tile_rest = lines_of(x, 0)
                tl.debug_barrier()  # the threads that wrote a part for the row tile before are not those that read it
                col_top, col_rest = merge_lines(
                    tl.load(at + _TOP * col_plane), tl.load(at + _REST * col_plane), tile_top, tile_rest
                )
                tl.debug_barrier()
                tl.store(at + _TOP * col_plane, col_top)
                tl.store(at + _REST * col_plane, col_rest)
        to = row_parts + col_range.to(tl.int64) * padded_n + offs_m
        tl.store(to + _TOP * row_plane, top)
        tl.store(to + _REST * row_plane, rest)
        tl.store(to + _POSITIVE * row_plane, positive_sum)
        tl.store(to + _COUNT * row_plane, count)
        if UNIFORM:
            tl.store(to + _SUM * row_plane, total)


@triton.jit
def add_to(at, value):
    """Adds to a program's own part of columns."""
    tl.debug_barrier()  # as in the kernel
    sum = tl.load(at) + value
    tl.debug_barrier()
    tl.store(at, sum)


@kernel
def pair_statistics_kernel(
    parts,  # (4 or 5, PARTS, padded N)
    values, count,  # (4, N): reference, rest, gap, uniform gap; (N,) int32
    N, PARTS, plane, padded_n, others,  # others: lines of the other side
    UNIFORM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """A block of lines: their parts merged in order. What is no line's own logit is summed in float64."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = offs_n < N
    plane = plane.to(tl.int64)
    top = tl.full((BLOCK_N,), HIDDEN, tl.float32)
    rest = tl.zeros((BLOCK_N,), tl.float32)
    positive_sum = tl.zeros((BLOCK_N,), tl.float64)
    total = tl.zeros((BLOCK_N,), tl.float64)
    positives = tl.zeros((BLOCK_N,), tl.int32)
    for part in range(0, PARTS, BLOCK_P):
        offs_p = part + tl.arange(0, BLOCK_P)
        mask = (offs_p < PARTS)[:, None] & there[None, :]
        at = parts + offs_p.to(tl.int64)[:, None] * padded_n + offs_n[None, :]
        tops = tl.load(at + _TOP * plane, mask=mask, other=HIDDEN)
        rests = tl.load(at + _REST * plane, mask=mask, other=0.0)
        tile_top, tile_rest = lines_of(tops, 0)
        tile_rest += tl.sum(rests * tl.exp(tops - tile_top[None, :]), 0)
        top, rest = merge_lines(top, rest, tile_top, tile_rest)
        positive_sum += tl.sum(tl.load(at + _POSITIVE * plane, mask=mask, other=0.0).to(tl.float64), 0)
        positives += tl.sum(tl.load(at + _COUNT * plane, mask=mask, other=0.0).to(tl.int32), 0)
        if UNIFORM:
            total += tl.sum(tl.load(at + _SUM * plane, mask=mask, other=0.0).to(tl.float64), 0)
    nothing = top == HIDDEN
    reference = tl.where(nothing, 0.0, top)
    gap = reference.to(tl.float64) - positive_sum / tl.maximum(positives, 1).to(tl.float64)
    uniform_gap = tl.zeros((BLOCK_N,), tl.float64)
    if UNIFORM:
        uniform_gap = reference.to(tl.float64) - total / others
    tl.store(values + offs_n, reference, mask=there)
    tl.store(values + N + offs_n, tl.where(nothing, 0.0, rest), mask=there)
    tl.store(values + 2 * N + offs_n, tl.where(positives > 0, gap, 0.0).to(tl.float32), mask=there)
    tl.store(values + 3 * N + offs_n, uniform_gap.to(tl.float32), mask=there)
    tl.store(count + offs_n, positives, mask=there)


def pair_softmax_fwd(
    a: Side, b: Side, scale: Tensor, keys: Labels, skips: Labels | None, skip_positives: bool,
    mode: str, uniform: bool, tile: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(values (4, N), count (N,)) of the rows, and of the columns (M) with mode "both"; as `PairStatistics`."""
    symmetric, both = mode == "symmetric", mode == "both"
    all_rows, all_cols = triton.cdiv(a.n, tile.block_m), triton.cdiv(b.n, tile.block_n)
    row_tiles = triton.cdiv(all_rows, _ROW_RANGES)
    row_ranges = triton.cdiv(all_rows, row_tiles)
    col_tiles = triton.cdiv(all_cols, max(_PROGRAMS // row_ranges, 1))
    col_ranges = triton.cdiv(all_cols, col_tiles)
    row_parts = _nothing(a, col_ranges + (row_ranges if symmetric else 0), uniform)
    col_parts = row_parts[:, col_ranges:] if symmetric else _nothing(b, row_ranges, uniform) if both else None
    pair_softmax_fwd_kernel[(row_ranges, col_ranges)](
        a.rows, a.inverse, b.rows, b.inverse, scale,
        *marks_of(keys, tile), *marks_of(skips, tile),
        row_parts, col_parts,
        a.n, b.n, a.rows.shape[1],
        row_parts.stride(0), 0 if col_parts is None else col_parts.stride(0), a.rows.shape[0], b.rows.shape[0],
        row_tiles, col_tiles,
        WITH_COLS=both or symmetric, SYMMETRIC=symmetric, UNIFORM=uniform,
        HAS_SKIP=skips is not None, SKIP_POSITIVES=skip_positives,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=tile.block_d, PRECISION=dot_precision(a.rows.dtype),
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
    )  # fmt: skip
    rows = _merge(row_parts, a.n, b.n, uniform)
    if col_parts is None or symmetric:
        return *rows, scale.new_empty(4, 0), rows[1].new_empty(0)
    return *rows, *_merge(col_parts, b.n, a.n, uniform)


def _nothing(side: Side, parts: int, uniform: bool) -> Tensor:
    empty = side.inverse.new_zeros((5 if uniform else 4, parts, side.rows.shape[0]))
    empty[0] = HIDDEN.value
    return empty


def _merge(parts: Tensor, n: int, others: int, uniform: bool) -> tuple[Tensor, Tensor]:
    values, count = parts.new_empty((4, n)), parts.new_empty(n, dtype=torch.int32)
    block = 32
    pair_statistics_kernel[(triton.cdiv(n, block),)](
        parts, values, count,
        n, parts.shape[1], parts.stride(0), parts.stride(1), others,
        UNIFORM=uniform, BLOCK_N=block, BLOCK_P=32,
        num_warps=4, num_stages=2, enable_fp_fusion=False,
    )  # fmt: skip
    return values, count
