"""Every CUDA kernel compiled for sm_90a: no spills, within its registers and shared memory, on the tensor cores.

Collected where nvcc is. Dynamic shared memory, all that the kernels use, is held to the limit by the emulation's
launch.
"""

from __future__ import annotations

import re

import pytest
from cubins import CUDA, compiled, includes
from platforms import name

SOURCES = sorted(path.name for path in CUDA.glob("*.cu"))
REGISTERS = 65536  # of a multiprocessor
IN_MACHINE_CODE = {"wgmma.mma_async": "HGMMA", "cp.async.bulk.tensor": "UTMA", "setmaxnreg": "USETMAXREG"}


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_compiles_within_its_budget(source: str) -> None:
    made = compiled(CUDA / source)
    complaints = [
        line for line in made.said.splitlines() if re.search("warning|performance loss|serialized", line, re.I)
    ]
    assert not complaints
    assert made.kernels
    for kernel in made.kernels:
        assert kernel.spilled == 0, kernel
        assert kernel.registers <= min(255, REGISTERS // kernel.threads // 8 * 8), kernel
        assert kernel.static_shared == 0, kernel
    for asked, given in IN_MACHINE_CODE.items():
        assert (asked in made.ptx) == (given in made.sass), f"{asked} did not become {given}"
    users = [path for path in includes(CUDA / source) if path.parent.name != "hopper"]
    if any("wgmma<" in path.read_text() for path in users):
        assert "HGMMA" in made.sass
