"""One case, every contender: results are checked, memory is measured, then all are timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from budget import assert_within_budget
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.machine import bytes_ceiling, flops_ceiling, peak_mib
from bench.results import Row
from fastfuse.backends import Problem, backends, load, refusals, select

Call = Callable[[], Sequence[Tensor]]
BUDGET = 1.0  # seconds of timing for a case
ROUNDS = (3, 40)
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

    def floor_seconds(self) -> float:
        """The time that this machine's own ceilings allow."""
        return max(self.flops / flops_ceiling(self.dtype), self.bytes / bytes_ceiling())


def our_backends(op: str, dtype: torch.dtype, head_dims: tuple[int, ...] = ()) -> list[str]:
    """Names of our backends that serve this op on this machine, the one that "auto" takes first."""
    problem = Problem(op, "cpu", dtype, head_dims)
    chosen = select(problem, "auto").NAME
    others = [status.name for status in backends() if not refusals(load(status.name), problem)]
    return [chosen, *(name for name in others if name != chosen)]


def run(contest: Contest, benchmark: BenchmarkFixture) -> None:
    """Fills the benchmark: its own rounds are our time, `extra_info` is the whole row of the report."""
    ours, *_ = contest.contenders
    refused = _wrong(contest)
    assert ours not in refused, f"{ours} is wrong: {refused[ours]}"
    first = {name: _first_turn(call) for name, call in contest.contenders.items() if name not in refused}
    once = {name: seconds for name, (seconds, _) in first.items()}
    best_peer = min((once[name] for name in once if not name.startswith("fastfuse")), default=0.0)
    times: dict[str, list[float]] = {
        name: [] for name, seconds in once.items() if name != ours and seconds <= WORTHWHILE * best_peer
    }

    def peers_turn() -> None:
        for name, seconds in times.items():
            seconds.append(_seconds(contest.contenders[name]))

    rounds = int(BUDGET / sum(once[name] for name in [ours, *times]))
    benchmark.pedantic(contest.contenders[ours], setup=peers_turn, rounds=min(max(rounds, ROUNDS[0]), ROUNDS[1]))
    medians = once | {ours: benchmark.stats.stats.median}
    medians |= {name: statistics.median(seconds) for name, seconds in times.items()}
    row = Row(
        group=contest.group,
        label=contest.label,
        dtype=str(contest.dtype).removeprefix("torch."),
        seconds=medians,
        peak_mib={name: mib for name, (_, mib) in first.items()},
        ceiling_share=contest.floor_seconds() / medians[ours],
        refused=refused,
    )
    benchmark.group = contest.group
    benchmark.extra_info.update(asdict(row))


def _first_turn(call: Call) -> tuple[float, float | None]:
    """Seconds and peak MiB of one call."""
    seconds: list[float] = []
    mib = peak_mib(lambda: seconds.append(_seconds(call)))
    return seconds[0], mib


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _wrong(contest: Contest) -> dict[str, str]:
    """Contenders that can not do the case or do it wrong, with the reason."""
    truth = contest.truth()
    eager = contest.eager()
    refused = {}
    for name, call in contest.contenders.items():
        try:
            for i, trio in enumerate(zip(call(), truth, eager, strict=True)):
                assert_within_budget(f"result {i}", *trio, contest.dtype)
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            refused[name] = str(error).splitlines()[0]
    return refused
