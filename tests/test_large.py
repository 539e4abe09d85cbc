"""Sizes that the cases do not reach: long sequences, many rows, offsets beyond 31 bits. A GPU gets sizes of its own."""

from __future__ import annotations

from collections.abc import Callable

import eager_contrastive
import pytest
import torch
from budget import assert_within_budget
from cases import AttentionCase, make_inputs
from cases_contrastive import ContrastiveCase
from cases_contrastive import make_inputs as make_pairs
from platforms import EVERYWHERE, PLATFORMS, Platform, name
from test_attention import run_eager, run_fused
from test_contrastive import run
from torch import Tensor

import fastfuse as ff


def size(platform: Platform, on_gpu: int, on_cpu: int, interpreted: int) -> int:
    if platform.device == "cuda":
        return on_gpu
    return interpreted if platform.backend == "triton" else on_cpu


def padded(case: AttentionCase) -> ff.KeySpan:
    return ff.KeySpan.lengths(torch.linspace(case.Sk // 3, case.Sk, case.B).int())


def causal(case: AttentionCase) -> ff.KeySpan:
    return ff.KeySpan.causal(case.Sq, case.Sk)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_key_gradients_that_caches_do_not_hold(dtype: torch.dtype) -> None:
    quarter = 4 * 4 // dtype.itemsize  # of the batches: its dk and dv are written by other stores
    q, k, v, dout = (torch.randn(4 * quarter, 8, s, 64).to(dtype) for s in (20, 257, 257, 20))
    for t in (q, k, v):
        t.requires_grad_()
    run = lambda part: torch.autograd.grad(ff.cross_attention(q[part], k[part], v[part]), (q, k, v), dout[part])  # noqa: E731
    whole = run(slice(None))
    for first in range(0, len(q), quarter):
        part = slice(first, first + quarter)
        for grad, expected in zip(whole, run(part), strict=True):
            assert torch.equal(grad[part], expected[part])


@pytest.mark.parametrize(("platform", "dtype"), EVERYWHERE, ids=name)
@pytest.mark.parametrize("span", [padded, causal], ids=lambda span: span.__name__)
def test_long_sequences(span: Callable[[AttentionCase], ff.KeySpan], platform: Platform, dtype: torch.dtype) -> None:
    Sq, Sk = size(platform, 2999, 301, 70), size(platform, 12007, 1501, 300)
    case = AttentionCase("long", B=2, H=2, Hk=1, Sq=Sq, Sk=Sk, D=72, Dv=64, span=span)
    inputs = make_inputs(case, dtype, platform.device)
    with platform.active():
        ours = run_fused(case, inputs, platform.backend)
    truth, peer = (run_eager(case, inputs, d) for d in (torch.float64, dtype))
    for what in truth:
        assert_within_budget(what, ours[what], truth[what], peer[what], dtype)


@pytest.mark.parametrize(("platform", "dtype"), EVERYWHERE, ids=name)
@pytest.mark.parametrize("loss", ["clip_loss", "siglip_loss"])
def test_many_rows(loss: str, platform: Platform, dtype: torch.dtype) -> None:
    case = ContrastiveCase("many", loss, N=size(platform, 8191, 601, 150), D=136)
    inputs = make_pairs(case, dtype, platform.device)
    with platform.active():
        ours = run(ff, case, inputs, backend=platform.backend)
    with torch.device(platform.device):
        truth, peer = (run(eager_contrastive, case, inputs, dtype=d) for d in (torch.float64, dtype))
    for what in truth:
        assert_within_budget(what, ours[what], truth[what], peer[what], dtype)


@pytest.mark.parametrize("platform", PLATFORMS, ids=name)
def test_offsets_beyond_31_bits(platform: Platform) -> None:
    """q, k and v lie 2^31 elements apart; most of that memory is never touched."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    distance = 2**31
    memory = torch.empty(distance + 2**16, dtype=torch.float16, device=platform.device)

    def far_apart(first: int) -> Tensor:
        t = memory.as_strided((2, 1, 40, 16), (distance, 0, 16, 1), first)
        return t.copy_(torch.randn(2, 1, 40, 16)).detach().requires_grad_()

    q, k, v = (far_apart(4096 * i) for i in range(3))
    with platform.active():
        ours = ff.cross_attention(q, k, v, backend=platform.backend)
        near = ff.cross_attention(*(t.contiguous() for t in (q, k, v)), backend=platform.backend)
        grads = [torch.autograd.grad(out.float().square().sum(), (q, k, v)) for out in (ours, near)]
    assert torch.equal(ours, near)
    for far, close in zip(*grads, strict=True):
        assert torch.equal(far, close)
