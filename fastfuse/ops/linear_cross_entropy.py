"""Projection to a vocabulary and cross entropy in chunks of rows; never more than one chunk of logits.

    logits = hidden W^T + bias;   dlogits = (softmax - target) / count;   dhidden = dlogits W,  dW = dlogits^T hidden

The gradients of a unit loss come out of the forward sweep, so that logits are computed once; backward scales them.
Plain PyTorch on any device: the products are large enough for the library's own to be the fastest.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfuse import reference
from fastfuse.ops.registry import register
from fastfuse.ops.transforms import apply, needs_formula

CHUNK_BYTES = 64 << 20  # of logits in the dtype of the computation; each chunk goes over all of dweight once


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int, label_smoothing: float
) -> Tensor:
    """0-dim mean over the targets that are not ignored; hidden (N, D), weight (V, D), bias (V,), target (N,)."""
    if needs_formula():
        return _formula(hidden, weight, bias, target, ignore_index, label_smoothing)
    tensors = (hidden, weight, bias)
    needs = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in tensors]
    return apply(LinearCrossEntropy, *tensors, target, ignore_index, label_smoothing, needs)[0]


def _formula(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int, label_smoothing: float
) -> Tensor:
    logits = F.linear(hidden, weight, bias).to(reference.compute_dtype(hidden.dtype))
    options: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": "sum"}
    return F.cross_entropy(logits, target, **options) / (target != ignore_index).sum().clamp(min=1)


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (N, _), V = hidden.shape, weight.shape[0]
    dtype = reference.compute_dtype(hidden.dtype)
    kept = target != ignore_index
    count = kept.sum().clamp(min=1)
    loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
    dhidden = torch.empty_like(hidden, dtype=dtype) if needs[0] else hidden.new_empty(0, dtype=dtype)
    dweight = torch.zeros_like(weight, dtype=dtype) if needs[1] else weight.new_empty(0, dtype=dtype)
    dbias = torch.zeros(V, dtype=dtype, device=hidden.device) if needs[2] else weight.new_empty(0, dtype=dtype)
    rows = max(1, CHUNK_BYTES // (V * dtype.itemsize))
    for start in range(0, N, rows):
        chunk = slice(start, min(start + rows, N))
        h, keep = hidden[chunk], kept[chunk]
        index = torch.where(keep, target[chunk], 0)[:, None]
        log_prob = torch.log_softmax(F.linear(h, weight, bias), -1, dtype=dtype)
        nll = -log_prob.gather(-1, index)[:, 0]
        if label_smoothing:
            nll = (1 - label_smoothing) * nll - label_smoothing * log_prob.mean(-1)
        loss += torch.where(keep, nll, 0).sum(dtype=torch.float64)
        if not any(needs):
            continue
        # 1 / count stays out: in low precision dlogits would lose its small entries
        dlogits = log_prob.exp_()
        if label_smoothing:
            dlogits -= label_smoothing / V
        dlogits.scatter_add_(-1, index, torch.full_like(index, label_smoothing - 1, dtype=dtype))
        dlogits.masked_fill_(~keep[:, None], 0)
        if needs[2]:
            dbias += dlogits.sum(0)
        dlogits = dlogits.to(hidden.dtype)
        if needs[0]:
            dhidden[chunk] = dlogits @ weight
        if needs[1]:
            if dlogits.dtype == dtype:
                dweight.addmm_(dlogits.T, h)
            else:
                dweight += dlogits.T @ h
    for grad in (dhidden, dweight, dbias):
        grad /= count
    return (loss / count).to(dtype), dhidden, dweight, dbias


def _fake(hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    dtype = reference.compute_dtype(hidden.dtype)
    grads = (
        t.new_empty(t.shape, dtype=dtype) if t is not None and need else hidden.new_empty(0, dtype=dtype)
        for t, need in zip((hidden, weight, bias), rest[-1], strict=True)
    )
    return hidden.new_empty((), dtype=dtype), *grads


register(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, int ignore_index, "
    "float label_smoothing, bool[] needs) -> (Tensor loss, Tensor dhidden, Tensor dweight, Tensor dbias)",
    _forward,
    _fake,
)


class LinearCrossEntropy(torch.autograd.Function):
    """(hidden, weight, bias, target, ignore_index, label_smoothing, needs) -> (loss, gradients of the loss)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return torch.ops.fastfuse.linear_cross_entropy(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:4], *output[1:])
        ctx.options = inputs[4:6]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, dhidden, dweight, dbias = ctx.saved_tensors
        tensors = (hidden, weight, bias)
        needs = list(ctx.needs_input_grad[:3])
        if dloss is None:
            return (None,) * 7
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # differentiated once more
            with torch.enable_grad():
                wanted = [t for t, need in zip(tensors, needs, strict=True) if need]
                loss = _formula(hidden, weight, bias, target, *ctx.options)
                found = iter(torch.autograd.grad(loss, wanted, dloss, create_graph=True))
            grads = [next(found) if need else None for need in needs]
        else:
            units = zip((dhidden, dweight, dbias), tensors, needs, strict=True)
            grads = [(dloss * unit).to(t.dtype) if need else None for unit, t, need in units]
        return (*grads, None, None, None, None)
