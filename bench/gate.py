"""`python -m bench.gate`: compiles every Triton kernel for GPUs that are not there, and tells what they need of them.

Each kernel with each tile of its rules, in each dtype, with the options of `bench.launches`, for sm_80, sm_90 and
sm_100: nothing spilled, shared memory within the least chip that the tile serves, every product on the tensor cores,
every rule reached. `make gate` runs all of it and writes docs/performance/triton-static.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import click
import torch
import triton

from bench.chips import ARCHS, SHARED_KIB
from bench.launches import calls
from bench.offline import Launch, Report, inspect, recording
from bench.rules import served
from fastfuse.tuning.records import sources_hash
from fastfuse.tuning.tiles import Rule, tile

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
QUICK_DTYPES = {80: DTYPES[:1], 90: (torch.bfloat16, torch.float32), 100: DTYPES[:1]}
DOCUMENT = Path(__file__).parents[1] / "docs" / "performance" / "triton-static.md"


@dataclass(frozen=True)
class Recorded:
    """What calls for one compute capability in one dtype launch."""

    launches: dict[Launch, int]  # and the KiB of shared memory of the least chip that its tile serves
    unreached: list[str]  # rules that no call came to


def record(arch: int, dtype: torch.dtype, quick: bool) -> Recorded:
    """The launches of all calls, and the rules that none of them came to."""
    reached: set[Rule] = set()
    limits: dict[Launch, int] = {}
    torch.manual_seed(0)
    with recording(arch) as launches:
        for call in calls(arch, dtype, quick):
            with _rules_reached() as serving:
                call()
            limit = min(SHARED_KIB[chip] for rule in serving for chip in SHARED_KIB if rule.serves(chip))
            limits |= dict.fromkeys(launches.keys() - limits.keys(), limit)
            reached |= serving
    wanted = [] if quick else served(arch, dtype.itemsize)
    return Recorded(limits, [f"no call comes to {kernel}: {rule}" for kernel, rule in wanted if rule not in reached])


@contextmanager
def _rules_reached() -> Iterator[set[Rule]]:
    """The rules that gave tiles within it."""
    reached: set[Rule] = set()
    fits = Rule.fits

    def noted(rule: Rule, *problem: int) -> bool:
        found = fits(rule, *problem)
        reached.update([rule] if found else [])
        return found

    tile.cache_clear()
    with patch.object(Rule, "fits", noted):
        yield reached


@click.command()
@click.option("--arch", "archs", type=click.Choice([str(arch) for arch in ARCHS]), multiple=True, help="Only for this.")
@click.option("--quick", is_flag=True, help="One head dim, bfloat16, and float32 for sm_90.")
@click.option("-k", "keyword", default="", help="Only kernels whose names hold this.")
@click.option("--jobs", default=2, help="Compilers at once.")
@click.option("--write", is_flag=True, help=f"Write the table to {DOCUMENT.name}.")
def main(archs: tuple[str, ...], quick: bool, keyword: str, jobs: int, write: bool) -> None:
    """Compile, complain, tell."""
    start = time.perf_counter()
    recorded = [
        record(arch, dtype, quick)
        for arch in [int(arch) for arch in archs] or ARCHS
        for dtype in (QUICK_DTYPES[arch] if quick else DTYPES)
    ]
    limits = {launch: limit for part in recorded for launch, limit in part.launches.items() if keyword in launch.kernel}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        reports = list(pool.map(inspect, limits, chunksize=4))
    faults = [fault for part in recorded for fault in part.unreached]
    for report, limit in zip(reports, limits.values(), strict=True):
        faults += [f"{describe(report)}: {fault}" for fault in report.faults(limit)]
    if write:
        DOCUMENT.write_text(document(reports, quick))
    print(*table(reports), sep="\n")
    print(*[f"FAULT {fault}" for fault in faults], sep="\n")
    seconds = time.perf_counter() - start
    print(f"Triton {triton.__version__}: {len(reports)} kernels compiled, {len(faults)} faults, {seconds:.0f} s")
    sys.exit(bool(faults))


def describe(report: Report) -> str:
    constants = " ".join(f"{name}={value}" for name, value in report.constants.items() if name.isupper())
    return f"sm_{report.arch} {report.kernel} {' '.join(report.dtypes)} {constants} warps={report.num_warps}"


def document(reports: list[Report], quick: bool) -> str:
    command = "python -m bench.gate --quick --write" if quick else "make gate"
    return "\n".join(
        [
            "# What the Triton kernels need of a GPU",
            "",
            f"Written by `{command}` with Triton {triton.__version__}, kernel sources `{sources_hash('triton')}`.",
            "",
            "Each line is one kernel in one dtype for one compute capability with one cut: over the option sets that "
            "were compiled, the most registers a thread, bytes spilled and shared memory, the fewest blocks that a "
            "multiprocessor holds and the share of its warps that they are; MMA: the matrix instructions in the "
            "machine code, - where a kernel has no product.",
            "",
            *table(reports),
            "",
        ]
    )


def table(reports: Iterable[Report]) -> list[str]:
    """A Markdown table, a line for each kernel, dtype, compute capability and cut."""
    lines: dict[tuple[str, ...], list[Report]] = {}
    for report in reports:
        key = (report.kernel, report.dtypes[0] if report.dtypes else "", f"sm_{report.arch}", _cut(report))
        lines.setdefault(key, []).append(report)
    header = ("kernel", "dtype", "for", "cut", "compiled", "registers", "spilled", "shared", "blocks", "warps", "MMA")
    rows = [header, ("---",) * len(header), *((*key, *_worst(same)) for key, same in sorted(lines.items()))]
    return [f"| {' | '.join(row)} |" for row in rows]


def _cut(report: Report) -> str:
    blocks = " x ".join(
        str(value) for name, value in report.constants.items() if name.startswith("BLOCK_") and isinstance(value, int)
    )
    warps = f"{report.num_warps} warps, {report.num_stages} stages"
    return f"{blocks}, {warps}" if blocks else warps


def _worst(reports: list[Report]) -> tuple[str, ...]:
    return (
        str(len(reports)),
        str(max(report.registers for report in reports)),
        str(max(report.spilled for report in reports)),
        f"{max(report.shared for report in reports) / 1024:.0f} KiB",
        str(min(report.blocks for report in reports)),
        f"{min(report.occupancy for report in reports):.0%}",
        " ".join(sorted({kind for report in reports for kind in report.mma})) or "-",
    )


if __name__ == "__main__":
    main()
