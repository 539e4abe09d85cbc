"""Dense contrastive formulas: every N x M tensor is built. Differentiable any number of times, in both modes.

    x_ij = scale * a_i . b_j            a, b L2-normalised first when ``normalize``
    softmax pair loss, row i:   mean over its positives of -log softmax(x_i)_j, over the columns that are not hidden
    sigmoid pair loss:          sum over pairs of softplus(-label_ij * (x_ij + bias)), label +-1

Everything is computed in float64; results come back in the dtypes of the ops.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastfuse.pairing import Pairing, PairStatistics


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics, losses and the scale's gradient for features of this dtype."""
    return dtype if dtype == torch.float64 else torch.float32


def pair_cosines(a: Tensor, b: Tensor, normalize: bool) -> Tensor:
    """(N, M) products of the features."""
    return pair_features(a, normalize) @ pair_features(b, normalize).T


def pair_features(a: Tensor, normalize: bool) -> Tensor:
    """(N, D) float64."""
    return torch.nn.functional.normalize(a.double(), dim=-1) if normalize else a.double()


def positives_and_hidden(pairing: Pairing) -> tuple[Tensor, Tensor | None]:
    """Two disjoint (N, M) bool masks; the second is None where nothing is hidden."""
    positive = _equal(pairing.row_key, pairing.col_key)
    if pairing.row_skip is None:
        return positive, None
    hidden = _equal(pairing.row_skip, pairing.col_skip)
    if pairing.skip_positives:
        return positive & ~hidden, hidden
    return positive, hidden & ~positive


def _equal(rows: Tensor, cols: Tensor | None) -> Tensor:
    return rows[:, None] == (rows if cols is None else cols)[None, :]


def pair_statistics(x: Tensor, positive: Tensor, hidden: Tensor | None, dtype: torch.dtype) -> PairStatistics:
    """Statistics of the rows of x (N, M); a row's reference is its largest visible logit."""
    visible = x if hidden is None else x.masked_fill(hidden, -math.inf)
    count = positive.sum(-1, dtype=torch.int32)
    if x.shape[1] == 0:
        return PairStatistics(x.new_zeros(4, x.shape[0], dtype=dtype), count)
    top, argmax = visible.max(-1)
    reference = top.masked_fill(torch.isneginf(top), 0.0).to(dtype).to(x.dtype)  # as it will be stored
    others = torch.exp(visible - reference[:, None]).scatter(-1, argmax[:, None], 0.0).sum(-1)
    below = reference[:, None] - x
    gap = below.masked_fill(~positive, 0.0).sum(-1) / count.clamp(min=1)
    rest = (torch.expm1(top - reference) + others).masked_fill(torch.isneginf(top), 0.0)
    return PairStatistics(torch.stack([reference, rest, gap, below.mean(-1)]).to(dtype), count)


def pair_softmax_loss(
    a: Tensor, b: Tensor | None, scale: Tensor, pairing: Pairing, mode: str, label_smoothing: float
) -> Tensor:
    """0-dim sum of the rows' losses, with mode "both" plus N / M times the sum of the columns' losses.

    Without b, b is a.
    """
    b = a if b is None else b
    x = scale * pair_cosines(a, b, pairing.normalize)
    positive, hidden = positives_and_hidden(pairing)
    loss = _row_losses(x, positive, hidden, label_smoothing)
    if mode == "both":
        hidden = None if hidden is None else hidden.T
        loss = loss + len(a) / max(len(b), 1) * _row_losses(x.T, positive.T, hidden, label_smoothing)
    return loss


def _row_losses(x: Tensor, positive: Tensor, hidden: Tensor | None, label_smoothing: float) -> Tensor:
    if x.shape[1] == 0:
        return x.sum()
    if hidden is not None:  # a row with nothing visible has no positive either: anything finite will do
        x = x.masked_fill(hidden, -math.inf).masked_fill(hidden.all(-1, keepdim=True), 0.0)
    log_prob = torch.log_softmax(x, -1)
    count = positive.sum(-1).clamp(min=1)
    loss = -log_prob.masked_fill(~positive, 0.0).sum(-1) / count
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_prob.mean(-1)
    return loss.sum()


def pair_sigmoid_loss(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, pairing: Pairing) -> Tensor:
    """0-dim sum over the pairs."""
    x = scale * pair_cosines(a, b, pairing.normalize) + bias
    positive, _ = positives_and_hidden(pairing)
    return torch.nn.functional.softplus(torch.where(positive, -x, x)).sum()


# ---- what a backend gives, without autograd; arguments as the ops of fastfuse/ops/pair.py ----


