"""CUDA sources compiled for Hopper by nvcc, and what is in the machine code. No GPU is needed.

A source is compiled again only when its text, that of the project's headers that it includes, or nvcc has changed:
build/cubins keeps the rest.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
CUDA = CSRC / "cuda"
BUILD = ROOT / "build/cubins"
INCLUDE = (CSRC, CSRC / "include")
COMMAND = ["nvcc", "-std=c++20", "-O3", "-gencode", "arch=compute_90a,code=sm_90a", "-cubin", "-Xptxas", "-v"]


@dataclass(frozen=True)
class Kernel:
    """What one kernel needs of the hardware."""

    name: str  # mangled
    threads: int  # of a block, at most
    registers: int  # of a thread, at launch
    spilled: int  # bytes
    static_shared: int  # bytes


@dataclass(frozen=True)
class Compiled:
    """One source."""

    said: str  # by the compiler
    ptx: str
    sass: str
    kernels: tuple[Kernel, ...]


def includes(source: Path) -> set[Path]:
    """The source and every header of the project that it includes, however indirectly."""
    found, left = set(), [source]
    while left:
        path = left.pop()
        found.add(path)
        names = re.findall(r'#include [<"]([^>"]+)[>"]', path.read_text())
        candidates = [folder / name for name in names for folder in INCLUDE]
        left += [candidate for candidate in candidates if candidate.exists() and candidate not in found]
    return found


def compiled(source: Path) -> Compiled:
    """The source as nvcc compiles it. AssertionError with what it said where it does not."""
    texts = [_versions(), " ".join(COMMAND), *(path.read_text() for path in sorted(includes(source)))]
    key = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    folder = BUILD / f"{source.name}-{key}"
    if not folder.exists():
        _compile(source, folder)
    said, ptx, sass = ((folder / name).read_text() for name in ("said", "ptx", "sass"))
    return Compiled(said, ptx, sass, tuple(_kernels(said, ptx)))


def disassembler() -> str | None:
    """cuobjdump of the CUDA toolkit, or the one that Triton brings."""
    found, triton = shutil.which("cuobjdump"), find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        found = str(Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump")
    return found if found is not None and Path(found).exists() else None


@cache
def _versions() -> str:
    return _run("nvcc", "--version").stdout


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _compile(source: Path, folder: Path) -> None:
    """Leaves said, ptx and sass in the folder, and removes what an older source left."""
    tool = disassembler()
    assert tool is not None
    BUILD.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=BUILD) as work_:
        work = Path(work_)
        cubin, kept = work / "cubin", work / "kept"
        kept.mkdir()
        flags = [*(f"-I{path}" for path in INCLUDE), "-keep", f"-keep-dir={kept}"]
        (work / "said").write_text(_run(*COMMAND, *flags, source, "-o", cubin).stderr)
        (work / "ptx").write_text((kept / f"{source.stem}.ptx").read_text())
        (work / "sass").write_text(_run(tool, "-sass", cubin).stdout)
        shutil.rmtree(kept)
        for old in BUILD.glob(f"{source.name}-*"):
            shutil.rmtree(old)
        shutil.copytree(work, folder)


def _kernels(said: str, ptx: str) -> list[Kernel]:
    threads = dict(re.findall(r"\.entry (\w+)\([^{]*?\.maxntid (\d+)", ptx))
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers([^\n]*)"
    )
    kernels = []
    for name, stores, loads, registers, rest in re.findall(pattern, said, re.DOTALL):
        shared = re.search(r"(\d+) bytes smem", rest)
        kernels.append(
            Kernel(name, int(threads[name]), int(registers), int(stores) + int(loads), int(shared[1]) if shared else 0)
        )
    return kernels
