"""The contrastive ops and their autograd. Backends give statistics and gradients; the losses are formed here.

softmax family (CLIP, InfoNCE, SupCon, NT-Xent), for each row and with mode "both" each column of x = scale * a b^T:

    log sum_j exp(x_ij) = reference_i + log1p(rest_i)
    loss_i = (1 - s) * (gap_i + log1p(rest_i)) + s * (uniform_gap_i + log1p(rest_i)),   s = label_smoothing

``reference`` is one of the row's own logits and ``rest`` is relative to it, so that neither a large scale nor a loss
near zero is rounded away (see PairStatistics). Any backend's backward takes any backend's statistics. A backend may
keep something more for a backward of its own, which does without where it is missing, as under torch.compile.

sigmoid family (SigLIP): the gradients of the sum come out of the forward sweep; backward scales them.

mode: "rows", "both" (rows and columns), "symmetric" (rows only, no b, which is a: half the tiles).
Double backward and forward-mode AD go through the dense formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastfuse import reference
from fastfuse.backends import module_for
from fastfuse.ops.registry import register
from fastfuse.ops.transforms import apply, is_plain, needs_formula
from fastfuse.pairing import Pairing, PairStatistics

_PAIRING = "Tensor row_key, Tensor? col_key, Tensor? row_skip, Tensor? col_skip, bool skip_positives, bool normalize"


def pair_softmax(
    a: Tensor,
    b: Tensor | None,
    scale: Tensor,
    pairing: Pairing,
    *,
    mode: str,
    label_smoothing: float = 0.0,
    mean_over_positives: bool = False,
    backend: str = "auto",
) -> Tensor:
    """0-dim loss: the mean over rows, with mode "both" averaged with the mean over columns.

    With ``mean_over_positives`` only rows that have a positive count. a is (N, D), b (M, D) or None for a itself, scale
    0-dim in the dtype of the computation (`reference.compute_dtype`).
    """
    if needs_formula():
        loss = reference.pair_softmax_loss(a, b, scale, pairing, mode, label_smoothing)
        positive, _ = reference.positives_and_hidden(pairing)
        return (loss * _mean_weight(positive.sum(-1), mode, mean_over_positives)).to(scale.dtype)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (a, b, scale))
    options = (mode, label_smoothing, mean_over_positives, backend, keep)
    loss, *_ = apply(PairSoftmax, a, b, scale, *pairing, *options)
    return loss


def pair_sigmoid(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, pairing: Pairing, *, backend: str = "auto"
) -> Tensor:
    """0-dim sum of softplus(-label * (scale * a b^T + bias)) over the pairs; scale and bias as in `pair_softmax`."""
    if needs_formula():
        return reference.pair_sigmoid_loss(a, b, scale, bias, pairing).to(scale.dtype)
    needs = [torch.is_grad_enabled() and t.requires_grad for t in (a, b, scale, bias)]
    loss, *_ = apply(PairSigmoid, a, b, scale, bias, *pairing, needs, backend)
    return loss


# ---- ops ----


def _select(op: str, a: Tensor, backend: str) -> Any:
    return module_for(op, a.device, a.dtype, (), backend)


def _softmax_fwd(a: Tensor, b: Tensor | None, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *options, backend = rest
    return _select("pair_softmax_fwd", a, backend).pair_softmax_fwd(a, b, scale, *options)


def _softmax_bwd(unit: Tensor, a: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *options, backend = rest
    return _select("pair_softmax_bwd", a, backend).pair_softmax_bwd(unit, a, *options)


def _sigmoid(a: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *options, backend = rest
    return _select("pair_sigmoid", a, backend).pair_sigmoid(a, *options)


def _softmax_fwd_fake(a: Tensor, b: Tensor | None, scale: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    N, M = a.shape[0], b.shape[0] if b is not None and rest[6] == "both" else 0
    counts = [a.new_empty((n,), dtype=torch.int32) for n in (N, M)]
    return scale.new_empty((4, N)), counts[0], scale.new_empty((4, M)), counts[1]


def _softmax_bwd_fake(unit: Tensor, a: Tensor, b: Tensor | None, scale: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    inputs = zip((a, b, scale), rest[-2], strict=True)
    return tuple(a.new_empty(0) if t is None or not need else t.new_empty(t.shape) for t, need in inputs)


def _sigmoid_fake(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    inputs = zip((a, b, scale, bias), rest[-2], strict=True)
    return scale.new_empty(()), *(scale.new_empty(t.shape if need else (0,)) for t, need in inputs)


# needs: which of the gradients of a, b, scale (and bias) are wanted; one that is not comes back with shape (0,).
# unit, 0-dim: the gradient of the sum of the row losses (and N / M times the column losses); dscale has scale's dtype.
register(
    f"pair_softmax_fwd(Tensor a, Tensor? b, Tensor scale, {_PAIRING}, str mode, bool uniform, str backend)"
    " -> (Tensor rows, Tensor row_count, Tensor cols, Tensor col_count)",
    _softmax_fwd,
    _softmax_fwd_fake,
)
register(
    f"pair_softmax_bwd(Tensor unit, Tensor a, Tensor? b, Tensor scale, {_PAIRING}, str mode, float label_smoothing, "
    "Tensor rows, Tensor row_count, Tensor cols, Tensor col_count, bool[] needs, str backend)"
    " -> (Tensor da, Tensor db, Tensor dscale)",
    _softmax_bwd,
    _softmax_bwd_fake,
)
register(
    f"pair_sigmoid(Tensor a, Tensor b, Tensor scale, Tensor bias, {_PAIRING}, bool[] needs, str backend)"
    " -> (Tensor loss, Tensor da, Tensor db, Tensor dscale, Tensor dbias)",  # all in scale's dtype
    _sigmoid,
    _sigmoid_fake,
)


# ---- autograd ----


def _softmax_fwd_kept(keep: bool, a: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """The op pair_softmax_fwd, and what its backend keeps for the backward, uint8; perhaps nothing."""
    *options, backend = rest
    if keep and is_plain(a):
        chosen = _select("pair_softmax_fwd", a, backend)
        if hasattr(chosen, "pair_softmax_fwd_kept"):
            return chosen.pair_softmax_fwd_kept(a, *options)
    return *torch.ops.fastfuse.pair_softmax_fwd(a, *rest), a.new_empty(0, dtype=torch.uint8)


def _softmax_bwd_kept(kept: Tensor, unit: Tensor, a: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *options, backend = rest
    if is_plain(a):
        chosen = _select("pair_softmax_bwd", a, backend)
        if hasattr(chosen, "pair_softmax_bwd_kept"):
            return chosen.pair_softmax_bwd_kept(unit, a, *options, kept)
    return torch.ops.fastfuse.pair_softmax_bwd(unit, a, *rest)


class PairSoftmax(torch.autograd.Function):
    """(a, b, scale, *Pairing, mode, label_smoothing, mean_over_positives, backend, keep) -> (loss, *statistics, kept).

    keep: that a gradient is wanted.
    """

    @staticmethod
    def forward(a: Tensor, b: Tensor | None, scale: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *pairing, mode, label_smoothing, mean_over_positives, backend, keep = rest
        *statistics, kept = _softmax_fwd_kept(keep, a, b, scale, *pairing, mode, label_smoothing > 0, backend)
        rows, cols = PairStatistics(*statistics[:2]), PairStatistics(*statistics[2:])
        loss = _loss_sum(rows, label_smoothing)
        if b is not None and mode == "both":
            loss = loss + len(a) / max(len(b), 1) * _loss_sum(cols, label_smoothing)
        loss = loss * _mean_weight(rows.positives, mode, mean_over_positives)
        return (loss.to(scale.dtype), *statistics, kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:7], *output[1:])
        ctx.options = inputs[7:-1]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        a, b, scale, row_key, col_key, row_skip, col_skip, *statistics, kept = ctx.saved_tensors
        skip_positives, normalize, mode, label_smoothing, mean_over_positives, backend = ctx.options
        pairing = Pairing(row_key, col_key, row_skip, col_skip, skip_positives, normalize)
        if dloss is None:
            return (None,) * 14
        needs = list(ctx.needs_input_grad[:3])
        unit = dloss * _mean_weight(statistics[1], mode, mean_over_positives)
        if _differentiated_again():

            def loss(a: Tensor, b: Tensor | None, scale: Tensor) -> Tensor:
                return reference.pair_softmax_loss(a, b, scale, pairing, mode, label_smoothing)

            grads: Sequence[Tensor | None] = _formula_grads(loss, unit, (a, b, scale), needs)
        else:
            grads = _softmax_bwd_kept(
                kept, unit, a, b, scale, *pairing, mode, label_smoothing, *statistics, needs, backend
            )
        return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None,) * 11)


class PairSigmoid(torch.autograd.Function):
    """(a, b, scale, bias, *Pairing, needs, backend) -> (loss, gradients of the loss)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return torch.ops.fastfuse.pair_sigmoid(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:8], *output[1:])
        ctx.options, ctx.backend = inputs[8:10], inputs[11]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, labels, units = ctx.saved_tensors[:4], ctx.saved_tensors[4:8], ctx.saved_tensors[8:]
        if dloss is None:
            return (None,) * 12
        needs = list(ctx.needs_input_grad[:4])
        if _differentiated_again():
            pairing = Pairing(*labels, *ctx.options)

            def loss(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
                return reference.pair_sigmoid_loss(a, b, scale, bias, pairing)

            grads = _formula_grads(loss, dloss, inputs, needs)
        else:
            grads = [_scaled(unit, dloss, t.dtype, ctx.backend) for unit, t in zip(units, inputs, strict=True)]
        return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None,) * 8)


