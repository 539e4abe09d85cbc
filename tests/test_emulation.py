"""The CUDA kernels, executed on the host, on the attention case table against float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import emulation
import pytest
import torch
from budget import assert_within_budget
from cases import ATTENTION_CASES, SEED, AttentionCase, make_inputs
from platforms import name
from test_attention import run_eager

import fastfuse as ff
from fastfuse.backends import cuda, select

CASES = {case.name: case for case in ATTENTION_CASES}


@contextmanager
def emulated(mutation: str = "", seed: int = 1) -> Iterator[None]:
    """Within it, backend "cuda" takes CPU tensors and runs its kernels on the host."""
    extension = emulation.load(mutation)
    extension.set_seed(seed)
    before, cuda.extension = cuda.extension, extension
    select.cache_clear()
    try:
        yield
    finally:
        cuda.extension = before
        select.cache_clear()


def check_forward(case: AttentionCase, dtype: torch.dtype) -> None:
    """out and lse within the budget."""
    inputs = make_inputs(case, dtype)
    leaves = inputs.leaves
    with torch.no_grad():
        got = ff.cross_attention(
            leaves["q"], leaves["k"], leaves["v"], span=inputs.span,
            bias=leaves.get("bias"), sink=leaves.get("sink"), gate=leaves.get("gate"),
            seed=SEED, return_lse=True, backend="cuda", **inputs.options,
        )  # fmt: skip
    assert isinstance(got, ff.AttentionOutput)
    assert got.lse is not None
    truth, peer = (run_eager(case, inputs, t) for t in (torch.float64, dtype))
    for what, ours in (("out", got.out), ("lse", got.lse)):
        assert_within_budget(what, ours, truth[what], peer[what], dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=name)
def test_matches_float64(case: AttentionCase, dtype: torch.dtype) -> None:
    with emulated(seed=len(case.name)):
        check_forward(case, dtype)
