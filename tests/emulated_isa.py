"""Every instruction set of the CPU kernels on any x86-64 machine with AVX2, a plugin of pytest.

    PYTHONPATH=tests python -m pytest -p emulated_isa -k "avx512 or amx"        (`make test-isa`)

Builds an extension in which AVX-512, AVX-512-BF16 and AMX are plain C++ (csrc/cpu/emulation/x86.h), and has the tests
take it for fastfuse._C. It computes what such a machine would, but for the last bits of approximate reciprocals; its
times say nothing.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "isa"
BUILD_CODE = """
import setup
emulated = ["-O1", "-Wno-psabi", "-Wno-ignored-attributes", "-include", "csrc/cpu/emulation/x86.h"]
for number, level in enumerate(("avx512", "avx512bf16", "amx"), 1):
    setup.X86_LEVELS[level] = [*setup.AVX2, *emulated, f"-DFASTFUSE_EMULATED_LEVEL={number}"]
setup.cuda_toolkit = lambda: None
setup.main()
"""


def build() -> Path:
    """The extension, as far as sources have changed."""
    BUILD.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", BUILD_CODE, "--quiet", "build", "--build-base", str(BUILD), "build_ext"]
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(command, cwd=ROOT, env=os.environ | {"CXXFLAGS": "-DFASTFUSE_EMULATED_ISA"}, check=True)
    (library,) = BUILD.glob(f"lib.*-{sys.implementation.cache_tag}/fastfuse/_C.*.so")
    return library


def load() -> None:
    spec = importlib.util.spec_from_file_location("fastfuse._C", build())
    assert spec is not None
    assert spec.loader is not None
    import torch  # noqa: F401  the extension needs its libraries

    module = importlib.util.module_from_spec(spec)
    sys.modules["fastfuse._C"] = module
    spec.loader.exec_module(module)


load()
