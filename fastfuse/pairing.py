"""Which pairs of a contrastive loss are positives and which leave the denominator: labels, never an N x M mask."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Pairing(NamedTuple):
    """Labels of the rows and of the columns; equal labels mark a pair. Without column labels they are the rows'."""

    row_key: Tensor  # (N,) int64, with col_key: positives
    col_key: Tensor | None = None  # (M,) int64
    row_skip: Tensor | None = None  # (N,) int64, with col_skip: pairs that leave the denominator
    col_skip: Tensor | None = None  # (M,) int64; nothing is left out without row_skip
    skip_positives: bool = (
        False  # a pair that is both is left out (a row and itself), else kept (among false negatives)
    )
    normalize: bool = True  # features are L2-normalised first


class PairStatistics(NamedTuple):
    """What forward keeps of each row (or column) of the logits x: log sum exp(x) = reference + log1p(rest).

    ``values`` is (4, N), float32 or float64: ``reference``, a visible logit of the row; ``rest``, the sum of
    exp(x - reference) over its other visible logits; ``gap``, reference - mean of x over the positives, 0 without one;
    ``uniform_gap``, reference - mean of x over all columns. ``positives`` is (N,) int32, their number.
    """

    values: Tensor
    positives: Tensor
