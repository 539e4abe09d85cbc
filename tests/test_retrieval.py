"""Retrieval on every backend against the sorted score matrix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from platforms import PLATFORMS, Platform, name
from torch import Tensor

import fastfuse as ff

SIZES = [(1, 1, 8, 1), (5, 7, 3, 7), (100, 300, 40, 10), (3, 5000, 17, 5), (700, 129, 64, 129)]  # N, M, D, k
SERVING = [platform for platform in PLATFORMS if platform.serves("similarity_topk")]
WITH_DTYPES = [(platform, dtype) for platform in SERVING for dtype in platform.dtypes]


def features(N: int, M: int, D: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Not contiguous, with keys that tie and a zero key."""
    queries, keys = (torch.randn(D, n).to(device, dtype).T for n in (N, M))
    if M > 100:
        keys[50:60] = keys[3]
        keys[20] = 0
    return queries, keys


def scores(queries: Tensor, keys: Tensor, normalize: bool) -> Tensor:
    queries, keys = queries.double(), keys.double()
    if normalize:
        queries, keys = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
    return queries @ keys.T


@pytest.mark.parametrize(("platform", "dtype"), WITH_DTYPES, ids=name)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_topk(size: tuple[int, int, int, int], normalize: bool, platform: Platform, dtype: torch.dtype) -> None:
    N, M, D, k = size
    queries, keys = features(N, M, D, dtype, platform.device)
    with platform.active():
        got, indices = ff.similarity_topk(queries, keys, k, normalize=normalize, backend=platform.backend)
    truth = scores(queries, keys, normalize)
    close = 1e-6 * truth.abs().max().item()
    assert got.dtype == torch.float32
    assert indices.dtype == torch.int64
    assert (got - truth.topk(k).values).abs().max() <= close
    assert (got - truth.gather(1, indices)).abs().max() <= close
    assert all(len(set(row)) == k for row in indices.tolist())
    assert (got[:, 1:] <= got[:, :-1]).all()
    ties = got[:, 1:] == got[:, :-1]
    assert (indices[:, 1:] > indices[:, :-1])[ties].all()


@pytest.mark.parametrize(("platform", "dtype"), WITH_DTYPES, ids=name)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_ranks(size: tuple[int, int, int, int], platform: Platform, dtype: torch.dtype) -> None:
    N, M, D, _ = size
    queries, keys = features(N, M, D, dtype, platform.device)
    positives = torch.randint(-1, M, (N, 4)).to(platform.device)
    positives[0] = -1
    with platform.active():
        ranks = ff.retrieval_ranks(queries, keys, positives, backend=platform.backend)
        order = ff.similarity_topk(queries, keys, M, backend=platform.backend)[1]
    rank_of = torch.empty_like(order).scatter_(1, order, torch.arange(M, device=order.device).expand(N, M))
    truth = torch.where(positives >= 0, rank_of.gather(1, positives.clamp(min=0)), M).amin(1)
    assert torch.equal(ranks, truth)  # ties by lower index too: both come from the same scores
    assert ranks[0] == M


@pytest.mark.parametrize("platform", SERVING, ids=name)
def test_ties_go_to_the_lower_index(platform: Platform) -> None:
    queries, keys = torch.ones(2, 8, device=platform.device), torch.ones(300, 8, device=platform.device)
    positives = torch.tensor([[250, -1], [299, 17]], device=platform.device)
    with platform.active():
        _, indices = ff.similarity_topk(queries, keys, 200, backend=platform.backend)
        ranks = ff.retrieval_ranks(queries, keys, positives, backend=platform.backend)
    assert torch.equal(indices.cpu(), torch.arange(200).expand(2, 200))
    assert ranks.tolist() == [250, 17]


@pytest.mark.parametrize("platform", [p for p in PLATFORMS if p.backend == "triton"], ids=name)
def test_topk_in_many_chunks(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = features(5, 70, 8, torch.float32, platform.device)
    whole = ff.similarity_topk(queries, keys, 50, backend=platform.backend)
    monkeypatch.setattr("fastfuse.kernels.retrieval_topk.CHUNK_BYTES", 2048)
    chunks = ff.similarity_topk(queries, keys, 50, backend=platform.backend)
    assert all(torch.equal(a, b) for a, b in zip(whole, chunks, strict=True))


def test_recall_at_k_counts_any_match() -> None:
    image = torch.eye(4)
    text = torch.eye(4)[[0, 0, 1, 3, 2]] + 0.01 * torch.arange(5)[:, None]
    recall = ff.recall_at_k(
        image, text, ks=(1, 2, 5), image_ids=torch.tensor([7, 8, 9, 5]), text_ids=torch.tensor([7, 7, 8, 9, 6])
    )
    assert recall["i2t"] == {1: 0.5, 2: 0.75, 5: 0.75}  # image 3 has no text; image 2 has its own second
    assert recall["t2i"] == {1: 0.6, 2: 0.6, 5: 0.8}


def test_recall_at_k_of_aligned_rows() -> None:
    image = torch.randn(50, 16)
    assert ff.recall_at_k(image, image, ks=(1,)) == {"i2t": {1: 1.0}, "t2i": {1: 1.0}}
    text = torch.randn(50, 16)
    sorted_keys = scores(image, text, True).argsort(1, descending=True)
    found = (sorted_keys[:, :5] == torch.arange(50)[:, None]).any(1)
    assert ff.recall_at_k(image, text, ks=(5,))["i2t"][5] == pytest.approx(found.double().mean().item())


def test_no_queries() -> None:
    values, indices = ff.similarity_topk(torch.ones(0, 8), torch.ones(3, 8), 2)
    assert values.shape == indices.shape == (0, 2)
    assert ff.retrieval_ranks(torch.ones(2, 8), torch.ones(0, 8), torch.full((2, 1), -1)).tolist() == [0, 0]
