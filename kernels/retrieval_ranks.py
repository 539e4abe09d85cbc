"""Ranks of each query's best positive: how many keys sort before it.

The positives' scores come from tiles of the same cut as all others, in which query i meets positives of its neighbours
too: they are the very numbers that the sweep compares them with.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .assembler import kernel
from .pair_features import Side
from .pair_tile import cosine_tile, product_tile
from .precision import dot_precision
from .retrieval_keys import NO_KEY, order_keys

_PROGRAMS = 512  # enough to keep a GPU busy


@kernel
def retrieval_best_kernel(
    a, a_inverse, b, b_inverse,  # (padded N, DIM), (padded N,), (padded M, DIM), (padded M,)
    positives, first, last,  # (L,) int64, -1 is none; (N,), (N,): query i's are positives[first_i:last_i]
    best,  # (padded N,) int64
    N, DIM,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of queries: the key of each one's best positive."""
    offs = tl.arange(0, BLOCK)
    offs_m = tl.program_id(0) * BLOCK + offs
    own = offs[:, None] == offs[None, :]
    at = tl.load(first + offs_m, mask=offs_m < N, other=0)
    end = tl.load(last + offs_m, mask=offs_m < N, other=0)
    top = tl.full((BLOCK,), NO_KEY, tl.int64)
    for step in range(tl.max(end - at, 0)):
        index = tl.load(positives + at + step, mask=at + step < end, other=-1)
        col = tl.maximum(index, 0)
        product = product_tile(a, offs_m, b, col, DIM, BLOCK, BLOCK, BLOCK_D, PRECISION)
        score = tl.sum(tl.where(own, product, 0.0), 1) * (tl.load(a_inverse + offs_m) * tl.load(b_inverse + col))
        top = tl.maximum(top, tl.where(index < 0, NO_KEY, order_keys(score, col)))
    tl.store(best + offs_m, top)


@kernel
def retrieval_ranks_kernel(
    a, a_inverse, b, b_inverse,  # (padded N, DIM), (padded N,), (padded M, DIM), (padded M,)
    best, ahead,  # (padded N,) int64; (ranges, padded N) int32
    M, DIM, padded_n, col_tiles,  # col_tiles: of a program
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (p, q): a block of queries, column tiles [q, q + 1) col_tiles: how many keys are ahead of the best."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    own = tl.load(best + offs_m)[:, None]
    count = tl.zeros((BLOCK_M,), tl.int32)
    first_tile = tl.program_id(1) * col_tiles
    for col_tile in range(first_tile, tl.minimum(first_tile + col_tiles, tl.cdiv(M, BLOCK_N))):
        offs_n = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        scores = cosine_tile(a, a_inverse, offs_m, b, b_inverse, offs_n, DIM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
        before = (order_keys(scores, offs_n[None, :]) > own) & (offs_n < M)[None, :]
        count += tl.sum(before.to(tl.int32), 1)
    tl.store(ahead + tl.program_id(1).to(tl.int64) * padded_n + offs_m, count)


def retrieval_ranks(queries: Side, keys: Side, positives: Tensor, first: Tensor, last: Tensor, tile: Any) -> Tensor:
    """(N,) int64; the number of keys for a query without a positive. The tile is square."""
    padded_n = queries.rows.shape[0]
    row_tiles, all_cols = padded_n // tile.block_m, triton.cdiv(keys.n, tile.block_n)
    col_tiles = triton.cdiv(all_cols, max(1, _PROGRAMS // row_tiles))
    best = first.new_empty(padded_n)
    ahead = first.new_empty((triton.cdiv(all_cols, col_tiles), padded_n), dtype=torch.int32)
    retrieval_best_kernel[(row_tiles,)](
        queries.rows, queries.inverse, keys.rows, keys.inverse,
        positives, first, last, best,
        queries.n, keys.rows.shape[1],
        BLOCK=tile.block_m, BLOCK_D=tile.block_d, PRECISION=dot_precision(keys.rows.dtype),
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
    )  # fmt: skip
    retrieval_ranks_kernel[(row_tiles, ahead.shape[0])](
        queries.rows, queries.inverse, keys.rows, keys.inverse,
        best, ahead,
        keys.n, keys.rows.shape[1], padded_n, col_tiles,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=tile.block_d, PRECISION=dot_precision(keys.rows.dtype),
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
    )  # fmt: skip
    return ahead[:, : queries.n].sum(0, dtype=torch.int64)
