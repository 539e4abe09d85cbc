"""The fused operations as plain PyTorch: the same formulas, every intermediate in memory, no custom kernel.

Modules call these when their `attention` is "eager". They are what to read first, and what the fused operations are
measured against: same weights, same results up to rounding. Signatures are those of the public functions, less the
options that no module uses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfuse.attention import AttentionOutput
from fastfuse.span import KeySpan


def cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    span: KeySpan | None = None,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    dropout_p: float = 0.0,
    return_map: str | None = None,
) -> Tensor | AttentionOutput:
    """Softmax attention through the whole (B, H, Sq, Sk) score matrix; arguments as in `fastfuse.cross_attention`.

    q (B, H, Sq, D), k (B, H, Sk, D), v (B, H, Sk, Dv) give (B, H, Sq, Dv); a query that sees nothing gives 0. The
    softmax is taken in float32 at least. Dropout draws from torch's own generator, so it drops other weights than the
    fused operation does.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if bias is not None:
        scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias
    if span is not None:
        scores = scores.masked_fill(~span.to_dense(k.shape[-2])[:, None], -torch.inf)
    blind = torch.isneginf(scores).all(-1, keepdim=True)  # a softmax over nothing but -inf would be NaN
    weights = scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    out = F.dropout(weights, dropout_p).to(v.dtype) @ v
    if gate is not None:
        out = out * gate.tanh().to(out.dtype).view(-1, 1, 1)
    if return_map is None:
        return out
    return AttentionOutput(out, None, _summary(weights.detach(), return_map))


def _summary(weights: Tensor, return_map: str) -> Tensor:
    if return_map == "full":
        return weights
    mean = weights.mean(1)
    if return_map == "mean":
        return mean
    if return_map == "keys":
        return mean.sum(1)
    raise ValueError(f'return_map: expected None, "mean", "full" or "keys", got {return_map!r}')


def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor | float, *, ids: Tensor | None = None) -> Tensor:
    """`fastfuse.clip_loss` through the (N, N) logits of (N, D) features; equal ids are positives of each other."""
    logits = logit_scale * _cosines(image, text)
    share = _positives(logits, ids).to(logits.dtype)
    share = share / share.sum(-1, keepdim=True)
    return (F.cross_entropy(logits, share) + F.cross_entropy(logits.T, share)) / 2


def siglip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    ids: Tensor | None = None,
) -> Tensor:
    """`fastfuse.siglip_loss` through the (N, N) logits of (N, D) features; equal ids are positives of each other."""
    logits = logit_scale * _cosines(image, text) + logit_bias
    sign = 2.0 * _positives(logits, ids) - 1.0
    return -F.logsigmoid(sign * logits).sum() / len(logits)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor, *, ignore_index: int = -100) -> Tensor:
    """`fastfuse.linear_cross_entropy` through the logits: hidden (N, D), weight (V, D), target (N,) int64."""
    logits = F.linear(hidden, weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, target, ignore_index=ignore_index)


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    compute = torch.promote_types(a.dtype, torch.float32)
    return F.normalize(a.to(compute), dim=-1) @ F.normalize(b.to(compute), dim=-1).T


def _positives(logits: Tensor, ids: Tensor | None) -> Tensor:
    """Which pairs belong together: bool (N, N), symmetric."""
    ids = torch.arange(len(logits), device=logits.device) if ids is None else ids
    return ids[:, None] == ids[None, :]
