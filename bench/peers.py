"""What others offer for the same job. A peer that can not do a case raises, and the report says so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention import flex_attention as flex

import fastfuse as ff


def sdpa(
    mask: Tensor | None,
    is_causal: bool,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    backend: SDPBackend | None = None,
) -> Tensor:
    """mask: bool, False hides, broadcastable to (B, H, Sq, Sk). backend: None for torch's own choice."""
    hidden = mask
    if bias is not None:
        hidden = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    options = {"attn_mask": hidden, "is_causal": is_causal, "enable_gqa": q.shape[1] != k.shape[1]}
    with nullcontext() if backend is None else sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, **options)


SDPA_ON_GPU = {
    f"sdpa {name}": partial(sdpa, backend=backend)
    for name, backend in {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }.items()
}


def eager_attention(
    mask: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """The dense formula as models write it; mask as in sdpa."""
    if q.shape[1] != k.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if sink is not None:
        scores = torch.cat([scores, sink[:, None, None].expand(*scores.shape[:3], 1)], -1)
    out = scores.softmax(-1)[..., : k.shape[2]] @ v
    return out if gate is None else out * gate.tanh()[:, None, None]


def _wide(t: Tensor) -> Tensor:
    """Losses are summed in float32, and the truth in its float64."""
    return t if t.dtype == torch.float64 else t.float()


def clip_dense(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """As open_clip's ClipLoss: both directions from one matrix of logits."""
    logits = _wide(scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T)
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def info_nce_dense(query: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    """One direction of clip_dense."""
    logits = _wide(scale * F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).T)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def siglip_dense(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """As open_clip's SigLipLoss."""
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T + bias
    signs = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1
    return -_wide(F.logsigmoid(signs * logits)).sum() / len(logits)


def nt_xent_dense(z1: Tensor, z2: Tensor, scale: Tensor) -> Tensor:
    """SimCLR's loss: each row's positive is the other view, the row itself leaves the denominator."""
    z, n = F.normalize(torch.cat([z1, z2]), dim=-1), len(z1)
    logits = _wide(scale * z @ z.T).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * n, device=z.device).roll(n))


def topk_dense(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores, indices = (F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).T).topk(k, dim=-1)
    return scores, indices


def topk_chunked(queries: Tensor, keys: Tensor, k: int, rows: int = 1024) -> tuple[Tensor, Tensor]:
    """The usual way out of the memory of the whole matrix."""
    keys = F.normalize(keys, dim=-1).T
    parts = [(F.normalize(chunk, dim=-1) @ keys).topk(k, dim=-1) for chunk in queries.split(rows)]
    return torch.cat([scores for scores, _ in parts]), torch.cat([indices for _, indices in parts])


def flex_attention(span: ff.KeySpan | None, q: Tensor, k: Tensor) -> Callable[..., Tensor]:
    """FlexAttention, compiled, with a block mask of the span and a bias (1, H, Sq, Sk); no backward on the CPU."""
    blocks = None if span is None else _block_mask(span, q, k)

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + bias[0, h, i, j]

        grouped = q.shape[1] != k.shape[1]
        return _compiled_flex()(q, k, v, None if bias is None else biased, block_mask=blocks, enable_gqa=grouped)

    return attend


def _block_mask(span: ff.KeySpan, q: Tensor, k: Tensor) -> flex.BlockMask:
    lo, hi = (end.expand(len(q), q.shape[2]).contiguous() for end in (span.lo, span.hi))

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (lo[b, i] <= j) & (j < hi[b, i])

    return flex.create_block_mask(visible, len(q), None, q.shape[2], k.shape[2], device=q.device.type)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    torch._dynamo.config.recompile_limit = 64  # a case each; beyond it FlexAttention runs uncompiled
    return torch.compile(flex.flex_attention, dynamic=False)


def ranks_dense(queries: Tensor, keys: Tensor, positives: Tensor) -> Tensor:
    scores = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).T
    return (scores > scores.gather(1, positives[:, None])).sum(1)