@torch.no_grad()
def pair_softmax_fwd(
    a: Tensor,
    b: Tensor | None,
    scale: Tensor,
    row_key: Tensor,
    col_key: Tensor | None,
    row_skip: Tensor | None,
    col_skip: Tensor | None,
    skip_positives: bool,
    normalize: bool,
    mode: str,
    uniform: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pairing = Pairing(row_key, col_key, row_skip, col_skip, skip_positives, normalize)
    b = a if b is None else b
    x = scale * pair_cosines(a, b, normalize)
    positive, hidden = positives_and_hidden(pairing)
    rows = pair_statistics(x, positive, hidden, scale.dtype)
    if mode != "both":
        return *rows, scale.new_zeros(4, 0), rows.positives.new_zeros(0)
    return *rows, *pair_statistics(x.T, positive.T, None if hidden is None else hidden.T, scale.dtype)


@torch.no_grad()
def pair_softmax_bwd(
    unit: Tensor,
    a: Tensor,
    b: Tensor | None,
    scale: Tensor,
    row_key: Tensor,
    col_key: Tensor | None,
    row_skip: Tensor | None,
    col_skip: Tensor | None,
    skip_positives: bool,
    normalize: bool,
    mode: str,
    label_smoothing: float,
    rows: Tensor,
    row_count: Tensor,
    cols: Tensor,
    col_count: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    pairing = Pairing(row_key, col_key, row_skip, col_skip, skip_positives, normalize)
    b = a if b is None else b
    cosines = pair_cosines(a, b, normalize)
    x = scale * cosines
    positive, hidden = positives_and_hidden(pairing)
    dx = _row_grads(x, positive, hidden, PairStatistics(rows, row_count), label_smoothing)
    if mode == "both":
        hidden = None if hidden is None else hidden.T
        dcols = _row_grads(x.T, positive.T, hidden, PairStatistics(cols, col_count), label_smoothing)
        dx = dx + len(a) / max(len(b), 1) * dcols.T
    if mode == "symmetric":
        da, db, _ = _feature_grads(unit, a, b, scale, dx + dx.T, cosines, normalize, [*needs[:2], False])
        return da, db, (unit * (dx * cosines).sum()).to(scale.dtype) if needs[2] else scale.new_empty(0)
    return _feature_grads(unit, a, b, scale, dx, cosines, normalize, needs)


def _row_grads(
    x: Tensor, positive: Tensor, hidden: Tensor | None, statistics: PairStatistics, label_smoothing: float
) -> Tensor:
    """Gradient of the sum of the rows' losses: (1 - s) (softmax - positive / count) + s (softmax - 1 / M)."""
    reference, rest, _, _ = statistics.values.double()[..., None]
    count = statistics.positives[:, None]
    e = torch.exp(x - reference)
    if hidden is not None:
        e = e.masked_fill(hidden, 0.0)
    share = (1 - label_smoothing) * (count > 0) + label_smoothing
    target = (1 - label_smoothing) * positive / count.clamp(min=1) + label_smoothing / max(x.shape[1], 1)
    return ((share * e - target) - target * rest) / (1 + rest)  # softmax - target, the same cancelled exactly


@torch.no_grad()
def pair_sigmoid(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_key: Tensor,
    col_key: Tensor | None,
    row_skip: Tensor | None,
    col_skip: Tensor | None,
    skip_positives: bool,
    normalize: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    cosines = pair_cosines(a, b, normalize)
    x = scale * cosines + bias
    sign = 1.0 - 2.0 * _equal(row_key, col_key)
    loss = torch.nn.functional.softplus(sign * x).sum()
    dx = sign * torch.sigmoid(sign * x)
    one = torch.ones_like(scale)
    da, db, dscale = _feature_grads(one, a, b, scale, dx, cosines, normalize, needs[:3], scale.dtype)
    dbias = dx.sum() if needs[3] else dx.new_empty(0)
    return loss.to(scale.dtype), da, db, dscale, dbias.to(scale.dtype)


def _feature_grads(
    unit: Tensor,
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    dx: Tensor,
    cosines: Tensor,
    normalize: bool,
    needs: list[bool],
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and scale from unit * dx (N, M), in ``dtype`` or the features' own."""
    dtype = dtype or a.dtype

    def features(own: Tensor, other: Tensor, dx: Tensor) -> Tensor:
        grad = unit * scale * (dx @ pair_features(other, normalize))
        if normalize:
            norm = own.double().norm(dim=-1, keepdim=True)
            unit_own = pair_features(own, True)
            along = (grad * unit_own).sum(-1, keepdim=True) * unit_own
            grad = torch.where(norm >= 1e-12, grad - along, grad) / norm.clamp(min=1e-12)
        largest = torch.finfo(dtype).max  # a zero row's gradient does not fit float16
        return grad.clamp(-largest, largest).to(dtype)

    empty = a.new_empty(0, dtype=dtype)
    return (
        features(a, b, dx) if needs[0] else empty,
        features(b, a, dx.T) if needs[1] else empty,
        (unit * (dx * cosines).sum()).to(scale.dtype) if needs[2] else scale.new_empty(0),
    )
