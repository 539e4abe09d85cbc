"""One case, every contender: results are checked, memory is measured, then all are timed in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from budget import assert_within_budget
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench import machine
from bench.results import OURS, Row
from fastfuse.backends import Problem, backends, load, refusals, select

Call = Callable[[], Sequence[Tensor | None]]  # None: a gradient that the contender does not have
BUDGET = {"cpu": 1.0, "cuda": 0.3, "interpreter": 0.0}  # seconds of timing for a case
ROUNDS = {"cpu": (3, 40), "cuda": (5, 40), "interpreter": (1, 1)}
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
    """Names of our backends that serve this op on this machine, the one that "auto" takes first.

    For a GPU, and for its rehearsal, those with kernels for it: "auto" may not take them yet.
    """
    problem = Problem(op, machine.torch_device(), dtype, head_dims)
    able = [status.name for status in backends() if not refusals(load(status.name), problem)]
    if machine.device() != "cpu":
        able = [name for name in able if name not in ("reference", "cpu")]
    chosen = select(problem, "auto").NAME
    return sorted(able, key=lambda name: name != chosen)


def run(contest: Contest, benchmark: BenchmarkFixture) -> None:
    """Runs the benchmark, whose rounds are everybody's turns; its `extra_info` is the row of the report."""
    ours, *_ = contest.contenders
    once, refused = _check(contest)
    assert ours not in refused, f"{ours} is wrong: {refused[ours]}"
    best_peer = min((once[name] for name in once if not name.startswith(OURS)), default=0.0)
    worthwhile = [name for name in once if name == ours or once[name] <= WORTHWHILE * best_peer]
    memory = {name: machine.peak_mib(contest.contenders[name]) for name in worthwhile}
    # The ceilings go first, so that everybody finds the case's data where the one before left it.
    turns: dict[str, Callable[[], object]] = {PRODUCT: machine.big_product(contest.dtype), COPY: machine.big_copy()}
    turns |= {name: contest.contenders[name] for name in worthwhile if name != ours}
    turns[ours] = contest.contenders[ours]
    times: dict[str, list[float]] = {name: [] for name in turns}

    def everybodys_turn() -> None:
        for name, call in turns.items():
            times[name].append(machine.timed(call)[0])

    least, most = ROUNDS[machine.device()]
    rounds = int(BUDGET[machine.device()] / sum(once[name] for name in worthwhile))
    benchmark.pedantic(everybodys_turn, rounds=min(max(rounds, least), most))
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    flops_ceiling = machine.product_flops() / medians.pop(PRODUCT)
    bytes_ceiling = machine.copy_bytes() / medians.pop(COPY)
    row = Row(
        group=contest.group,
        label=contest.label,
        dtype=str(contest.dtype).removeprefix("torch."),
        seconds=once | medians,
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
            results = call()
            for i, trio in enumerate(zip(results, truth, eager, strict=True)):
                if trio[0] is not None or name.startswith(OURS):
                    assert_within_budget(f"result {i}", *trio, contest.dtype)
            seconds[name] = machine.timed(call)[0]  # the first call may have compiled
        except Exception as error:  # whatever a peer raises
            refused[name] = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return seconds, refused
