"""The CUDA kernels of attention's backward and maps, executed on the host: the case table, and mistakes to be found."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from budget import assert_within_budget
from cases import ATTENTION_CASES, AttentionCase, make_inputs
from emulation import Mutation, assert_found, emulated
from platforms import name
from test_attention import run_eager, run_fused

import fastfuse as ff


def check(case: AttentionCase, dtype: torch.dtype) -> None:
    """out, lse, the map and all gradients within the budget."""
    inputs = make_inputs(case, dtype)
    ours = run_fused(case, inputs, "cuda")
    truth, peer = (run_eager(case, inputs, t) for t in (torch.float64, dtype))
    for what in truth:
        assert_within_budget(what, ours[what], truth[what], peer[what], dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=name)
def test_matches_float64(case: AttentionCase, dtype: torch.dtype) -> None:
    with emulated(seed=len(case.name)):
        check(case, dtype)


def in_one_pass(case: AttentionCase) -> AttentionCase:
    """The case with a key head for each of the emulation's multiprocessors: backward then runs in one pass."""
    return replace(case, H=3, Hk=0) if case.B == 1 else replace(case, B=3)


PLAIN_CASES = [c for c in ATTENTION_CASES if max(c.D, c.Dv) <= 64 and not (c.bias or c.softcap or c.dropout_p)]
LONGER = [replace(c, name=f"{c.name}_longer", Sk=300) for c in PLAIN_CASES if c.name in ("some_see_nothing", "gqa_2")]


@pytest.mark.parametrize("case", [*PLAIN_CASES, *LONGER], ids=name)
def test_matches_float64_in_one_pass(case: AttentionCase) -> None:
    with emulated(seed=len(case.name)):
        check(replace(in_one_pass(case), gate="head"), torch.bfloat16)


BROADCAST = [" ".join(sizes) for sizes in product(*(("1", size) for size in ("B", "H", "Sq", "Sk")))]


@pytest.mark.parametrize("Sk", [76, 77])  # neighbours stored at once where bias is full, or one by one
@pytest.mark.parametrize("bias", BROADCAST)
def test_bias_of_any_shape(bias: str, Sk: int) -> None:
    with emulated():
        check(AttentionCase("bias_of_any_shape", H=3, Sq=21, Sk=Sk, D=16, bias=bias), torch.bfloat16)


# Several tiles of keys and of rows, of two heads each that lie apart: every ring comes round.
CROWDED = AttentionCase("crowded", B=1, H=4, Hk=2, Sq=150, Sk=300, D=64)
CROWDED_ONE_PASS = AttentionCase("crowded", B=1, H=6, Hk=3, Sq=300, Sk=200, D=64)
CROWDED_WIDE = AttentionCase("crowded", B=1, H=4, Hk=1, Sq=150, Sk=150, D=256)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("case", [replace(CROWDED, map="keys"), CROWDED_ONE_PASS], ids=["two_kernels", "one_pass"])
def test_any_order_of_threads_and_copies(case: AttentionCase, seed: int) -> None:
    with emulated(seed=seed):
        check(case, torch.bfloat16)


def test_gradients_are_deterministic() -> None:
    case = next(case for case in ATTENTION_CASES if case.name == "everything")
    inputs = make_inputs(case, torch.bfloat16)
    runs = []
    for seed in (1, 2):
        with emulated(seed=seed):
            runs.append(run_fused(case, inputs, "cuda"))
    for what in runs[0]:
        assert torch.equal(runs[0][what], runs[1][what]), what


@pytest.mark.parametrize("wanted", ["q", "k", "v", "bias"])
def test_only_the_wanted_gradients(wanted: str) -> None:
    shapes = {"q": (1, 2, 9, 16), "k": (1, 2, 20, 16), "v": (1, 2, 20, 16), "bias": (9, 20)}
    values = {n: torch.randn(shape, dtype=torch.bfloat16) for n, shape in shapes.items()}

    def gradient(*needed: str) -> torch.Tensor:
        leaves = {n: t.clone().requires_grad_(n in needed) for n, t in values.items()}
        out = ff.cross_attention(leaves["q"], leaves["k"], leaves["v"], bias=leaves["bias"], backend="cuda")
        return torch.autograd.grad(out.float().sin().sum(), leaves[wanted])[0]

    with emulated():
        assert torch.equal(gradient(wanted), gradient(*shapes))


def _mutation(family: str, kernel: str, case: AttentionCase, name: str, old: str, new: str = "") -> object:
    file = f"attention_{family}.cuh"
    return pytest.param(Mutation(f"attention_{family}_{name}", kernel, file, old, new), case, id=f"{family}_{name}")


def _queries(*what: str) -> object:
    return _mutation("bwd_queries", "attention_bwd_bf16_64.cu", CROWDED, *what)


def _wide_queries(*what: str) -> object:
    return _mutation("bwd_queries", "attention_bwd_bf16_256.cu", CROWDED_WIDE, *what)


def _keys(*what: str) -> object:
    return _mutation("bwd_keys", "attention_bwd_bf16_64.cu", CROWDED, *what)


def _heads(*what: str) -> object:
    return _mutation("bwd_heads", "attention_bwd_heads_bf16_64.cu", CROWDED_ONE_PASS, *what)


