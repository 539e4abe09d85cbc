"""`python -m bench.tune`: looks for the fastest cut of each kernel, and writes fastfuse/tuning/rules/.

Candidates are compiled first, GPU or not (`bench.offline`); those that spill, need more shared memory than the chip has
or miss its tensor cores are out, each with its cause. Then

    --device cuda         the rest are timed on the GPU that is here; a cut that beats the present one gets a rule of
                          its own for this compute capability, before the others
    --device interpreter  a rehearsal: a few are run, nothing is written
    --device static       no timing: a present cut that is out gives way to the most promising candidate
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from multiprocessing import get_context
from typing import TYPE_CHECKING
from unittest.mock import patch

import click
import torch
from cases import AttentionCase, make_inputs
from torch import Tensor

import fastfuse as ff
from bench import machine
from bench.chips import ARCHS, SHARED_KIB
from bench.rules import dim_of
from fastfuse.tuning import tiles
from fastfuse.tuning.tiles import Rule, Tile, rules, tuned_kernels

if TYPE_CHECKING:
    from bench.offline import Launch

Call = Callable[[], object]
GAIN = 0.97  # of the present time; less is within the noise
ROUNDS = 7
MOST = 10  # candidates that are timed for a problem
DTYPES = {2: torch.bfloat16, 4: torch.float32}  # by bytes


@dataclass(frozen=True)
class Problem:
    """What a cut is looked for: a kernel, and the compute capabilities, element size and dim of one of its rules."""

    kernel: str
    archs: tuple[int, ...]
    shared_kib: int  # of the least chip among them
    itemsize: int
    dim: int

    def __str__(self) -> str:
        archs = ", ".join(f"sm_{arch}" for arch in self.archs)
        return f"{self.kernel} on {archs}, {self.itemsize} bytes an element, dim {self.dim}"

    @property
    def dtype(self) -> torch.dtype:
        """What it is tried with; the interpreter's products of bfloat16 are wrong."""
        dtype = DTYPES[self.itemsize]
        return torch.float16 if dtype == torch.bfloat16 and machine.device() == "interpreter" else dtype


# ---- candidates ----


