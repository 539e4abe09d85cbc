"""One tile of the pairs: cosines, and the labels that mark positives and hidden pairs.

    c_ij = inverse_i inverse_j (rows_i . rows_j),   x_ij = scale c_ij

Every kernel takes its tile from here, in one cut, so that all see the same bits. They are compiled without fused
multiply-adds: x would be another number in each place that uses it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

Labels = tuple[Tensor, Tensor]  # of the rows (N,) and of the columns (M,), int64: equal ones mark a pair


@triton.jit
def cosine_tile(
    a, a_inverse, offs_m,  # (padded N, DIM), (padded N,), (BLOCK_M,)
    b, b_inverse, offs_n,  # (padded M, DIM), (padded M,), (BLOCK_N,)
    DIM,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(BLOCK_M, BLOCK_N) cosines, and the product of the inverses that went into them."""
    offs_d = tl.arange(0, BLOCK_D)
    a_ptrs = a + offs_m.to(tl.int64)[:, None] * DIM + offs_d[None, :]
    b_ptrs = b + offs_n.to(tl.int64)[None, :] * DIM + offs_d[:, None]
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(0, DIM, BLOCK_D):
        product = tl.dot(tl.load(a_ptrs), tl.load(b_ptrs), product, input_precision=PRECISION)
        a_ptrs += BLOCK_D
        b_ptrs += BLOCK_D
    inverses = tl.load(a_inverse + offs_m)[:, None] * tl.load(b_inverse + offs_n)[None, :]
    return product * inverses, inverses


@triton.jit
def load_labels(labels, offs, N):
    """Labels of a block; beyond the end the last one again."""
    return tl.load(labels + tl.minimum(offs, N - 1))


@triton.jit
def may_meet(rows, cols):
    """Whether the ranges of two blocks of labels overlap: without that no pair of the tile is marked."""
    return (tl.min(rows, 0) <= tl.max(cols, 0)) & (tl.min(cols, 0) <= tl.max(rows, 0))


@triton.jit
def pair_marks(row_key, col_key, row_skip, col_skip, HAS_SKIP: tl.constexpr, SKIP_POSITIVES: tl.constexpr):
    """Two disjoint (BLOCK_M, BLOCK_N) masks: positives, and pairs that leave the denominator."""
    positive = row_key[:, None] == col_key[None, :]
    if HAS_SKIP:
        hidden = row_skip[:, None] == col_skip[None, :]
        if SKIP_POSITIVES:
            positive = positive & (hidden == 0)
        else:
            hidden = hidden & (positive == 0)
    else:
        hidden = tl.zeros(positive.shape, tl.int1)
    return positive, hidden
