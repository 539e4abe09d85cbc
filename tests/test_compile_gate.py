"""Triton kernels compile for GPUs that are not there: a part of `make gate`, which does all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.descriptors import wrong_descriptors

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_kernels_compile_within_the_chip(arch: str) -> None:
    """No spills, shared memory within the chip's, every product on the tensor cores."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.gate", "--quick", "--jobs", "1", "--arch", arch]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.parametrize(
    ("before", "summed", "wrong"),
    [
        ("UMOV UR14, 0x1", "UIADD3.X UR15, URZ, -0x7fffffe0, URZ, UP0, !UPT", 0),
        ("UMOV UR14, URZ", "UIADD3.X UR15, UR14, -0x7fffffe0, URZ, UP0, !UPT", 0),
        ("R2UR UR15, R27", "UIADD3.X UR15, UR15, -0x7fffffe0, URZ, UP0, !UPT", 1),
        ("UISETP.GE.AND UP0, UPT, UR4, UR17, UPT", "UIADD3.X UR7, UR4, -0x3ffffff0, URZ, UP1, !UPT", 1),
        ("UIADD3.64 UR14, UR2, 0x40, URZ", "IADD3.X R15, R15, 0x40000040, RZ, P0, !PT", 1),
        ("R2UR UR15, R27", "UIADD3.X UR23, UR15, URZ, URZ, UP0, !UPT", 0),  # a carry alone
    ],
)
def test_wrong_upper_halves_of_descriptors_are_found(before: str, summed: str, wrong: int) -> None:
    code = (
        f"        /*0010*/                   {before} ;    /* 0x1 */\n        /*0020*/                   {summed} ;\n"
    )
    assert wrong_descriptors(code) == wrong
