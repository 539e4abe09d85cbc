"""Exact retrieval without a score matrix: the best keys of each query, and ranks of its positives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastfuse.backends import check_name
from fastfuse.contrastive import check_features
from fastfuse.ops import retrieval as _ops  # noqa: F401  (registers the ops)


@torch.no_grad()
def similarity_topk(
    queries: Tensor, keys: Tensor, k: int, *, normalize: bool = True, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The k keys of the largest inner product (cosine when normalised) for each query, exact.

    Args:
        queries: (N, D), float32, bfloat16 or float16 (float64 on `reference`).
        keys: (M, D), the same dtype.
        k: 1 <= k <= M.
        normalize: L2-normalise both first.
        backend: "auto", or a name of `fastfuse.backends()`.

    Returns:
        scores (N, k), float32 (float64 for float64), largest first, and indices (N, k), int64; ties by lower index. Not
        differentiable.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices do not fit, or k is not in 1..M.
        NotImplementedError: the named backend can not serve the call.
    """
    check_name(backend)
    queries, keys = check_features(queries, keys, "queries", "keys")
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k: expected an int, got {type(k).__name__}")
    if not 1 <= k <= len(keys):
        raise ValueError(f"k: expected 1 <= k <= {len(keys)} for keys {tuple(keys.shape)}, got {k}")
    return torch.ops.fastfuse.similarity_topk(queries, keys, k, bool(normalize), backend)


@torch.no_grad()
def retrieval_ranks(
    queries: Tensor, keys: Tensor, positives: Tensor, *, normalize: bool = True, backend: str = "auto"
) -> Tensor:
    """0-based rank of each query's positive key, or of the best of its positives; ties by lower index.

    Args:
        queries: (N, D), float32, bfloat16 or float16 (float64 on `reference`).
        keys: (M, D), the same dtype.
        positives: (N,) or (N, P) key indices, the latter padded with -1.
        normalize, backend: as in `similarity_topk`.

    Returns:
        (N,) int64: how many keys score higher than the positive, or the same at a lower index; M for a query without a
        positive.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices do not fit, or an index is not in -1..M-1.
        NotImplementedError: the named backend can not serve the call.
    """
    check_name(backend)
    queries, keys = check_features(queries, keys, "queries", "keys")
    N, M = len(queries), len(keys)
    if not isinstance(positives, Tensor) or positives.is_floating_point() or positives.dtype == torch.bool:
        came = positives.dtype if isinstance(positives, Tensor) else type(positives).__name__
        raise TypeError(f"positives: expected an integer tensor (N,) or (N, P), got {came}")
    if positives.dim() not in (1, 2) or len(positives) != N:
        raise ValueError(
            f"positives: expected ({N},) or ({N}, P) for queries {tuple(queries.shape)}, got {tuple(positives.shape)}"
        )
    if positives.device != queries.device:
        raise ValueError(f"positives: expected device {queries.device} as queries, got {positives.device}")
    low = -1 if positives.dim() == 2 else 0
    if positives.numel() and not torch.compiler.is_compiling():
        smallest, largest = int(positives.min()), int(positives.max())
        if smallest < low or largest >= M:
            raise ValueError(
                f"positives: expected key indices {low} <= index < {M} of keys {tuple(keys.shape)}, "
                f"got {smallest}..{largest}"
            )
    P = positives.shape[1] if positives.dim() == 2 else 1
    first = torch.arange(N, device=queries.device) * P
    flat = positives.to(torch.int64).reshape(-1)
    return torch.ops.fastfuse.retrieval_ranks(queries, keys, flat, first, first + P, bool(normalize), backend)


@torch.no_grad()
def recall_at_k(
    image: Tensor,
    text: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
) -> dict[str, dict[int, float]]:
    """Recall@k in both directions: the share of queries with one of their matches among the first k.

    Args:
        image: (N, D) features, normalised inside.
        text: (M, D), the same dtype.
        ks: the cut-offs, each >= 1.
        image_ids: (N,) integers, with
        text_ids: (M,) integers: equal ids match. Default: image i with text i (needs N == M).

    Returns:
        {"i2t": {k: recall}, "t2i": {k: recall}}, recalls in 0..1. A query that nothing matches counts as not found.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes do not fit, only one of the ids is given, or a cut-off is below 1.
    """
    image, text = check_features(image, text, "image", "text")
    if (image_ids is None) != (text_ids is None):
        given, missing = ("image_ids", "text_ids") if text_ids is None else ("text_ids", "image_ids")
        raise ValueError(f"{missing}: expected with {given}, got None")
    if any(k < 1 for k in ks):
        raise ValueError(f"ks: expected cut-offs >= 1, got {tuple(ks)}")
    if image_ids is None or text_ids is None:
        if len(image) != len(text):
            raise ValueError(
                f"image_ids, text_ids: needed where image {tuple(image.shape)} and text {tuple(text.shape)} differ"
            )
        image_ids = text_ids = torch.arange(len(image), device=image.device)
    for name, ids, features in (("image_ids", image_ids, image), ("text_ids", text_ids, text)):
        if ids.shape != features.shape[:1] or ids.is_floating_point():
            raise ValueError(f"{name}: expected integers ({len(features)},), got {ids.dtype} {tuple(ids.shape)}")
    return {
        "i2t": _recall(image, text, image_ids, text_ids, ks),
        "t2i": _recall(text, image, text_ids, image_ids, ks),
    }


def _recall(queries: Tensor, keys: Tensor, query_ids: Tensor, key_ids: Tensor, ks: Sequence[int]) -> dict[int, float]:
    # Keys sorted by id: each query's matches are one run of them.
    sorted_ids, order = key_ids.sort(stable=True)
    query_ids = query_ids.to(sorted_ids.dtype).contiguous()
    first, last = (torch.searchsorted(sorted_ids, query_ids, right=right) for right in (False, True))
    ranks = torch.ops.fastfuse.retrieval_ranks(queries, keys, order, first, last, True, "auto")
    found = torch.where(last > first, ranks, len(keys) + max(ks, default=0))
    return {int(k): float((found < k).double().mean()) if len(found) else 0.0 for k in ks}