def _scaled(unit: Tensor, factor: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
    """(factor * unit).to(dtype), in one pass where the backend has a kernel for it."""
    if unit.dim() == 2 and unit.dtype == torch.float32 and is_plain(unit):
        kernels = module_for("pair_sigmoid", unit.device, dtype, (), backend)
        if hasattr(kernels, "scaled"):
            return kernels.scaled(unit, factor, dtype)
    return (factor * unit).to(dtype)


def _loss_sum(statistics: PairStatistics, label_smoothing: float) -> Tensor:
    _, rest, gap, uniform_gap = statistics.values.double()
    log_rest = torch.log1p(rest)
    loss = torch.where(statistics.positives > 0, gap + log_rest, 0.0)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * (uniform_gap + log_rest)
    return loss.sum()


def _mean_weight(count: Tensor, mode: str, mean_over_positives: bool) -> Tensor | float:
    """What makes means of the sum of the row losses (and N / M times the column losses)."""
    if mean_over_positives:
        return 1.0 / (count > 0).sum().clamp(min=1)
    return (0.5 if mode == "both" else 1.0) / max(len(count), 1)


def _differentiated_again() -> bool:
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _formula_grads(
    loss: Callable[..., Tensor], dloss: Tensor, inputs: tuple[Tensor, ...], needs: list[bool]
) -> list[Tensor | None]:
    """Differentiable gradients of dloss * loss(*inputs)."""
    with torch.enable_grad():
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
        grads = iter(
            torch.autograd.grad(loss(*inputs), wanted, dloss.double(), create_graph=True, materialize_grads=True)
        )
    return [next(grads) if need else None for need in needs]
