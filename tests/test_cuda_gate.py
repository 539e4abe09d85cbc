"""Every CUDA kernel compiled for sm_90a: no spills, within its registers and shared memory, on the tensor cores."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from platforms import name

ROOT = Path(__file__).parents[1]
CUDA = ROOT / "csrc/cuda"
SOURCES = sorted(path.name for path in CUDA.glob("*.cu"))
ARCHITECTURE = ["-gencode", "arch=compute_90a,code=sm_90a"]
INCLUDE = ["-I", str(ROOT / "csrc"), "-I", str(ROOT / "csrc/include")]
WITH_PRODUCTS = [source for source in SOURCES if re.search(r"_(bf16|f16)_|^pair_(?!features)", source)]

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")


def compile_to_cubin(source: str, folder: Path) -> tuple[Path, str]:
    """The cubin, and what ptxas says about it."""
    cubin = folder / f"{source}.cubin"
    command = ["nvcc", "-std=c++20", "-O3", *ARCHITECTURE, *INCLUDE, "-Xptxas", "-v", "-cubin"]
    done = subprocess.run([*command, str(CUDA / source), "-o", str(cubin)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return cubin, done.stderr


def disassembler() -> str | None:
    """cuobjdump of the CUDA toolkit, or the one that Triton brings."""
    found = shutil.which("cuobjdump")
    if found is None:
        try:
            import triton
        except ImportError:
            return None
        found = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    return found if Path(found).exists() else None


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_compiles_within_its_budget(source: str, tmp_path: Path) -> None:
    cubin, said = compile_to_cubin(source, tmp_path)
    assert not re.findall(r"[1-9]\d* bytes spill", said), said
    assert "warning" not in said.lower(), said
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", said)]
    assert registers
    assert max(registers) <= 168  # 65536 by 384 threads, a multiple of 8; setmaxnreg trades them
    tool = disassembler()
    if source in WITH_PRODUCTS and tool is not None:
        sass = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=True).stdout
        for instruction in ("HGMMA", "UTMALDG", "USETMAXREG"):
            assert instruction in sass, f"{source}: no {instruction}"
