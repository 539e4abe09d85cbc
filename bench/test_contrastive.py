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
from bench import contest, installed_peers, machine, peers
from bench.contest import Contest
from bench.sizes import sizes

SIZES = sizes()
ON_GPU = machine.device() == "cuda"
LOSSES: dict[str, tuple[Callable[..., Tensor], dict[str, Callable[..., Tensor]], float]] = {
    # ours, the peers, and the work: forward and backward in products of N x M x D multiply-adds
    "clip": (ff.clip_loss, {"eager": peers.clip_dense} | installed_peers.clip(), 4),
    "siglip": (ff.siglip_loss, {"eager": peers.siglip_dense}, 3),
    "info_nce": (ff.info_nce_loss, {"eager": peers.info_nce_dense} | installed_peers.info_nce(), 3),
    "nt_xent": (ff.nt_xent_loss, {"eager": peers.nt_xent_dense}, 6),
}


@pytest.mark.parametrize("dtype", SIZES.dtypes, ids=str)
@pytest.mark.parametrize(("N", "D"), SIZES.pairs)
@pytest.mark.parametrize("name", LOSSES)
def test_loss(name: str, N: int, D: int, dtype: torch.dtype, benchmark: BenchmarkFixture) -> None:
    ours, others, products = LOSSES[name]
    N = N // 2 if name == "nt_xent" else N  # two views of N / 2 pictures are N rows
    torch.manual_seed(0)
    shared = torch.randn(N, D)
    features = [(shared + torch.randn(N, D)).to(machine.torch_device(), dtype) for _ in range(2)]
    scalars = [torch.tensor(value, device=features[0].device) for value in (14.3, -10.0)[: 1 + (name == "siglip")]]
    others = others | ({"compiled": torch.compile(others["eager"])} if ON_GPU else {})
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


@pytest.mark.parametrize(("N", "M", "D", "k"), SIZES.retrieval)
def test_topk(N: int, M: int, D: int, k: int, benchmark: BenchmarkFixture) -> None:
    queries, keys = _features(N, M, D)
    calls = _ours(ff.similarity_topk, "similarity_topk", queries)
    calls |= {"eager": peers.topk_dense, "chunked": peers.topk_chunked}
    contest.run(_retrieval("topk", f"{N} of {M} x {D} k{k}", calls, queries, keys, k), benchmark)


@pytest.mark.parametrize(("N", "M", "D", "k"), SIZES.retrieval)
def test_ranks(N: int, M: int, D: int, k: int, benchmark: BenchmarkFixture) -> None:
    queries, keys = _features(N, M, D)
    keys[:N] = F.normalize(2 * queries + keys[:N], dim=-1)  # ranks that no rounding can swap
    calls = _ours(ff.retrieval_ranks, "retrieval_ranks", queries) | {"eager": peers.ranks_dense}
    positives = torch.arange(N, device=keys.device)
    contest.run(_retrieval("ranks", f"{N} of {M} x {D}", calls, queries, keys, positives), benchmark)


def _features(N: int, M: int, D: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    queries, keys = (F.normalize(torch.randn(n, D, device=machine.torch_device()), dim=-1) for n in (N, M))
    return queries, keys


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


def _training(loss: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    value = loss(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs, allow_unused=True)