def candidates(kernel: str, itemsize: int) -> list[Tile]:
    """Cuts worth compiling, for elements of 2 bytes; those of 4 take a half of the rows or columns.

    Attention's of 4 are smaller, and products take a few features at a time: three bfloat16 parts of more do not fit.
    """
    if kernel.startswith("attention") and itemsize == 4:
        rows = (16,) if kernel == "attention_decode" else (16, 32, 64)
        return [Tile(*size) for size in itertools.product(rows, (16, 32, 64), (4, 8), (1, 2), (16, 32))]
    if kernel == "attention_decode":
        sizes: Iterable[tuple[int, ...]] = itertools.product((16,), (32, 64, 128), (4,), (2, 3, 4), (0,))
    elif kernel.startswith("attention"):
        sizes = itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3), (0,))
    else:
        sizes = itertools.product((64, 128, 256), (64, 128), (4, 8), (3, 4), (32, 64))
    shrunk = [(max(m // (itemsize // 2), 16), max(n // (itemsize // 2), 16), *rest) for m, n, *rest in sizes]
    return [Tile(*size) for size in dict.fromkeys(shrunk) if _is_balanced(*size)]


def _is_balanced(block_m: int, block_n: int, num_warps: int, num_stages: int, block_d: int) -> bool:
    """Between 1024 and 4096 scores a warp, but where rows are few."""
    return block_m == 16 or 1024 <= block_m * block_n // num_warps <= 4096


def promise(tile: Tile) -> float:
    """What orders candidates that nobody has timed: products for each element loaded, and loads in flight."""
    reuse = tile.block_m * tile.block_n / (tile.block_m + tile.block_n)
    return reuse * min(tile.num_stages, 3)


def faults(problem: Problem, tile: Tile) -> list[str]:
    """Why some kernel can not be launched with this cut; empty when all can. Not with TRITON_INTERPRET=1."""
    from bench.offline import inspect  # which imports Triton, as bench.launches does

    for arch in problem.archs:
        for launch in _launches(problem, arch, tile):
            found = inspect(launch).faults(problem.shared_kib)
            if found:
                return [f"sm_{arch} {launch.kernel.partition(':')[2]}: {found[0]}"]
    return []


def _launches(problem: Problem, arch: int, tile: Tile) -> list[Launch]:
    """Of the hardest calls, the launches that depend on the cut: with another, they are others."""
    from bench.launches import hardest
    from bench.offline import recording

    found = []
    for cut in (tile, replace(tile, num_warps=8 if tile.num_warps == 4 else 4)):
        torch.manual_seed(0)
        with recording(arch) as launches, _cut(problem, cut):
            for call in hardest(problem.kernel, problem.dim, problem.dtype):
                call()
        found.append(launches)
    return [launch for launch in found[0] if launch not in found[1]]


# ---- what is run ----


def _job(problem: Problem, small: bool) -> Call:
    """A call that spends its time in the kernel."""
    device = machine.torch_device()
    if problem.kernel.startswith("attention"):
        return _attention(problem, device, small)
    N = 64 if small else 8192
    a, b = (torch.randn(N, problem.dim, device=device).to(problem.dtype).requires_grad_() for _ in range(2))
    if problem.kernel == "retrieval":
        return lambda: ff.similarity_topk(a.detach(), b.detach(), 10, backend="triton")
    return lambda: torch.autograd.grad(ff.clip_loss(a, b, 14.3, backend="triton"), (a, b))


def _attention(problem: Problem, device: str, small: bool) -> Call:
    B, H, Sq, Sk = (1, 1, 64, 64) if small else (8, 16, 1024, 1024)
    kernel, modified, _ = problem.kernel.partition("_modified")
    Sq, Sk = (1, 8 * Sk) if kernel == "attention_decode" else (Sq, Sk)
    bias = "1 H Sq Sk" if kernel == "attention_sums" or modified else None
    case = AttentionCase("tune", B=B, H=H, Sq=Sq, Sk=Sk, D=problem.dim, bias=bias)
    inputs = make_inputs(case, problem.dtype, device)
    leaves: dict[str, Tensor] = inputs.leaves
    wanted = {"attention_dq": ["q"], "attention_dkdv": ["k", "v"], "attention_sums": ["bias"]}.get(kernel)
    if wanted is None:
        values = {name: leaf.detach() for name, leaf in leaves.items()}
        return lambda: ff.cross_attention(**values, backend="triton")
    grads = [leaf if name in wanted else leaf.detach() for name, leaf in leaves.items()]
    out = ff.cross_attention(**dict(zip(leaves, grads, strict=True)), backend="triton")
    return lambda: torch.autograd.grad(out, [leaves[name] for name in wanted], inputs.dout, retain_graph=True)


@contextmanager
def _cut(problem: Problem, tile: Tile) -> Iterator[None]:
    """Within it the kernel is cut so."""
    every = Rule(tile, (0, 10**6), problem.itemsize, 10**9, "candidate")
    present = tiles.rules
    tiles.tile.cache_clear()
    with patch.object(tiles, "rules", lambda kernel: (every,) if kernel == problem.kernel else present(kernel)):
        yield
    tiles.tile.cache_clear()


def seconds_of(problem: Problem, tile: Tile, small: bool) -> float:
    """Median of some rounds, after one that compiles."""
    with _cut(problem, tile):
        job = _job(problem, small)
        job()
        rounds = 1 if small else ROUNDS
        return statistics.median(machine.timed(job)[0] for _ in range(rounds))


# ---- the rules ----


def write(kernel: str, found: Iterable[Rule]) -> None:
    """Writes a kernel's rules, in order."""
    lines = ",\n".join(f"  {json.dumps(asdict(rule))}" for rule in found)
    (tiles.RULES / f"{kernel}.json").write_text(f"[\n{lines}\n]\n")
    rules.cache_clear()


def with_measured(present: Iterable[Rule], measured: Rule) -> list[Rule]:
    """The rules with a measured one before the others, in place of an older one for the same problems."""
    same = lambda rule: (rule.arch, rule.itemsize, rule.max_dim)  # noqa: E731
    kept = [rule for rule in present if rule.source == "static" or same(rule) != same(measured)]
    first = sorted([measured, *(rule for rule in kept if rule.source != "static")], key=lambda rule: rule.max_dim)
    return [*first, *(rule for rule in kept if rule.source == "static")]


# ---- the search ----


def problems(archs: Iterable[int], itemsizes: Iterable[int]) -> dict[Problem, Rule]:
    """Each rule that serves some of the compute capabilities, and the problem that it solves."""
    found = {}
    for kernel in tuned_kernels():
        taken: set[tuple[int, int, int]] = set()
        for rule in rules(kernel):
            dim = dim_of(kernel, rule)
            mine = [arch for arch in archs if rule.serves(arch) and (arch, rule.itemsize, dim) not in taken]
            taken.update((arch, rule.itemsize, dim) for arch in mine)
            if mine and rule.itemsize in itemsizes:
                least = min(kib for chip, kib in SHARED_KIB.items() if rule.serves(chip))
                found[Problem(kernel, tuple(mine), least, rule.itemsize, dim)] = rule
    return found


def legal(pool: ProcessPoolExecutor, problem: Problem, tried: list[Tile]) -> Iterator[Tile]:
    """The candidates without faults, in their order; tells the others' causes."""
    for tile, found in zip(tried, pool.map(faults, [problem] * len(tried), tried), strict=True):
        if found:
            click.echo(f"  out: {_describe(tile)}: {found[0]}")
        else:
            yield tile


@click.command()
@click.option("--device", type=click.Choice(["static", "cuda", "interpreter"]), default="static")
@click.option("--seconds", default=float("inf"), help="Look at no further problem after that many.")
@click.option("--jobs", default=os.cpu_count(), help="Compilers at once.")
@click.option("-k", "keyword", default="", help="Only kernels whose names hold this.")
def main(device: str, seconds: float, jobs: int, keyword: str) -> None:
    """Look for the fastest cut of each kernel."""
    until = time.monotonic() + seconds
    rehearsal = device == "interpreter"
    archs = [_present_arch()] if device == "cuda" else [90] if rehearsal else ARCHS
    todo = [
        item for item in problems(archs, DTYPES if device == "static" else (2,)).items() if keyword in item[0].kernel
    ]
    todo = todo[:: max(len(todo) // 2, 1)] if rehearsal else todo
    looked = changed = 0
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for each in [pool.submit(os.getpid) for _ in range(jobs)]:
            each.result()  # all have started before Triton may be told to interpret
        for problem, rule in todo:
            if time.monotonic() > until:
                click.echo(f"the time is over before {problem}")
                break
            click.echo(str(problem))
            looked += 1
            if device == "static":
                changed += _static_search(pool, problem, rule)
            else:
                machine.use(device)
                changed += _timed_search(pool, problem, rule, rehearsal)
    click.echo(f"{looked} of {len(todo)} problems, {changed} rules changed")


def _static_search(pool: ProcessPoolExecutor, problem: Problem, rule: Rule) -> bool:
    """Replaces a cut that is out."""
    if list(legal(pool, problem, [rule.tile])):
        return False
    others = sorted(candidates(problem.kernel, problem.itemsize), key=promise, reverse=True)
    best = next(legal(pool, problem, others), None)
    if best is None:
        raise click.ClickException(f"no candidate can be launched for {problem}")
    click.echo(f"  {_describe(rule.tile)} -> {_describe(best)}")
    present = rules(problem.kernel)
    write(problem.kernel, [replace(each, tile=best, source="static") if each == rule else each for each in present])
    return True


def _timed_search(pool: ProcessPoolExecutor, problem: Problem, rule: Rule, rehearsal: bool) -> bool:
    """Times the candidates beside the present cut, and gives the fastest a rule."""
    others = [tile for tile in candidates(problem.kernel, problem.itemsize) if tile != rule.tile]
    others = sorted(others, key=promise, reverse=True)
    others = others[-1:] if rehearsal else others[:MOST]
    able = legal(pool, problem, others)
    times = {tile: seconds_of(problem, tile, rehearsal) for tile in [rule.tile, *able]}
    for tile, taken in sorted(times.items(), key=lambda item: item[1]):
        click.echo(f"  {taken * 1e6:10.1f} us  {_describe(tile)}{'  (present)' if tile == rule.tile else ''}")
    best = min(times, key=times.__getitem__)
    if rehearsal or times[best] > GAIN * times[rule.tile]:
        return False
    (arch,) = problem.archs
    source = f"{torch.cuda.get_device_name()}, {date.today().isoformat()}"
    measured = Rule(best, (arch, arch), problem.itemsize, rule.max_dim, source)
    write(problem.kernel, with_measured(rules(problem.kernel), measured))
    return True


def _describe(tile: Tile) -> str:
    step = f" x {tile.block_d}" if tile.block_d else ""
    return f"{tile.block_m} x {tile.block_n}{step}, {tile.num_warps} warps, {tile.num_stages} stages"


def _present_arch() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


if __name__ == "__main__":
    main()
