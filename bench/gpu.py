"""`make gpu`: builds, tests, tunes and times the GPU kernels in one go, in under nine minutes.

    python -m bench.gpu [--device cuda|interpreter] [build] [test] [memcheck] [tune] [bench]

Each phase is a process with a time limit of its own; one that fails does not keep the next from running. On a GPU,
tests that pass are recorded (docs/validated.md), after which "auto" takes the kernels. Without a GPU Triton's
interpreter stands in: tiny sizes, nothing recorded or kept.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from bench import machine, validate
from fastfuse.backends import load

ROOT = Path(__file__).parents[1]
TOTAL = 530.0  # seconds for everything
TESTS = [f"tests/test_{name}.py" for name in ("attention", "contrastive", "retrieval", "large")]
CASES = {"triton": "triton and not cuda-cuda", "cuda": "cuda-cuda"}  # backend: its tests; pairs of both are cuda's
FEW_CASES = "triton and (ties or (float32 and matches and (gqa_all or bias_pairs or clip_ids or siglip_ids)))"
MEMCHECK_CASES = (
    "(triton or cuda-cuda) and float16 and (everything or D7_Dv13 or decode_long or clip_smooth_ids or siglip_ids)"
)


@dataclass(frozen=True)
class Outcome:
    """How a phase ended."""

    passed: bool | None  # None: it could not run here, or not to its end
    summary: str


@dataclass(frozen=True)
class Run:
    """A process that ended, or was ended."""

    code: int | None  # None: it took too long
    output: str


@click.command()
@click.option("--device", type=click.Choice(["auto", "cuda", "interpreter"]), default="auto")
@click.argument("phases", nargs=-1)
def main(device: str, phases: tuple[str, ...]) -> None:
    """Run the phases, all by default, and tell how each ended."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "interpreter"
    machine.use(device)
    unknown = set(phases) - PHASES.keys()
    if unknown:
        raise click.BadParameter(f"expected some of {', '.join(PHASES)}, got {', '.join(sorted(unknown))}")
    start, lines, failed = time.monotonic(), [], False
    for name in phases or PHASES:
        share, phase = PHASES[name]
        begun = time.monotonic()
        seconds = min(share, TOTAL - (begun - start))
        print(f"\n==== {name} on {device}, at most {seconds:.0f} s", flush=True)
        outcome = phase(seconds)
        failed |= outcome.passed is False
        lines.append(f"{name:9} {_verdict(outcome):8} {time.monotonic() - begun:4.0f} s  {outcome.summary}")
    print(f"\n==== {device}, {time.monotonic() - start:.0f} s in all", *lines, sep="\n")
    sys.exit(failed)


def build(seconds: float) -> Outcome:
    run = _run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], seconds)
    return Outcome(None if run.code is None else run.code == 0, "the C++ and CUDA extensions")


def test(seconds: float) -> Outcome:
    """The case tables of each backend; where all pass on a GPU, the record says so."""
    if machine.device() != "cuda":
        run = _run_tests(FEW_CASES, seconds)
        return Outcome(run.code == 0, _last_line(run))
    until = time.monotonic() + seconds
    passed, summaries = True, []
    for backend, cases in CASES.items():
        missing = load(backend).unavailable()
        if missing:
            summaries.append(f"{backend}: {missing}")
            continue
        run = _run_tests(cases, until - time.monotonic())
        if run.code == 0:
            validate.write_record(backend, _last_line(run))
        passed &= run.code == 0
        summaries.append(f"{backend}: {_last_line(run)}")
    return Outcome(passed, "; ".join(summaries))


def _run_tests(cases: str, seconds: float) -> Run:
    jobs = str(min(12, os.cpu_count() or 1))
    return _run([*_pytest(), "-n", jobs, "-k", cases, *TESTS], seconds)


def memcheck(seconds: float) -> Outcome:
    """Some cases with every memory access checked."""
    tool = shutil.which("compute-sanitizer")
    if machine.device() != "cuda" or tool is None:
        return Outcome(None, "no compute-sanitizer" if tool is None else "there is no GPU")
    command = [tool, "--tool", "memcheck", *_pytest(), "-p", "no:xdist", "-k", MEMCHECK_CASES, *TESTS[:2]]
    run = _run(command, seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    found = re.search(r"ERROR SUMMARY: (\d+) error", run.output)
    if found is None:
        return Outcome(None, "compute-sanitizer did not come to its end")
    return Outcome(found[1] == "0" and run.code == 0, found[0])


def tune(seconds: float) -> Outcome:
    """Measures the cuts of every kernel; on a GPU the rules are written."""
    run = _run([*_python("bench.tune"), "--device", machine.device(), "--seconds", f"{seconds - 20:.0f}"], seconds)
    return Outcome(run.code == 0, _last_line(run))


def bench(seconds: float) -> Outcome:
    """Every case against every peer; on a GPU the results are kept."""
    run = _run([*_python("bench"), "--device", machine.device(), "--seconds", f"{seconds - 40:.0f}"], seconds)
    return Outcome(run.code == 0, _last_line(run))


PHASES: dict[str, tuple[float, Callable[[float], Outcome]]] = {
    "build": (120, build),
    "test": (240, test),
    "memcheck": (45, memcheck),
    "tune": (80, tune),
    "bench": (220, bench),
}


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def _pytest() -> list[str]:
    return [*_python("pytest"), "-q", "-p", "no:benchmark", "-p", "no:cacheprovider"]


def _run(command: list[str], seconds: float, **environment: str) -> Run:
    """Runs a command from the root of the checkout, shows what it says, ends it and its children when it is late."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=inherited | environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    late = threading.Event()

    def end() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, end)
    timer.start()
    lines = []
    assert process.stdout
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    code = process.wait()
    timer.cancel()
    return Run(None if late.is_set() else code, "".join(lines))


def _last_line(run: Run) -> str:
    if run.code is None:
        return "took too long"
    lines = [line for line in run.output.splitlines() if line.strip()]
    return lines[-1].strip("= ") if lines else ""


def _verdict(outcome: Outcome) -> str:
    return {True: "passed", False: "FAILED", None: "not run"}[outcome.passed]


if __name__ == "__main__":
    main()
