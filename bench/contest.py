"""One case, every contender: results are checked, memory is measured, then all are timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from budget import assert_within_budget
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.machine import COPY_BYTES, PRODUCT_FLOPS, big_copy, big_product, peak_mib
from bench.results import OURS, Row
from fastfuse.backends import Problem, backends, load, refusals, select

T = TypeVar("T")
Call = Callable[[], Sequence[Tensor]]
BUDGET = 1.0  # seconds of timing for a case
ROUNDS = (3, 40)
PRODUCT, COPY = "a big product", "a big copy"  # the machine's ceilings take turns too
WORTHWHILE = 5  # times the best peer: who takes longer is timed once and takes no turns


@dataclass(frozen=True)
class Contest:
    """A case as the contenders see it."""

    group: str  # what is compared: "attention fwd", ...
    label: str  # the sizes
    dtype: torch.dtype
    flops: float  # operations that the result needs
    bytes: float  # bytes that have to be read and written
    contenders: dict[str, Call]  # by name, fastfuse's own first; each returns its results in one order
    truth: Call  # the results in float64
    eager: Call  # the dense formula in this dtype: its error is the measure of everybody's


def our_backends(op: str, dtype: torch.dtype, head_dims: tuple[int, ...] = ()) -> list[str]:
    """Names of our backends that serve this op on this machine, the one that "auto" takes first."""
    problem = Problem(op, "cpu", dtype, head_dims)
    chosen = select(problem, "auto").NAME
    others = [status.name for status in backends() if not refusals(load(status.name), problem)]
    return [chosen, *(name for name in others if name != chosen)]


def run(contest: Contest, benchmark: BenchmarkFixture) -> None:
    """Fills the benchmark: its own rounds are our time, `extra_info` is the whole row of the report."""
    ours, *_ = contest.contenders
    once, refused = _check(contest)
    assert ours not in refused, f"{ours} is wrong: {refused[ours]}"
    best_peer = min((once[name] for name in once if not name.startswith(OURS)), default=0.0)
    worthwhile = [name for name in once if name == ours or once[name] <= WORTHWHILE * best_peer]
    memory = {name: peak_mib(contest.contenders[name]) for name in worthwhile}
    # The ceilings go first, so that everybody finds the case's data where the one before left it.
    turns: dict[str, Callable[[], object]] = {PRODUCT: big_product(contest.dtype), COPY: big_copy()}
    turns |= {name: contest.contenders[name] for name in worthwhile if name != ours}
    times: dict[str, list[float]] = {name: [] for name in turns}

    def others_turn() -> None:
        for name, call in turns.items():
            times[name].append(_timed(call)[0])

    rounds = int(BUDGET / sum(once[name] for name in worthwhile))
    benchmark.pedantic(contest.contenders[ours], setup=others_turn, rounds=min(max(rounds, ROUNDS[0]), ROUNDS[1]))
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    flops_ceiling, bytes_ceiling = PRODUCT_FLOPS / medians.pop(PRODUCT), COPY_BYTES / medians.pop(COPY)
    row = Row(
        group=contest.group,
        label=contest.label,
        dtype=str(contest.dtype).removeprefix("torch."),
        seconds=once | {ours: benchmark.stats.stats.median} | medians,
        peak_mib=dict.fromkeys(once) | memory,
        flops_ceiling=flops_ceiling,
        bytes_ceiling=bytes_ceiling,
        floor_seconds=max(contest.flops / flops_ceiling, contest.bytes / bytes_ceiling),
        refused=refused,
    )
    benchmark.group = contest.group
    benchmark.extra_info.update(asdict(row))


def _check(contest: Contest) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of one call of each contender that is right, and why the others can not do the case or do it wrong."""
    truth, eager = contest.truth(), contest.eager()
    seconds, refused = {}, {}
    for name, call in contest.contenders.items():
        try:
            first, results = _timed(call)
            for i, trio in enumerate(zip(results, truth, eager, strict=True)):
                assert_within_budget(f"result {i}", *trio, contest.dtype)
            seconds[name] = first if name.startswith(OURS) else _timed(call)[0]  # a peer's first call may compile
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            refused[name] = str(error).splitlines()[0]
    return seconds, refused


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    results = call()
    return time.perf_counter() - start, results
