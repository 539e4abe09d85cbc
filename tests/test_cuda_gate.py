"""Every CUDA kernel compiled for sm_90a: no spills, within its registers and shared memory, on the tensor cores.

Collected where nvcc is. Dynamic shared memory, all that the kernels use, is held to the limit by the emulation's
launch.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cubins import CUDA, ROOT, compiled, includes

SOURCES = sorted([*CUDA.glob("*.cu"), ROOT / "tests/vocabulary_kernels.cu"])
REGISTERS = 65536  # of a multiprocessor
IN_MACHINE_CODE = {"wgmma.mma_async": "HGMMA", "cp.async.bulk.tensor": "UTMA", "setmaxnreg": "USETMAXREG"}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_compiles_within_its_budget(source: Path) -> None:
    made = compiled(source)
    complaints = [
        line for line in made.said.splitlines() if re.search("warning|performance loss|serialized", line, re.I)
    ]
    assert not complaints
    assert len(made.kernels) == made.ptx.count(".entry ")
    for kernel in made.kernels:
        assert kernel.spilled == 0, kernel
        assert kernel.registers <= min(255, REGISTERS // kernel.threads // 8 * 8), kernel
        assert kernel.static_shared == 0, kernel
    for asked, given in IN_MACHINE_CODE.items():
        assert (asked in made.ptx) == (given in made.sass), f"{asked} did not become {given}"
    users = [path for path in includes(source) if path.parent.name != "hopper"]
    if any("wgmma<" in path.read_text() for path in users):
        assert "HGMMA" in made.sass
