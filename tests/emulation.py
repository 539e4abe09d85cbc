"""Builds the CUDA kernels for the host, with their own bindings, and loads them as an extension.

The sources are those of the real build; csrc/cuda/hopper.h exchanges the hardware for csrc/cuda/emulation. Only what
changed is compiled again, once for all test processes. A mutated kernel runs for milliseconds, so what counts is its
build: unoptimised, against a precompiled vocabulary, half a second.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from fastfuse.backends import cuda, module_for

if TYPE_CHECKING:
    from ninja.ninja_syntax import Writer

ROOT = Path(__file__).parents[1]
CUDA = ROOT / "csrc/cuda"
BUILD = ROOT / "build/emulation"
COMMON = BUILD / "common"
KERNELS = sorted([*CUDA.glob("*.cu"), *(CUDA / "emulation").glob("*.cpp")])
BINDINGS = sorted((ROOT / "csrc/bindings").glob("cuda_*.cpp"))
NAME = "fastfuse_emulation"  # of the extension
FLAGS = ["-std=c++20", "-g0", "-march=native", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
INCLUDE = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}"]
LINKER = ["-fuse-ld=gold"] if shutil.which("ld.gold") else []  # reads torch's symbols three times as fast


@dataclass(frozen=True)
class Mutation:
    """A deliberate mistake: in a copy of `file`, `old` becomes `new`, and `kernel` is compiled against the copy."""

    name: str
    kernel: str  # "attention_fwd_bf16_64.cu"
    file: str  # of csrc/cuda, no part of the vocabulary; `old` stands in it once
    old: str
    new: str

    def __str__(self) -> str:
        return self.name

    def write(self, folder: Path) -> None:
        """The changed copy, where `#include "cuda/<file>"` finds it first."""
        text = (CUDA / self.file).read_text()
        assert text.count(self.old) == 1, (
            f"{self.name}: {self.old!r} stands {text.count(self.old)} times in {self.file}"
        )
        for other in (folder / "cuda").glob("*"):  # of a mutation that had this name
            if other.name != self.file:
                other.unlink()
        _write(folder / "cuda" / self.file, text.replace(self.old, self.new))


@contextmanager
def emulated(mutation: Mutation | None = None, seed: int = 1, multiprocessors: int = 3) -> Iterator[None]:
    """Within it, backend "cuda" takes CPU tensors and runs its kernels on the host."""
    extension = load(mutation)
    extension.set_seed(seed)
    extension.set_multiprocessors(multiprocessors)
    before, cuda.extension = cuda.extension, extension
    module_for.cache_clear()
    extension.watch_memory(True)
    try:
        yield
    finally:
        extension.watch_memory(False)
        cuda.extension = before
        module_for.cache_clear()


def assert_found(mutation: Mutation, check: Callable[[], object], seeds: int = 4) -> None:
    """Under one of some orders of threads and copies, `check` fails on the mutated kernel."""
    for seed in range(seeds):
        with emulated(mutation, seed):
            try:
                check()
            except (RuntimeError, AssertionError):
                return
    raise AssertionError(f"{mutation.name}: nothing noticed")


@cache
def load(mutation: Mutation | None = None) -> ModuleType:
    """The extension, built if need be."""
    name, library = (NAME, _build()) if mutation is None else (mutation.name, _build_mutated(mutation))
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _build() -> Path:
    """The extension of the sources as they are."""
    from torch.utils.cpp_extension import include_paths

    torch_include = [f"-isystem{path}" for path in (*include_paths(), sysconfig.get_path("include"))]
    library = COMMON / f"{NAME}.so"
    with _building(COMMON) as ninja:
        for level in ("-O0", "-O2"):
            header = _vocabulary(level)
            _write(header, '#include "cuda/hopper.h"\n')
            ninja.build([f"{header}.gch"], "precompile", [str(header)], variables={"flags": level})
        for source in KERNELS:
            _compile(ninja, source, COMMON, "-O2")
        for source in BINDINGS:
            flags = " ".join(["-O2", *torch_include, f"-DTORCH_EXTENSION_NAME={NAME}"])
            ninja.build([_object(source, COMMON)], "compile", [str(source)], variables={"flags": flags})
        ninja.build([str(library)], "link", [_object(source, COMMON) for source in (*KERNELS, *BINDINGS)])
    return library


def _build_mutated(mutation: Mutation) -> Path:
    """The extension with one kernel compiled against the mutated copy, and the rest as it is."""
    _build()
    folder = BUILD / mutation.name
    library = folder / f"{mutation.name}.so"
    kernel, module = CUDA / mutation.kernel, ROOT / "csrc/bindings/cuda_module.cpp"
    rest = [source for source in (*KERNELS, *BINDINGS) if source not in (kernel, module)]
    with _building(folder) as ninja:
        mutation.write(folder)
        _compile(ninja, kernel, folder, "-O0", f"-I{folder}")
        symbols = f"PyInit_{NAME}=PyInit_{mutation.name}"
        ninja.build([_object(module, folder)], "rename", [_object(module, COMMON)], variables={"symbols": symbols})
        # The mutated kernel first: of inline functions that differ, the linker keeps the first.
        first = [_object(kernel, folder), _object(module, folder)]
        ninja.build([str(library)], "link", [*first, *(_object(source, COMMON) for source in rest)])
    return library


def load_plain(*sources: Path) -> ctypes.CDLL:
    """A library of C++ or CUDA sources that take no tensors, on the emulation."""
    _build()
    folder = BUILD / sources[0].stem
    library = folder / f"{sources[0].stem}.so"
    with _building(folder) as ninja:
        for source in sources:
            _compile(ninja, source, folder, "-O2")
        emulation = [_object(source, COMMON) for source in KERNELS if source.suffix == ".cpp"]
        ninja.build([str(library)], "link", [*(_object(source, folder) for source in sources), *emulation])
    return ctypes.CDLL(str(library))


def _object(source: Path, folder: Path) -> str:
    return str(folder / f"{source.name}.o")


def _write(path: Path, text: str) -> None:
    """Leaves a file alone that has the text already, so that nothing is compiled again."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _vocabulary(level: str) -> Path:
    """A header of all that kernels include first, precompiled beside it for an optimisation level."""
    return COMMON / f"vocabulary{level}.h"


