"""Builds the CUDA kernels for the host, with their own bindings, and loads them as an extension.

The sources are those of the real build; csrc/cuda/hopper.h exchanges the hardware for csrc/cuda/emulation. Only what
changed is compiled again, once for all test processes.
"""

from __future__ import annotations

import fcntl
import importlib.util
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from fastfuse.backends import cuda, select

ROOT = Path(__file__).parents[1]
CUDA = ROOT / "csrc/cuda"
BUILD = ROOT / "build/emulation"
NAME = "fastfuse_emulation"  # of the extension
FLAGS = ["-std=c++20", "-O2", "-g0", "-march=native", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
INCLUDE = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}"]


@dataclass(frozen=True)
class Mutation:
    """A deliberate mistake: in a copy of `file`, `old` becomes `new`, and `kernel` is compiled against the copy."""

    name: str
    kernel: str  # "attention_fwd_bf16_64.cu"
    file: str  # of csrc/cuda; `old` stands in it once
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
        path = folder / "cuda" / self.file
        changed = text.replace(self.old, self.new)
        if not path.exists() or path.read_text() != changed:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(changed)


@contextmanager
def emulated(mutation: Mutation | None = None, seed: int = 1) -> Iterator[None]:
    """Within it, backend "cuda" takes CPU tensors and runs its kernels on the host."""
    extension = load(mutation)
    extension.set_seed(seed)
    before, cuda.extension = cuda.extension, extension
    select.cache_clear()
    try:
        yield
    finally:
        cuda.extension = before
        select.cache_clear()


@cache
def load(mutation: Mutation | None = None) -> ModuleType:
    """The extension, built if need be."""
    name = NAME if mutation is None else mutation.name
    spec = importlib.util.spec_from_file_location(name, _build(name, mutation))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build(name: str, mutation: Mutation | None) -> Path:
    from ninja import BIN_DIR
    from ninja.ninja_syntax import Writer
    from torch.utils.cpp_extension import include_paths, library_paths

    torch_include = [f"-isystem{path}" for path in (*include_paths(), sysconfig.get_path("include"))]
    torch_libraries = [*(f"-L{path}" for path in library_paths()), "-ltorch_python -ltorch -ltorch_cpu -lc10"]
    library, ninja_file = BUILD / f"{name}.so", BUILD / f"{name}.ninja"
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock, ninja_file.open("w") as file:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ninja = Writer(file, width=120)
        ninja.variable("builddir", str(BUILD))
        compile_ = f"c++ -MMD -MF $out.d {' '.join(FLAGS)} -DFASTFUSE_EMULATION $flags {' '.join(INCLUDE)}"
        ninja.rule("cxx", f"{compile_} -x c++ -c $in -o $out", depfile="$out.d", deps="gcc")
        ninja.rule("link", f"c++ -shared $in {' '.join(torch_libraries)} -o $out")
        ninja.rule("rename", f"objcopy --redefine-sym PyInit_{NAME}=PyInit_{name} $in $out")
        objects = []

        def add(source: Path, folder: str, *flags: str) -> None:
            objects.append(str(BUILD / folder / f"{source.name}.o"))
            ninja.build([objects[-1]], "cxx", [str(source)], variables={"flags": " ".join(flags)})

        mutated = None if mutation is None else mutation.kernel
        if mutation is not None:  # first: of inline functions that differ, the linker keeps the first
            mutation.write(BUILD / name)
            add(CUDA / mutation.kernel, name, f"-I{BUILD / name}")
        for source in sorted([*CUDA.glob("*.cu"), *(CUDA / "emulation").glob("*.cpp")]):
            if source.name != mutated:
                add(source, "common")
        for source in sorted((ROOT / "csrc/bindings").glob("cuda_*.cpp")):
            add(source, "common", *torch_include, f"-DTORCH_EXTENSION_NAME={NAME}")
            if source.name == "cuda_module.cpp" and name != NAME:  # compiled once, under another name
                renamed = str(BUILD / name / f"{source.name}.o")
                ninja.build([renamed], "rename", [objects[-1]])
                objects[-1] = renamed
        ninja.build([str(library)], "link", objects)
        ninja.close()
        done = subprocess.run(
            [Path(BIN_DIR, "ninja"), "-f", ninja_file, "-j", "2"], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"the emulated kernels did not compile:\n{done.stdout[-6000:]}")
    return library
