"""The k best keys of each query, exact.

Few: each program keeps a list of its queries' best while it sweeps a range of keys, and takes in a tile's best as long
as one beats the list's least. Many: all keys of a chunk of queries, of which torch.topk takes the largest.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .assembler import kernel
from .pair_features import Side
from .pair_tile import cosine_tile
from .precision import dot_precision
from .retrieval_keys import NO_KEY, order_keys, scores_and_indices

CHUNK_BYTES = 256 << 20  # of a chunk's keys, where k is large
_LISTED = 32  # the longest list
_PROGRAMS = 512  # enough to keep a GPU busy


@kernel
def retrieval_list_kernel(
    a, a_inverse, b, b_inverse,  # (padded N, DIM), (padded N,), (padded M, DIM), (padded M,)
    lists,  # (padded N, ranges, LIST) int64
    M, DIM, col_tiles,  # col_tiles: of a program
    LIST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (p, q): a block of queries, column tiles [q, q + 1) col_tiles. A list is in no order."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    slots = tl.arange(0, LIST)
    best = tl.full((BLOCK_M, LIST), NO_KEY, tl.int64) + slots[None, :]  # all different, below every key
    least = tl.min(best, 1)
    first = tl.program_id(1) * col_tiles
    for col_tile in range(first, tl.minimum(first + col_tiles, tl.cdiv(M, BLOCK_N))):
        offs_n = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        scores = cosine_tile(a, a_inverse, offs_m, b, b_inverse, offs_n, DIM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
        keys = tl.where((offs_n < M)[None, :], order_keys(scores, offs_n[None, :]), NO_KEY)
        top = tl.max(keys, 1)
        while tl.max((top > least).to(tl.int32), 0) > 0:
            taken = (top > least)[:, None]
            best = tl.where(taken & (best == least[:, None]), top[:, None], best)
            keys = tl.where(taken & (keys == top[:, None]), NO_KEY, keys)
            least = tl.min(best, 1)
            top = tl.max(keys, 1)
    to = lists + (offs_m.to(tl.int64) * tl.num_programs(1) + tl.program_id(1))[:, None] * LIST + slots[None, :]
    tl.store(to, best)


@kernel
def retrieval_keys_kernel(
    a, a_inverse, b, b_inverse,  # (padded N, DIM), (padded N,), (padded M, DIM), (padded M,)
    keys,  # (rows, padded M) int64
    M, DIM, padded_m, first, rows,  # of the queries: the first, and how many
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys."""
    offs_r = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = first + tl.minimum(offs_r, rows - 1)
    scores = cosine_tile(a, a_inverse, offs_m, b, b_inverse, offs_n, DIM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
    value = tl.where((offs_n < M)[None, :], order_keys(scores, offs_n[None, :]), NO_KEY)
    tl.store(keys + offs_r.to(tl.int64)[:, None] * padded_m + offs_n[None, :], value, mask=(offs_r < rows)[:, None])


def similarity_topk(queries: Side, keys: Side, k: int, tile: Any) -> tuple[Tensor, Tensor]:
    """Scores (N, k) float32, largest first, and indices (N, k) int64."""
    if k <= _LISTED:
        return scores_and_indices(_lists(queries, keys, k, tile).topk(k).values)
    scores = queries.inverse.new_empty((queries.n, k))
    indices = torch.empty_like(scores, dtype=torch.int64)
    size = max(1, CHUNK_BYTES // (8 * keys.rows.shape[0]))
    for first in range(0, queries.n, size):
        rows = min(size, queries.n - first)
        best = _all(queries, keys, first, rows, tile).topk(k).values
        scores[first : first + rows], indices[first : first + rows] = scores_and_indices(best)
    return scores, indices


def _lists(queries: Side, keys: Side, k: int, tile: Any) -> Tensor:
    row_tiles, all_cols = queries.rows.shape[0] // tile.block_m, triton.cdiv(keys.n, tile.block_n)
    col_tiles = triton.cdiv(all_cols, max(1, _PROGRAMS // row_tiles))
    ranges, length = triton.cdiv(all_cols, col_tiles), triton.next_power_of_2(k)
    lists = queries.rows.new_empty((queries.rows.shape[0], ranges * length), dtype=torch.int64)
    retrieval_list_kernel[(row_tiles, ranges)](
        queries.rows, queries.inverse, keys.rows, keys.inverse, lists,
        keys.n, keys.rows.shape[1], col_tiles,
        LIST=length,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=tile.block_d, PRECISION=dot_precision(keys.rows.dtype),
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
    )  # fmt: skip
    return lists[: queries.n]


def _all(queries: Side, keys: Side, first: int, rows: int, tile: Any) -> Tensor:
    padded_m = keys.rows.shape[0]
    chunk = queries.rows.new_empty((rows, padded_m), dtype=torch.int64)
    retrieval_keys_kernel[(triton.cdiv(rows, tile.block_m), padded_m // tile.block_n)](
        queries.rows, queries.inverse, keys.rows, keys.inverse, chunk,
        keys.n, keys.rows.shape[1], padded_m, first, rows,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=tile.block_d, PRECISION=dot_precision(keys.rows.dtype),
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
    )  # fmt: skip
    return chunk