def _compile(ninja: Writer, source: Path, folder: Path, level: str, *flags: str) -> None:
    header = _vocabulary(level)
    ninja.build(
        [_object(source, folder)], "compile", [str(source)], implicit=[f"{header}.gch"],
        variables={"flags": " ".join([level, *flags, f"-include {header}"])},
    )  # fmt: skip


@contextmanager
def _building(folder: Path) -> Iterator[Writer]:
    """What to build in the folder; it is built on leaving, by one process at a time."""
    from ninja import BIN_DIR
    from ninja.ninja_syntax import Writer
    from torch.utils.cpp_extension import library_paths

    folder.mkdir(parents=True, exist_ok=True)
    libraries = " ".join([*(f"-L{path}" for path in library_paths()), "-ltorch_python -ltorch -ltorch_cpu -lc10"])
    compile_ = f"c++ -MMD -MF $out.d {' '.join(FLAGS)} -DFASTFUSE_EMULATION $flags {' '.join(INCLUDE)}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (folder / "build.ninja").open("w") as file:
            ninja = Writer(file, width=120)
            ninja.variable("builddir", str(folder))
            ninja.rule("compile", f"{compile_} -x c++ -c $in -o $out", depfile="$out.d", deps="gcc")
            ninja.rule("precompile", f"{compile_} -x c++-header $in -o $out", depfile="$out.d", deps="gcc")
            ninja.rule("link", f"c++ -shared {' '.join(LINKER)} $in {libraries} -o $out")
            ninja.rule("rename", "objcopy --redefine-sym $symbols $in $out")
            yield ninja
        command = [Path(BIN_DIR, "ninja"), "-f", folder / "build.ninja", "-j", "2"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the emulated kernels did not compile:\n{done.stdout[-6000:]}")
