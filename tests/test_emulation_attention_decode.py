"""The CUDA kernel for few queries, executed on the host: every option of the case table, and mistakes to be found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import ATTENTION_CASES, AttentionCase
from emulation import Mutation, assert_found, emulated
from platforms import name
from test_emulation import check_forward


def few_queries(case: AttentionCase) -> AttentionCase:
    """The case with one key head, few rows and several tiles of keys, so that blocks share the keys."""
    return replace(case, B=1, H=case.H, Hk=1, Sq=min(case.Sq, 64 // case.H), Sk=max(case.Sk, 300), map=None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=name)
def test_matches_float64(case: AttentionCase, dtype: torch.dtype) -> None:
    with emulated(seed=len(case.name)):
        check_forward(few_queries(case), dtype)


# More tiles of keys than stages, shared by blocks, rows of several warps.
CROWDED = AttentionCase("crowded_decode", B=1, H=4, Hk=1, Sq=12, Sk=4000, D=64)


@pytest.mark.parametrize("seed", range(10))
def test_any_order_of_threads_and_copies(seed: int) -> None:
    with emulated(seed=seed):
        check_forward(CROWDED, torch.bfloat16)


def _decode(name: str, old: str, new: str = "") -> Mutation:
    return Mutation(f"attention_decode_{name}", "attention_decode_bf16_64.cu", "attention_decode.cuh", old, new)


MUTATIONS = [
    _decode("keys_overwritten", "mbarrier_wait(shared.keys_empty(ring.stage), ring.parity ^ 1);"),
    _decode("values_overwritten", "mbarrier_wait(shared.values_empty(ring.stage), ring.parity ^ 1);"),
    _decode("keys_not_awaited", "mbarrier_wait(shared.keys_full(ring.stage), ring.parity);"),
    _decode("values_not_awaited", "mbarrier_wait(shared.values_full(ring.stage), ring.parity);"),
    _decode("no_proxy_fence", "fence_async_proxy();"),
    _decode("queries_not_awaited", "named_barrier_sync(1, C::kConsumerThreads);"),
    _decode("scores_not_awaited", "wgmma_wait<0>();\n      release(shared.keys_empty", "release(shared.keys_empty"),
    _decode("sums_not_awaited", "wgmma_wait<0>();\n      release(shared.values_empty", "release(shared.values_empty"),
    _decode("keys_not_released", "release(shared.keys_empty(ring.stage));"),
    _decode("values_not_released", "release(shared.values_empty(ring.stage));"),
    _decode("every_lane_releases", "if (lane == 0) mbarrier_arrive(empty);", "mbarrier_arrive(empty);"),
    _decode("no_init_fence", "mbarrier_init_fence();"),
    _decode("no_block_sync", "block_sync();"),
    _decode("half_of_the_columns_lost", "o[0] = fused_multiply_add(load_global(at), share, o[0]);"),
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=name)
def test_a_mistake_is_found(mutation: Mutation) -> None:
    assert_found(mutation, lambda: check_forward(CROWDED, torch.bfloat16))
