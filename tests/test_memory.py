"""Large results and scratch on the CPU serve later calls of about their size again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

import fastfuse as ff
from fastfuse.backends import cpu

QUERIES, KEYS = torch.randn(1, 4, 8192, 64), torch.randn(1, 4, 8, 64)


def _attention(queries: int) -> Tensor:
    return ff.cross_attention(QUERIES[:, :, :queries], KEYS, KEYS, backend="cpu")


def test_memory_of_a_freed_result_serves_the_next() -> None:
    cpu.empty_cache()
    first, second = _attention(2048), _attention(2048)  # 2 MiB each
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, second)
    place = first.data_ptr()
    del first
    assert _attention(2040).data_ptr() == place
    assert _attention(8192).data_ptr() != place


def test_a_result_is_an_ordinary_tensor() -> None:
    out = _attention(2048)
    before = out[..., :4].clone()
    out.resize_(1, 4, 8192, 64)
    assert torch.equal(out.flatten()[: 4 * 2048 * 64].view(1, 4, 2048, 64)[..., :4], before)
    shared = _attention(2048).share_memory_()
    assert shared.is_shared()


def test_threads_do_not_share_results() -> None:
    expected = _attention(2048).clone()
    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(lambda _: _attention(2048), range(64)):
            assert torch.equal(out, expected)
