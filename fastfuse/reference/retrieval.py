"""Dense retrieval: the score matrix, sorted."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfuse.reference.contrastive import compute_dtype, pair_cosines


def similarity_topk(queries: Tensor, keys: Tensor, k: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """Scores (N, k) and key indices (N, k) int64, sorted; ties by lower index."""
    scores = pair_cosines(queries, keys, normalize).to(compute_dtype(queries.dtype))
    scores, indices = torch.sort(scores, dim=-1, descending=True, stable=True)
    return scores[:, :k].contiguous(), indices[:, :k].contiguous()


def retrieval_ranks(
    queries: Tensor, keys: Tensor, positives: Tensor, first: Tensor, last: Tensor, normalize: bool
) -> Tensor:
    """0-based rank (N,) int64 of the best of each query's positives, M without one; ties by lower index.

    Query i's positives are positives[first[i]:last[i]] (L,), key indices or -1.
    """
    scores = pair_cosines(queries, keys, normalize).to(compute_dtype(queries.dtype))
    M = keys.shape[0]
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(M, device=order.device).expand_as(order))
    best = [
        min([M, *(ranks[j] for j in positives[lo:hi].tolist() if j >= 0)])
        for ranks, lo, hi in zip(rank.tolist(), first.tolist(), last.tolist(), strict=True)
    ]
    return torch.tensor(best, dtype=torch.int64, device=queries.device)
