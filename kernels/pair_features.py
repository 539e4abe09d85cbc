"""Features as the products multiply them, and the gradient that goes back through it.

    c_ij = inverse_i inverse_j (rows_i . rows_j)            the cosine of features i and j, or their product
    rows_i = factor_i x_i

float32: rows are normalised, each element rounded once; inverse is 1. 16 bits: factor is the power of two that brings
the norm into [1, 2), so that rows are exact and no product leaves the range; the rest of the norm is applied to the
product.

The gradient of x_i from t_i = inverse_i sum_j dx_ij inverse_j rows_j:

    multiplier factor_i (t_i - along_i (rows_i . t_i) rows_i),   along_i = inverse_i^2, 0 where the norm is constant
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .assembler import kernel

_BLOCK_ROWS, _BLOCK_DIM = 16, 128  # of a program, of a step


class Side(NamedTuple):
    """One side of the pairs, padded to whole tiles so that no product needs a mask."""

    rows: Tensor  # (padded n, padded D), contiguous, 0 in the padding
    inverse: Tensor  # (padded n,) float32, 0 in the padding
    factor: Tensor  # (padded n,) float32
    along: Tensor  # (padded n,) float32
    n: int
    dim: int


@kernel
def pair_features_kernel(
    x, rows, inverse, factor, along,  # (N, D); (padded N, padded D); (padded N,) each
    N, DIM, PADDED_DIM, stride_n, stride_d,
    NORMALIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """A block of rows. Norms are float64: their error would be one of a whole row of logits."""
    offs_n = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    offs_d = tl.arange(0, BLOCK_DIM)
    there = offs_n < N
    wide = offs_n.to(tl.int64)
    x_ptrs = x + wide[:, None] * stride_n + offs_d[None, :] * stride_d
    base = tl.full((BLOCK_ROWS,), 1.0, tl.float64)
    constant = there
    if NORMALIZE:
        square = tl.zeros((BLOCK_ROWS,), tl.float64)
        for d in range(0, DIM, BLOCK_DIM):
            mask = there[:, None] & (offs_d[None, :] < DIM - d)
            value = tl.load(x_ptrs + d * stride_d, mask=mask, other=0.0).to(tl.float64)
            square += tl.sum(value * value, 1)
        norm = tl.sqrt(square)
        constant = norm < 1e-12  # as torch.nn.functional.normalize
        base = tl.where(constant, 1e-12, norm)
    if NORMALIZE and rows.dtype.element_ty != tl.float32:
        exponent = (base.to(tl.int64, bitcast=True) >> 52) - 1023
        power = ((1023 - exponent) << 52).to(tl.float64, bitcast=True)
    else:
        power = 1.0 / base
    left = tl.where(there, 1.0 / (base * power), 0.0).to(tl.float32)
    tl.store(inverse + offs_n, left)
    tl.store(factor + offs_n, power.to(tl.float32))
    tl.store(along + offs_n, tl.where(constant, 0.0, left * left))
    rows_ptrs = rows + wide[:, None] * PADDED_DIM + offs_d[None, :]
    for d in range(0, PADDED_DIM, BLOCK_DIM):
        mask = there[:, None] & (offs_d[None, :] < DIM - d)
        value = tl.load(x_ptrs + d * stride_d, mask=mask, other=0.0).to(tl.float64) * power[:, None]
        tl.store(rows_ptrs + d, value.to(tl.float32).to(rows.dtype.element_ty), mask=offs_d[None, :] < PADDED_DIM - d)


@kernel
def pair_grad_kernel(
    t, multiplier, rows, factor, along,  # (padded N, padded D) float32; () float32; as in Side
    grad,  # (N, D), contiguous
    N, DIM, PADDED_DIM,
    LARGEST: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """A block of rows of a side's gradient."""
    offs_n = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    offs_d = tl.arange(0, BLOCK_DIM)
    wide = offs_n.to(tl.int64)
    padded = wide[:, None] * PADDED_DIM + offs_d[None, :]
    dot = tl.zeros((BLOCK_ROWS,), tl.float32)
    for d in range(0, PADDED_DIM, BLOCK_DIM):
        mask = offs_d[None, :] < PADDED_DIM - d
        row = tl.load(rows + padded + d, mask=mask, other=0.0).to(tl.float32)
        dot += tl.sum(row * tl.load(t + padded + d, mask=mask, other=0.0), 1)
    share = (tl.load(along + offs_n) * dot)[:, None]
    outer = (tl.load(factor + offs_n) * tl.load(multiplier))[:, None]
    for d in range(0, DIM, BLOCK_DIM):
        mask = (offs_n < N)[:, None] & (offs_d[None, :] < DIM - d)
        row = tl.load(rows + padded + d, mask=mask, other=0.0).to(tl.float32)
        value = outer * (tl.load(t + padded + d, mask=mask, other=0.0) - share * row)
        value = tl.minimum(tl.maximum(value, -LARGEST), LARGEST)  # a zero row's gradient does not fit float16
        tl.store(grad + wide[:, None] * DIM + offs_d[None, :] + d, value.to(grad.dtype.element_ty), mask=mask)


def prepare_features(x: Tensor, normalize: bool, block: int, block_d: int) -> Side:
    """x (N, D), any strides, padded to multiples of ``block`` rows and ``block_d`` features."""
    n, dim = x.shape
    block = max(block, _BLOCK_ROWS)
    padded, padded_dim = triton.cdiv(n, block) * block, triton.cdiv(dim, block_d) * block_d
    rows = x.new_empty((padded, padded_dim))
    inverse, factor, along = (x.new_empty(padded, dtype=torch.float32) for _ in range(3))
    pair_features_kernel[(padded // _BLOCK_ROWS,)](
        x, rows, inverse, factor, along,
        n, dim, padded_dim, *x.stride(),
        NORMALIZE=normalize, BLOCK_ROWS=_BLOCK_ROWS, BLOCK_DIM=_BLOCK_DIM,
        num_warps=4, num_stages=2, enable_fp_fusion=False,
    )  # fmt: skip
    return Side(rows, inverse, factor, along, n, dim)


def feature_grad(side: Side, t: Tensor, multiplier: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, D) gradient of a side's features from t (padded N, padded D) float32, times the 0-dim multiplier."""
    grad = t.new_empty((side.n, side.dim), dtype=dtype)
    pair_grad_kernel[(side.rows.shape[0] // _BLOCK_ROWS,)](
        t, multiplier, side.rows, side.factor, side.along, grad,
        side.n, side.dim, side.rows.shape[1],
        LARGEST=torch.finfo(dtype).max, BLOCK_ROWS=_BLOCK_ROWS, BLOCK_DIM=_BLOCK_DIM,
        num_warps=4, num_stages=2,
    )  # fmt: skip
    return grad