def _map(*what: str) -> object:
    return _mutation("map", "attention_map_bf16_64.cu", replace(CROWDED, map="keys"), *what)


_EMPTY_QUERIES = "mbarrier_wait(shared.queries_empty(queries.stage), queries.parity ^ 1);"
_FULL_QUERIES = "mbarrier_wait(shared.queries_full(queries.stage), queries.parity);"
_RELEASE = "if (lane == 0) mbarrier_arrive(empty);"
MUTATIONS = [
    _queries("keys_overwritten", "mbarrier_wait(shared.keys_empty(keys.stage), keys.parity ^ 1);"),
    _queries("keys_not_awaited", "mbarrier_wait(shared.keys_full(keys.stage), keys.parity);"),
    _queries("values_not_awaited", "mbarrier_wait(shared.values_full(values.stage), values.parity);"),
    _queries("queries_not_awaited", f"if (t.key_begin < t.key_end) {_FULL_QUERIES}"),
    _queries("no_init_fence", "mbarrier_init_fence();"),
    _queries("gradient_not_awaited", "wgmma_wait<1>();  // dQ's product of the tile before\n"),
    _queries("scores_not_awaited", "wgmma_wait<1>();\n      const bool all_see", "const bool all_see"),
    _queries("dp_not_awaited", "wgmma_wait<0>();\n      release(shared.values_empty", "release(shared.values_empty"),
    _queries("sums_not_awaited", "wgmma_wait<0>();\n    if (t.key_begin", "if (t.key_begin"),
    _wide_queries("values_overwritten", "mbarrier_wait(shared.values_empty(values.stage), values.parity ^ 1);"),
    _wide_queries("queries_overwritten", _EMPTY_QUERIES),
    _wide_queries("queries_not_released", "release(shared.queries_empty(queries.stage));"),
    _keys("queries_overwritten", f"    {_EMPTY_QUERIES}\n    mbarrier_arrive_expect", "    mbarrier_arrive_expect"),
    _keys("rows_overwritten", f"    {_EMPTY_QUERIES}\n    QueryRow", "    QueryRow"),
    _keys("keys_not_awaited", "mbarrier_wait(shared.keys_full(), 0);"),
    _keys("queries_not_awaited", _FULL_QUERIES),
    _keys("rows_not_announced", "mbarrier_arrive(shared.queries_full(queries.stage));"),
    _keys("no_block_sync", "block_sync();"),
    _keys("scores_not_awaited", "wgmma_wait<C::kRoomy ? 1 : 0>();  // S\n"),
    _keys("dp_not_awaited", "wgmma_wait<C::kGeneral ? 0 : 1>();"),
    _keys("gradients_not_awaited", "wgmma_wait<0>();\n    const int64_t pair", "const int64_t pair"),
    _keys("rows_released_early", "wgmma_wait<C::kRoomy ? 2 : 1>();  // dV's and dK's products of the rows before\n"),
    _keys("rows_not_released", "if (before >= 0) release(shared.queries_empty(before));"),
    _keys("every_lane_releases", _RELEASE, "mbarrier_arrive(empty);"),
    _heads("keys_overwritten", "mbarrier_wait(shared.keys_empty(), keys.parity ^ 1);"),
    _heads("queries_overwritten", _EMPTY_QUERIES),
    _heads("queries_not_awaited", _FULL_QUERIES),
    _heads("scores_not_awaited", "wgmma_wait<2>();  // S and dP\n"),
    _heads("overwritten_while_read", "wgmma_wait<0>();  // dV's and dK's products\n"),
    _heads("overwritten_before_all_read", "    sync();\n    share(weights", "    share(weights"),
    _heads("not_shared_yet", "    sync();\n    wgmma_wait<0>();", "    wgmma_wait<0>();"),
    _heads("no_proxy_fence", "    fence_async_proxy();\n    multiply_weights", "    multiply_weights"),
    _heads("not_started_from_zero", "      sync();\n      mbarrier_wait", "      mbarrier_wait"),
    _heads("sums_of_other_keys_lost", "before ? *at + sum : sum", "sum"),
    _heads("dq_of_other_keys_lost", "if (before && rows[h].exists) sums =", "if (false) sums ="),
    _heads("one_warp_releases", _RELEASE, "if (lane == 0 && warp == 0) mbarrier_arrive(empty);"),
    _map("stage_overwritten", "mbarrier_wait(shared.empty(ring.stage), ring.parity ^ 1);"),
    _map("stage_not_awaited", "mbarrier_wait(shared.full(ring.stage), ring.parity);"),
    _map("scores_not_awaited", "wgmma_wait<0>();"),
    _map("stage_not_released", "if (lane == 0) mbarrier_arrive(shared.empty(ring.stage));"),
    _map("sums_not_awaited", "named_barrier_sync(1, C::kConsumerThreads);"),
]


@pytest.mark.parametrize(("mutation", "case"), MUTATIONS)
def test_a_mistake_is_found(mutation: Mutation, case: AttentionCase) -> None:
    assert_found(mutation, lambda: check(replace(case, gate="head"), torch.bfloat16))
