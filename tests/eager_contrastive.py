"""Contrastive formulas in plain PyTorch, in whatever dtype: float64 is the truth, the features' own dtype is the peer.

Written independently of `fastfuse.reference`, so that neither can hide the other's mistake.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def logits(a: Tensor, b: Tensor, scale: Tensor, normalize: bool, dtype: torch.dtype) -> Tensor:
    a, b = a.to(dtype), b.to(dtype)
    if normalize:
        a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    return scale.to(dtype) * a @ b.T


def cross_entropy(x: Tensor, positive: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """(N,) losses: mean over each row's positives, 0 without one; smoothing over all columns."""
    log_prob = x - torch.logsumexp(x, -1, keepdim=True)
    target = positive.to(x.dtype) / positive.sum(-1, keepdim=True).clamp(min=1)
    loss = -torch.where(positive, log_prob * target, torch.zeros_like(x)).sum(-1)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_prob.mean(-1)
    return loss


def positives(n: int, m: int, ids: Tensor | None) -> Tensor:
    return torch.arange(n)[:, None] == torch.arange(m) if ids is None else ids[:, None] == ids


def clip_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    *,
    dtype: torch.dtype,
    ids: Tensor | None = None,
    label_smoothing: float = 0.0,
    normalize: bool = True,
) -> Tensor:
    x = logits(image, text, scale, normalize, dtype)
    positive = positives(*x.shape, ids)
    directions = (cross_entropy(x, positive, label_smoothing), cross_entropy(x.T, positive.T, label_smoothing))
    return (directions[0].mean() + directions[1].mean()) / 2


def siglip_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    dtype: torch.dtype,
    ids: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    x = logits(image, text, scale, normalize, dtype) + bias.to(dtype)
    label = torch.where(positives(*x.shape, ids), 1.0, -1.0).to(dtype)
    return -F.logsigmoid(label * x).sum() / len(image)


def info_nce_loss(
    query: Tensor,
    keys: Tensor,
    scale: Tensor,
    *,
    dtype: torch.dtype,
    positives: Tensor | None = None,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    x = logits(query, keys, scale, normalize, dtype)
    positives = torch.arange(len(query)) if positives is None else positives
    positive = positives[:, None] == torch.arange(len(keys))
    if query_ids is not None and key_ids is not None:
        x = x.masked_fill((query_ids[:, None] == key_ids) & ~positive, -math.inf)
    return cross_entropy(x, positive).mean()


def sup_con_loss(features: Tensor, ids: Tensor, scale: Tensor, *, dtype: torch.dtype, normalize: bool = True) -> Tensor:
    own = torch.eye(len(features), dtype=torch.bool)
    x = logits(features, features, scale, normalize, dtype)
    if len(features) == 1:
        return 0.0 * x.sum()
    positive = (ids[:, None] == ids) & ~own
    loss = cross_entropy(x.masked_fill(own, -math.inf), positive)
    return loss.sum() / positive.any(-1).sum().clamp(min=1)


def nt_xent_loss(z1: Tensor, z2: Tensor, scale: Tensor, **options: Any) -> Tensor:
    return sup_con_loss(torch.cat([z1, z2]), torch.arange(len(z1)).repeat(2), scale, **options)
