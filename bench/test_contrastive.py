"""Contrastive losses and retrieval against the dense formulas."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import fastfuse as ff
from bench import contest, peers
from bench.contest import Contest

PAIRS = [(2048, 512), (4096, 256)]  # N, D
RETRIEVAL = [(1000, 25_000, 256, 10), (256, 100_000, 128, 100)]  # N, M, D, k
DTYPES = (torch.float32, torch.bfloat16)
LOSSES: dict[str, tuple[Callable[..., Tensor], dict[str, Callable[..., Tensor]], float]] = {
    # ours, the peers, and the work: forward and backward in products of N x M x D multiply-adds
    "clip": (ff.clip_loss, {"eager": peers.clip_dense}, 4),
    "siglip": (ff.siglip_loss, {"eager": peers.siglip_dense}, 3),
    "info_nce": (ff.info_nce_loss, {"eager": peers.info_nce_dense}, 3),
    "nt_xent": (ff.nt_xent_loss, {"eager": peers.nt_xent_dense}, 6),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("N", "D"), PAIRS)
@pytest.mark.parametrize("name", LOSSES)
def test_loss(name: str, N: int, D: int, dtype: torch.dtype, benchmark: BenchmarkFixture) -> None:
    ours, others, products = LOSSES[name]
    N = N // 2 if name == "nt_xent" else N  # two views of N / 2 pictures are N rows
    torch.manual_seed(0)
    shared = torch.randn(N, D)
    features = [(shared + torch.randn(N, D)).to(dtype) for _ in range(2)]
    scalars = [torch.tensor(14.3), *([torch.tensor(-10.0)] if name == "siglip" else [])]
    names = contest.our_backends("pair_sigmoid" if name == "siglip" else "pair_softmax_fwd", dtype)
    calls = {f"fastfuse {backend}": partial(ours, backend=backend) for backend in names} | others
    inputs = [t.requires_grad_() for t in [*features, *scalars]]
    contest.run(
        Contest(
            group=f"{name} fwd+bwd",
            label=f"{N} x {D}",
            dtype=dtype,
            flops=2 * products * N * N * D,
            bytes=4 * features[0].nbytes,
            contenders={who: partial(_training, call, inputs) for who, call in calls.items()},
            truth=partial(_training, others["eager"], [t.detach().double().requires_grad_() for t in inputs]),
            eager=partial(_training, others["eager"], inputs),
        ),
        benchmark,
    )


@pytest.mark.parametrize(("N", "M", "D", "k"), RETRIEVAL)
def test_topk(N: int, M: int, D: int, k: int, benchmark: BenchmarkFixture) -> None:
    queries, keys = _features(N, M, D)
    calls = _ours(ff.similarity_topk, "similarity_topk", queries)
    calls |= {"eager": peers.topk_dense, "chunked": peers.topk_chunked}
    contest.run(_retrieval("topk", f"{N} of {M} x {D} k{k}", calls, queries, keys, k), benchmark)


@pytest.mark.parametrize(("N", "M", "D", "k"), RETRIEVAL)
def test_ranks(N: int, M: int, D: int, k: int, benchmark: BenchmarkFixture) -> None:
    queries, keys = _features(N, M, D)
    keys[:N] = F.normalize(2 * queries + keys[:N], dim=-1)  # ranks that no rounding can swap
    calls = _ours(ff.retrieval_ranks, "retrieval_ranks", queries) | {"eager": peers.ranks_dense}
    contest.run(_retrieval("ranks", f"{N} of {M} x {D}", calls, queries, keys, torch.arange(N)), benchmark)


def _features(N: int, M: int, D: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return F.normalize(torch.randn(N, D), dim=-1), F.normalize(torch.randn(M, D), dim=-1)


def _ours(search: Callable, op: str, queries: Tensor) -> dict[str, Callable]:
    names = contest.our_backends(op, queries.dtype)
    return {f"fastfuse {name}": partial(search, backend=name) for name in names}


def _retrieval(
    group: str, label: str, calls: dict[str, Callable], queries: Tensor, keys: Tensor, extra: int | Tensor
) -> Contest:
    """The contest of a search; only scores or ranks are compared, equal scores may come in another order."""

    def contender(call: Callable, queries: Tensor, keys: Tensor) -> Callable[[], tuple[Tensor]]:
        return lambda: (call(queries, keys, extra)[0] if group == "topk" else call(queries, keys, extra),)

    return Contest(
        group=group,
        label=label,
        dtype=queries.dtype,
        flops=2 * len(queries) * len(keys) * queries.shape[1],
        bytes=queries.nbytes + keys.nbytes,
        contenders={name: contender(call, queries, keys) for name, call in calls.items()},
        truth=contender(calls["eager"], queries.double(), keys.double()),
        eager=contender(calls["eager"], queries, keys),
    )


def _training(loss: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    value = loss(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs)
