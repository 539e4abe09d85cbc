"""The CUDA kernels, executed on the host: the attention case table against float64, and mistakes that must be found."""

from __future__ import annotations

import pytest
import torch
from budget import assert_within_budget
from cases import ATTENTION_CASES, SEED, AttentionCase, make_inputs
from emulation import Mutation, assert_found, emulated
from platforms import name
from test_attention import run_eager

import fastfuse as ff


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


# Sizes whose tiles of keys have widths of their own, three tiles each.
OPTIONS = {"bias": "1 H Sq Sk", "softcap": 9.0, "dropout_p": 0.2}
LARGE_HEADS = [
    AttentionCase(f"D{D}{name}", B=1, Sq=70, Sk=157, D=D, **options)
    for D in (136, 192, 200, 256)
    for name, options in (("", {}), ("_options", OPTIONS))
]


@pytest.mark.parametrize("case", LARGE_HEADS, ids=name)
def test_large_heads(case: AttentionCase) -> None:
    with emulated():
        check_forward(case, torch.bfloat16)


# Each width of a last block of keys, alone and after full ones.
TAILS = [
    AttentionCase(f"D{D}_{Sk}_keys{name}", B=1, Sq=20, Sk=Sk, D=D, **options)
    for D in (64, 256)
    for Sk in (16, 17, 32, 33, 80, 81, 144, 208, 209, 257)
    for name, options in (("", {}), ("_options", OPTIONS))
]


@pytest.mark.parametrize("case", TAILS, ids=name)
def test_last_keys(case: AttentionCase) -> None:
    with emulated():
        check_forward(case, torch.bfloat16)


# Several tiles of keys for a tile of queries, and several of those for a block: every ring comes round.
CROWDED = AttentionCase("crowded", B=2, H=4, Hk=2, Sq=70, Sk=300, D=64)


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_threads_and_copies(seed: int) -> None:
    with emulated(seed=seed):
        check_forward(CROWDED, torch.bfloat16)


def _forward(name: str, old: str, new: str = "", file: str = "attention_fwd.cuh") -> Mutation:
    return Mutation(f"attention_fwd_{name}", "attention_fwd_bf16_64.cu", file, old, new)


_KEYS_FULL = "mbarrier_wait(shared.keys_full(keys.stage), keys.parity);"
_VALUES_FULL = "mbarrier_wait(shared.values_full(values.stage), values.parity);"
_WAIT = "      wgmma_wait<0>();\n"
_FREE_VALUES = "      release(shared.values_empty(values.stage));\n"
_FREE_QUERIES = "    release(shared.queries_empty(queries.stage));\n"
_FREE = "if (lane == 0) mbarrier_arrive(empty);"
_ROWS_FENCE = "  wgmma_fence();\n#pragma unroll\n  for (int step = 0; step < kHeadDim / 16; step++) {\n"
MUTATIONS = [
    _forward("keys_overwritten", "mbarrier_wait(shared.keys_empty(keys.stage), keys.parity ^ 1);"),
    _forward("values_overwritten", "mbarrier_wait(shared.values_empty(values.stage), values.parity ^ 1);"),
    _forward("queries_overwritten", "mbarrier_wait(shared.queries_empty(queries.stage), queries.parity ^ 1);"),
    _forward("producer_parity", "keys_empty(keys.stage), keys.parity ^ 1);", "keys_empty(keys.stage), keys.parity);"),
    _forward("bytes_expected", "arrive_expect(full, C::kKeyBytes)", "arrive_expect(full, C::kKeyBytes / 2)"),
    _forward("no_bytes_expected", "mbarrier_arrive_expect(full, C::kKeyBytes)", "mbarrier_arrive(full)"),
    _forward("queries_not_awaited", "mbarrier_wait(shared.queries_full(queries.stage), queries.parity);", ";"),
    _forward("keys_not_awaited", _KEYS_FULL),
    _forward("values_not_awaited", f"      {_VALUES_FULL}\n"),
    _forward("last_values_not_awaited", f"\n    {_VALUES_FULL}\n", "\n"),
    _forward("copies_not_awaited", "    copy_async_wait();\n"),
    _forward("no_proxy_fence", "    fence_async_proxy();\n"),
    _forward("pieces_misplaced", "piece % 8 * 16;", "(piece + 1) % 8 * 16;"),
    _forward("queries_not_announced", "    mbarrier_arrive(shared.queries_full(queries.stage));\n"),
    _forward("no_init_fence", "    mbarrier_init_fence();\n"),
    _forward("no_block_sync", "  block_sync();\n"),
    _forward("scores_not_awaited", "wgmma_wait<1>();"),
    _forward("sums_not_awaited", f"{_WAIT}{_FREE_VALUES}", _FREE_VALUES),
    _forward("keys_released_early", _KEYS_FULL, f"{_KEYS_FULL} release(shared.keys_empty(keys.stage));"),
    _forward("values_released_early", f"{_WAIT}{_FREE_VALUES}", f"{_FREE_VALUES}{_WAIT}"),
    _forward("values_released_twice", _WAIT + _FREE_VALUES, _WAIT + _FREE_VALUES + _FREE_VALUES),
    _forward("queries_released_early", "    weigh(tile, first_key", f"{_FREE_QUERIES}    weigh(tile, first_key"),
    _forward("queries_not_released", _FREE_QUERIES),
    _forward("one_warp_releases", _FREE, "if (lane == 0 && warp == 0) mbarrier_arrive(empty);"),
    _forward("every_lane_releases", _FREE, "mbarrier_arrive(empty);"),
    _forward("stale_sums", "o[n] *= rescale[n / 2 % 2];", "o[n] *= 1;"),
    _forward("no_wgmma_fence", _ROWS_FENCE, _ROWS_FENCE.partition(";")[2], "attention_products.cuh"),
    _forward("weights_of_another_step", "d, a + 4 * step,", "d, a + 4 * (step / 2),", "attention_products.cuh"),
    _forward("values_step", "first, step * 2048", "first, step * 1024", "attention_products.cuh"),
    _forward("no_parity", "parity ^= 1;", file="ring.cuh"),
    _forward("ring_too_long", "stage == kStages", "stage == kStages + 1", file="ring.cuh"),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=name)
def test_a_mistake_is_found(mutation: Mutation) -> None:
    assert_found(mutation, lambda: check_forward(CROWDED, torch.bfloat16))
