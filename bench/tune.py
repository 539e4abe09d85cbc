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
from unittest.mock import patch

import click
import torch
from cases import AttentionCase, make_inputs
from torch import Tensor

import fastfuse as ff
from bench import machine
from fastfuse.tuning import tiles
from fastfuse.tuning.tiles import Rule, Tile, rules, tuned_kernels

Call = Callable[[], object]
ARCHS = (90, 80, 100)  # that stand for the ranges of the rules
GAIN = 0.97  # of the present time; less is within the noise
ROUNDS = 7
DTYPES = {2: torch.bfloat16, 4: torch.float32}  # by bytes


@dataclass(frozen=True)
class Problem:
    """What a cut is looked for: a kernel's rules, an element size and a dim."""

    kernel: str
    arch: int
    itemsize: int
    dim: int

    def __str__(self) -> str:
        return f"{self.kernel} on sm_{self.arch}, {self.itemsize} bytes an element, dim {self.dim}"

    @property
    def dtype(self) -> torch.dtype:
        """What it is tried with; the interpreter's products of bfloat16 are wrong."""
        dtype = DTYPES[self.itemsize]
        return torch.float16 if dtype == torch.bfloat16 and machine.device() == "interpreter" else dtype


# ---- candidates ----


def candidates(kernel: str, itemsize: int) -> list[Tile]:
    """Cuts worth compiling, for elements of 2 bytes; those of 4 take a half of the rows or columns."""
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
    """Why the kernels can not be launched with this cut; empty when they can. Not with TRITON_INTERPRET=1."""
    from bench.offline import inspect, recording  # which imports Triton

    with recording(problem.arch) as launches, _cut(problem, tile):
        job = _job(problem, "cpu", small=True)
        launches.clear()  # of what the job needs first
        job()
    found = [fault for launch in launches for fault in inspect(launch).faults()]
    return list(dict.fromkeys(found))


# ---- what is run ----


def _job(problem: Problem, device: str, small: bool) -> Call:
    """A call that spends its time in the kernels of the rules."""
    if problem.kernel.startswith("attention"):
        return _attention(problem, device, small)
    N = 256 if small else 8192
    a, b = (torch.randn(N, problem.dim, device=device).to(problem.dtype).requires_grad_() for _ in range(2))
    if problem.kernel == "retrieval":
        return lambda: ff.similarity_topk(a.detach(), b.detach(), 10, backend="triton")
    return lambda: torch.autograd.grad(ff.clip_loss(a, b, 14.3, backend="triton"), (a, b))


def _attention(problem: Problem, device: str, small: bool) -> Call:
    B, H, Sq, Sk = (1, 1, 256, 256) if small else (8, 16, 1024, 1024)
    few = problem.kernel == "attention_decode"
    sums = problem.kernel == "attention_sums"
    Sq, Sk = (1, 8 * Sk) if few else (Sq, Sk)
    case = AttentionCase("tune", B=B, H=H, Sq=Sq, Sk=Sk, D=problem.dim, bias="1 H Sq Sk" if sums else None)
    inputs = make_inputs(case, problem.dtype, device)
    leaves: dict[str, Tensor] = inputs.leaves
    wanted = {"attention_dq": ["q"], "attention_dkdv": ["k", "v"], "attention_sums": ["bias"]}.get(problem.kernel)
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
        job = _job(problem, machine.torch_device(), small)
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


def problems(archs: Iterable[int], itemsizes: Iterable[int]) -> list[Problem]:
    """One for each rule that is the first to fit, by kernel."""
    limits = {"attention": 256}
    found = {}
    for kernel, arch, itemsize in itertools.product(tuned_kernels(), archs, itemsizes):
        limit = limits.get(kernel.partition("_")[0], 512)
        for rule in rules(kernel):
            if rule.fits(arch, itemsize, 1):
                found[Problem(kernel, arch, itemsize, min(rule.max_dim, limit))] = None
    return list(found)


def legal(pool: ProcessPoolExecutor, problem: Problem, tried: list[Tile]) -> list[Tile]:
    """The candidates without faults; tells the others' causes."""
    able = []
    for tile, found in zip(tried, pool.map(faults, [problem] * len(tried), tried), strict=True):
        if found:
            click.echo(f"  out: {_describe(tile)}: {found[0]}")
        else:
            able.append(tile)
    return able


@click.command()
@click.option("--device", type=click.Choice(["static", "cuda", "interpreter"]), default="static")
@click.option("--seconds", default=float("inf"), help="Look at no further problem after that many.")
@click.option("--jobs", default=os.cpu_count(), help="Compilers at once.")
@click.option("-k", "keyword", default="", help="Only kernels whose names hold this.")
def main(device: str, seconds: float, jobs: int, keyword: str) -> None:
    """Look for the fastest cut of each kernel."""
    until = time.monotonic() + seconds
    rehearsal, on_gpu = device == "interpreter", device == "cuda"
    archs = [_present_arch()] if on_gpu else ARCHS[:1] if rehearsal else ARCHS
    todo = [p for p in problems(archs, (2,) if on_gpu or rehearsal else DTYPES) if keyword in p.kernel]
    looked = changed = 0
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        pool.submit(os.getpid).result()  # starts before Triton may be told to interpret
        for problem in todo[:: max(len(todo) // 2, 1)] if rehearsal else todo:
            if time.monotonic() > until:
                click.echo(f"the time is over before {problem}")
                break
            click.echo(str(problem))
            looked += 1
            changed += _timed_search(pool, problem, rehearsal) if device != "static" else _static_search(pool, problem)
    click.echo(f"{looked} of {len(todo)} problems, {changed} rules changed")


def _static_search(pool: ProcessPoolExecutor, problem: Problem) -> bool:
    """Replaces a present cut that is out."""
    present = tiles.tile(problem.kernel, problem.arch, problem.itemsize, problem.dim)
    if legal(pool, problem, [present]):
        return False
    able = legal(pool, problem, sorted(candidates(problem.kernel, problem.itemsize), key=promise, reverse=True))
    if not able:
        raise click.ClickException(f"no candidate can be launched for {problem}")
    click.echo(f"  {_describe(present)} -> {_describe(able[0])}")
    old = next(r for r in rules(problem.kernel) if r.fits(problem.arch, problem.itemsize, problem.dim))
    write(problem.kernel, [replace(r, tile=able[0], source="static") if r == old else r for r in rules(problem.kernel)])
    return True


def _timed_search(pool: ProcessPoolExecutor, problem: Problem, rehearsal: bool) -> bool:
    """Times the candidates beside the present cut, and gives the fastest a rule."""
    present = tiles.tile(problem.kernel, problem.arch, problem.itemsize, problem.dim)
    others = [tile for tile in candidates(problem.kernel, problem.itemsize) if tile != present]
    others = sorted(others, key=promise, reverse=True)[: 2 if rehearsal else None]
    able = legal(pool, problem, others)
    machine.use("interpreter" if rehearsal else "cuda")
    times = {tile: seconds_of(problem, tile, rehearsal) for tile in [present, *able]}
    for tile, taken in sorted(times.items(), key=lambda item: item[1]):
        click.echo(f"  {taken * 1e6:10.1f} us  {_describe(tile)}{'  (present)' if tile == present else ''}")
    best = min(times, key=times.__getitem__)
    if rehearsal or times[best] > GAIN * times[present]:
        return False
    source = f"{torch.cuda.get_device_name()}, {date.today().isoformat()}"
    measured = Rule(best, (problem.arch, problem.arch), problem.itemsize, problem.dim, source)
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
