"""What a forward leaves to its backward is a matter of speed: gradients are right with it and without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from budget import assert_within_budget
from cases import AttentionCase
from platforms import PLATFORMS, Platform, name
from test_attention import expected
from torch import Tensor

from fastfuse.backends import cpu

KEEPING = [(platform, dtype) for platform in PLATFORMS if platform.backend == "cpu" for dtype in platform.dtypes]
SHORT = AttentionCase("short", B=2, H=3, Sq=48, Sk=197, D=64)  # its weights are fewer than its keys and values
LONG = AttentionCase("long", B=1, H=2, Sq=197, Sk=197, D=64)  # they are more, but within what any forward may keep
MOVING = AttentionCase("moving", B=2, H=3, Sq=48, Sk=197, D=64, spread=4.0)  # maxima that outgrow their references
GATED = AttentionCase("gated", B=2, H=3, Sq=48, Sk=197, D=64, gate="head")
BEYOND = 72 << 20  # bytes


def _problem(case: AttentionCase, dtype: torch.dtype, device: str) -> tuple[tuple[Any, ...], Any]:
    inputs, truth, peer = expected(case, dtype, device)
    q, k, v = (inputs.leaves[n].detach().contiguous() for n in "qkv")
    span = (None, None) if inputs.span is None else (inputs.span.lo, inputs.span.hi)
    gate = inputs.leaves["gate"].detach().float() if case.gate else None
    return (q, k, v, *span, None, None, gate), (inputs, truth, peer)


def _forward(problem: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor]:
    return cpu._C.attention_fwd_kept(*problem, problem[0].shape[3] ** -0.5, 0.0, 0.0, None)


def _backward(problem: tuple[Any, ...], inputs: Any, forward: tuple[Tensor, ...]) -> list[Tensor]:
    out, lse_pair, kept = forward
    options = (problem[0].shape[3] ** -0.5, 0.0, 0.0, None, [True] * 3 + [False] * 3)
    dout, dlse = inputs.dout.contiguous(), inputs.dlse.contiguous()
    return cpu._C.attention_bwd(dout, dlse, *problem, out, lse_pair, *options, kept)[:3]


@pytest.mark.parametrize("case", [SHORT, LONG, MOVING, GATED], ids=lambda case: case.name)
@pytest.mark.parametrize(("platform", "dtype"), KEEPING, ids=name)
def test_gradients_with_and_without_it(platform: Platform, dtype: torch.dtype, case: AttentionCase) -> None:
    problem, (inputs, truth, peer) = _problem(case, dtype, platform.device)
    with platform.active():
        forward = _forward(problem)
        kept = forward[2]
        limit = problem[1].nbytes + problem[2].nbytes + 64
        assert kept.nbytes <= BEYOND if case is LONG else 0 < kept.nbytes <= limit
        found = [_backward(problem, inputs, (*forward[:2], k)) for k in (kept, kept[:0])]
        again = _backward(problem, inputs, forward)
    for grads in found:
        for what, grad in zip(("dq", "dk", "dv"), grads, strict=True):
            assert_within_budget(what, grad, truth[what], peer[what], dtype)
    for first, second in zip(found[0], again, strict=True):
        assert torch.equal(first, second)  # it is read, not used up


@pytest.mark.parametrize(("platform", "dtype"), KEEPING, ids=name)
def test_nothing_is_kept_beyond_the_budget(platform: Platform, dtype: torch.dtype) -> None:
    rows = torch.zeros(8, 8, 800, 4, dtype=dtype, device=platform.device)
    assert rows[..., 0].numel() * rows.shape[2] * dtype.itemsize > BEYOND
    with platform.active():
        kept = _forward((rows, rows, rows, *[None] * 5))[2]
    assert kept.numel() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_what_another_instruction_set_left_is_not_read(dtype: torch.dtype) -> None:
    sets = [platform for platform, served in KEEPING if platform.isa is not None and served == dtype]
    problem, (inputs, _, _) = _problem(SHORT, dtype, "cpu")
    for writer in sets:
        with writer.active():
            out, lse_pair, kept = _forward(problem)
        for reader in sets:
            if reader == writer:
                continue
            with reader.active():
                handed = _backward(problem, inputs, (out, lse_pair, kept))
                without = _backward(problem, inputs, (out, lse_pair, kept[:0]))
            for a, b in zip(handed, without, strict=True):
                assert torch.equal(a, b), f"{writer} to {reader}"
