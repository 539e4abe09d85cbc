"""Builds the CUDA kernels for the host, with their own bindings, and loads them as an extension.

The sources are those of the real build; csrc/cuda/hopper.h exchanges the hardware for csrc/cuda/emulation. Only what
changed is compiled again, once for all test processes.
"""

from __future__ import annotations

import fcntl
import importlib.util
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "emulation"
FLAGS = ["-std=c++20", "-O2", "-g0", "-march=native", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]


@cache
def load(mutation: str = "") -> ModuleType:
    """The extension; with a mutation, kernels compiled with that macro: a deliberate mistake."""
    name = f"fastfuse_emulation_{mutation.lower()}" if mutation else "fastfuse_emulation"
    path = _build(name, mutation)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build(name: str, mutation: str) -> Path:
    from ninja import BIN_DIR
    from ninja.ninja_syntax import Writer
    from torch.utils.cpp_extension import include_paths, library_paths

    BUILD.mkdir(parents=True, exist_ok=True)
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}"]
    torch_include = [f"-isystem{path}" for path in (*include_paths(), sysconfig.get_path("include"))]
    link = [f"-L{path}" for path in library_paths()]
    sources = [
        *(ROOT / "csrc/cuda").glob("*.cu"),
        *(ROOT / "csrc/cuda/emulation").glob("*.cpp"),
        *(ROOT / "csrc/bindings").glob("cuda_*.cpp"),
    ]
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ninja_file = BUILD / f"{name}.ninja"
        with ninja_file.open("w") as file:
            ninja = Writer(file, width=120)
            ninja.variable("builddir", str(BUILD / name))
            command = ["c++", "-MMD -MF $out.d", *FLAGS, "-DFASTFUSE_EMULATION", *include, "$flags"]
            ninja.rule("cxx", f"{' '.join(command)} -x c++ -c $in -o $out", depfile="$out.d", deps="gcc")
            ninja.rule("link", f"c++ -shared $in {' '.join(link)} -ltorch_python -ltorch -ltorch_cpu -lc10 -o $out")
            objects = []
            for source in sorted(sources):
                binding, kernel = source.parent.name == "bindings", source.suffix == ".cu"
                flags = []
                if binding:
                    flags += torch_include
                if source.name == "cuda_module.cpp":
                    flags += [f"-DTORCH_EXTENSION_NAME={name}"]
                if kernel and mutation:
                    flags += [f"-DFASTFUSE_MUTATION_{mutation}"]
                folder = name if kernel or source.name == "cuda_module.cpp" else "common"
                target = str(BUILD / folder / f"{source.name}.o")
                ninja.build([target], "cxx", [str(source)], variables={"flags": " ".join(flags)})
                objects.append(target)
            library = BUILD / f"{name}.so"
            ninja.build([str(library)], "link", objects)
        done = subprocess.run(
            [Path(BIN_DIR, "ninja"), "-f", ninja_file, "-j", "2"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(done.stdout[-6000:], file=sys.stderr)
            raise RuntimeError("the emulated kernels did not compile, see above")
    return library
