"""Gradients of both sides from the gradient of the logits, chunk by chunk of rows.

A kernel writes one chunk of G_ij = lift inverse_i inverse_j dx_ij in the features' dtype; two plain products take it
in:

    t_a[chunk] += G b,   t_b += G^T a[chunk]

The scale and 1 / N stay out of G, and lift, a power of two, brings it into the upper part of float16's range.
Symmetric: a chunk holds its rows' pairs with themselves, both ways, and with the columns beyond it, which stand for
their mirror images too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .assembler import kernel
from .pair_features import Side
from .precision import dot_precision

CHUNK_BYTES = 256 << 20  # of G, the whole extra memory beside O((N + M) D)


class Chunk(NamedTuple):
    """What a kernel fills: G of rows [first_row, first_row + rows) and all columns from first_col on."""

    first_row: int
    first_col: int
    g: Tensor | None  # (rows, columns from first_col on); None where no features want a gradient
    sums: Tensor  # (sums, row tiles, column tiles) float32, zeros: what a kernel sums up besides, tile by tile
    lift: float

    @property
    def grid(self) -> tuple[int, int]:
        """Row tiles come first: programs that run together share their columns."""
        return self.sums.shape[1], self.sums.shape[2]


class Gradients(NamedTuple):
    """Sums over all pairs."""

    t_a: Tensor | None  # (padded N, padded D) float32, lift inverse_i sum_j dx_ij inverse_j b_j; None: not wanted
    t_b: Tensor | None  # (padded M, padded D); symmetric: None, t_a holds it all
    sums: Tensor  # (sums,) float64
    lift: float


def pair_gradients(
    a: Side, b: Side, wanted: tuple[bool, bool], largest: float, sums: int, fill: Callable[[Chunk], None], tile: Any
) -> Gradients:
    """Sweeps all chunks. Symmetric where b is a. largest: no dx is larger in size."""
    symmetric = a is b
    lift = 2.0 ** (15 - int(largest).bit_length())  # dx lift < 2^15
    block = max(tile.block_m, tile.block_n)
    padded_n, padded_m = a.rows.shape[0], b.rows.shape[0]
    size = max(block, CHUNK_BYTES // (padded_m * a.rows.element_size()) // block * block)
    buffer = a.rows.new_empty(min(size, padded_n) * padded_m) if any(wanted) else None
    t_a, t_b = (
        side.inverse.new_zeros(side.rows.shape) if want else None for side, want in zip((a, b), wanted, strict=True)
    )
    total = a.inverse.new_zeros(sums, dtype=torch.float64)
    for first in range(0, padded_n, size):
        rows, first_col = min(size, padded_n - first), first if symmetric else 0
        cols = padded_m - first_col
        g = None if buffer is None else buffer[: rows * cols].view(rows, cols)
        partial = a.inverse.new_zeros((sums, rows // tile.block_m, cols // tile.block_n))
        fill(Chunk(first, first_col, g, partial, lift))
        total += partial.sum((1, 2), dtype=torch.float64)
        if g is None:
            continue
        own = a.rows[first : first + rows]
        if t_a is not None:
            add_product(t_a[first : first + rows], g, b.rows[first_col:], tile)
        if symmetric and t_a is not None and rows < cols:
            add_product(t_a[first + rows :], g[:, rows:].T, own, tile)
        if t_b is not None:
            add_product(t_b, g.T, own, tile)
    return Gradients(t_a, t_b, total, lift)


@triton.jit
def store_gradient(
    g, dx, a_inverse, b_inverse, lift,  # (chunk rows, stride), a tile, (padded N,), (padded M,)
    offs_m, offs_n, first_row, first_col, stride, chunk_rows,
    SYMMETRIC: tl.constexpr,
):  # fmt: skip
    """A tile of G. Symmetric: only its pairs i <= j, and their mirror images where the chunk has them."""
    inverses = (tl.load(a_inverse + offs_m) * lift)[:, None] * tl.load(b_inverse + offs_n)[None, :]
    value = (dx * inverses).to(g.dtype.element_ty)
    rows, cols = (offs_m - first_row).to(tl.int64), (offs_n - first_col).to(tl.int64)
    at = g + rows[:, None] * stride + cols[None, :]
    if SYMMETRIC:
        tl.store(at, value, mask=offs_m[:, None] <= offs_n[None, :])
        if tl.min(cols, 0) < chunk_rows:
            mirrored = (offs_m[:, None] < offs_n[None, :]) & (cols < chunk_rows)[None, :]
            tl.store(g + cols[None, :] * stride + rows[:, None], value, mask=mirrored)
    else:
        tl.store(at, value)


@kernel
def add_product_kernel(
    left, right, total,  # (M, K), (K, N), (M, N) float32
    N, K, left_stride_m, left_stride_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of total += left right; M and K are whole tiles."""
    offs_m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    mask = (offs_n < N)[None, :]
    left_ptrs = left + offs_m[:, None] * left_stride_m + offs_k[None, :] * left_stride_k
    right_ptrs = right + offs_k[:, None] * N + offs_n[None, :]
    at = total + offs_m[:, None] * N + offs_n[None, :]
    product = tl.load(at, mask=mask, other=0.0)
    for _ in range(0, K, BLOCK_K):
        product = tl.dot(tl.load(left_ptrs), tl.load(right_ptrs, mask=mask, other=0.0), product,
                         input_precision=PRECISION)  # fmt: skip
        left_ptrs += BLOCK_K * left_stride_k
        right_ptrs += BLOCK_K * N
    tl.store(at, product, mask=mask)


def add_product(total: Tensor, left: Tensor, right: Tensor, tile: Any) -> None:
    """total (M, N) float32 += left (M, K) right (K, N).

    On a GPU 16-bit products are cuBLAS's. Not float32 ones, which its TF32 setting may round.
    """
    if left.is_cuda and left.dtype != torch.float32:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
        return
    M, N, K = total.shape[0], total.shape[1], left.shape[1]
    add_product_kernel[(M // tile.block_m, triton.cdiv(N, tile.block_n))](
        left, right, total,
        N, K, *left.stride(),
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_d, PRECISION=dot_precision(left.dtype),
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
