"""The vocabulary of csrc/cuda/hopper by itself: what it computes, and which mistakes the emulation reports."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from emulation import load_plain
from torch import Tensor

TESTS = Path(__file__).parent


def run(function: str, *arguments: object) -> None:
    """Calls a function of the test kernels. RuntimeError with what the emulation reports."""
    library = load_plain(TESTS / "vocabulary_kernels.cu", TESTS / "vocabulary_mistakes.cpp")
    entry = getattr(library, function)
    entry.restype = ctypes.c_char_p
    message = entry(*(_argument(argument) for argument in arguments))
    if message is not None:
        raise RuntimeError(message.decode())


def _argument(value: object) -> object:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return value.encode() if isinstance(value, str) else value


@pytest.mark.parametrize("swizzle", [128, 64, 32])
@pytest.mark.parametrize("a_output", [False, True], ids=["a_rows", "a_columns"])
@pytest.mark.parametrize("b_output", [False, True], ids=["b_rows", "b_columns"])
def test_product_of_every_layout(swizzle: int, a_output: bool, b_output: bool) -> None:
    a, b = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16()  # (M, K), (N, K)
    stored_a, stored_b = (t.T.contiguous() if output else t for t, output in ((a, a_output), (b, b_output)))
    d = torch.empty(64, 64)
    run("multiply", swizzle, a_output, b_output, stored_a, stored_b, d)
    torch.testing.assert_close(d, a.float() @ b.float().T)


PLACES = {
    "inside": ((8, 1, 0), (16, 4, 1)),
    "before": ((-5, -3, -1), (0, 0, 0)),
    "beyond": ((75, 15, 2), (0, 0, 0)),
    "put_before": ((0, 0, 0), (-8, -2, -1)),
    "put_beyond": ((0, 0, 0), (72, 17, 2)),
    "nowhere": ((1000, 0, 0), (0, 0, 0)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("swizzle", [128, 64, 32])
def test_copy_fills_with_zeros_and_writes_nothing_outside(swizzle: int, place: str) -> None:
    at, put = PLACES[place]  # innermost first
    shape, box = (3, 20, 80), (2, 8, swizzle // 2)
    source, to = torch.randn(shape).bfloat16(), torch.full(shape, 7.0).bfloat16()
    expected = to.clone()
    for place_in_box in _indices(box):
        read = tuple(i + start for i, start in zip(place_in_box, reversed(at), strict=True))
        write = tuple(i + start for i, start in zip(place_in_box, reversed(put), strict=True))
        if _inside(write, shape):
            expected[write] = source[read] if _inside(read, shape) else 0
    sizes = (ctypes.c_int64 * 3)(*reversed(shape))
    run("copy_box", swizzle, source, to, sizes, (ctypes.c_int * 3)(*at), (ctypes.c_int * 3)(*put))
    assert torch.equal(to, expected)


def _indices(shape: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(index) for index in torch.cartesian_prod(*map(torch.arange, shape)).tolist()]


def _inside(index: Sequence[int], shape: Sequence[int]) -> bool:
    return all(0 <= i < size for i, size in zip(index, shape, strict=True))


def test_named_barrier_and_shuffles() -> None:
    out = torch.zeros(2, 64, dtype=torch.int32)
    run("pass_around", out)
    squares = torch.arange(64, dtype=torch.int32) ** 2
    assert torch.equal(out[0], squares.view(2, 32).roll(-1, 1).flatten())
    assert torch.equal(out[1], squares.view(2, 32).flip(1).flatten())


MISTAKES = {
    "deadlock": r"(?s)deadlock.*threads 0..31: waits at mbarrier 0x8, parity 0"
    r".*threads 32..127: finished.*threads 128..255: waits at named barrier 3"
    r".*mbarrier 0x8: phase 0, still expects 1 of 2 arrivals",
    "uninitialised": "thread 7: read at 0x200, which nobody has written",
    "beyond_shared": "write of 4 bytes at 0x[0-9a-f]+, beyond the 9216 of shared memory",
    "misaligned": "misaligned write",
    "stage_before_transfer": "read at 0x400, where a copy is in flight",
    "product_before_transfer": "wgmma reads where a copy is in flight",
    "unfenced": "wgmma reads what a thread wrote without fence_async_proxy",
    "product_left_behind": "ends while a wgmma is in flight",
    "stage_released_early": "write over an operand of a wgmma in flight",
    "load_beyond_global": "load of 2 bytes of global memory outside of an allocation",
    "store_before_global": "store of 2 bytes of global memory outside of an allocation",
    "load_across_the_end": "load of 16 bytes of global memory outside of an allocation",
    "too_many_registers": "deadlock(?s:.*)waits for 256 registers",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported(mistake: str) -> None:
    reports = []
    for seed in range(4):  # a copy may have landed in time under one of them
        try:
            run("make_mistake", mistake, ctypes.c_uint64(seed), torch.zeros(64, 64, dtype=torch.int16))
        except RuntimeError as error:
            reports.append(str(error))
    assert reports
    assert all(re.search(MISTAKES[mistake], report) for report in reports), reports


def test_sums_are_nothing_before_the_wait() -> None:
    data = torch.full((64, 64), -1, dtype=torch.int16)
    run("make_mistake", "early_sums", ctypes.c_uint64(1), data)
    assert data[0, :2].tolist() == [0, 1]
