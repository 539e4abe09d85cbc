"""A mistake of CUDA 12.8's ptxas in Hopper's code: see kernels/assembler.py.

The upper half of a matrix descriptor is a constant, its layout, plus a carry:

    UIADD3.X UR15, URZ, -0x7fffffe0, URZ, UP0     right; so is a register that was set to 0 just for this
    UIADD3.X UR15, UR15, -0x7fffffe0, URZ, UP0    wrong, where UR15 holds something else
"""

from __future__ import annotations

import re

_LAYOUTS = {"0x40000040", "-0x7fffffe0", "-0x3ffffff0"}  # swizzles of 128, 64 and 32 bytes, as nvdisasm writes them
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?(\S+)\s+(.*?)\s*;")
_DESTINATION = re.compile(r"(?:U?P[T\d]+, )*(U?R)(\d+)\b")
_ZERO = re.compile(r"(?:U?MOV|IMAD\.MOV\.U32|CS2R(?:\.32)?) .*\bU?S?R?Z(?:LO)?$")


def wrong_descriptors(code: str) -> int:
    """How many upper halves of descriptors are summed with a register that does not hold 0, in nvdisasm's text."""
    wrong, last_write = 0, {}
    for line in code.splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        name, operands = match.groups()
        if re.fullmatch(r"U?IADD3\.X", name):
            sources = [source.removesuffix(".reuse") for source in operands.split(", ")[1:4]]
            if _LAYOUTS & set(sources):
                others = [source for source in sources if re.fullmatch(r"U?R\d+", source)]
                wrong += any(not _ZERO.match(last_write.get(source, "")) for source in others)
        written = _DESTINATION.match(operands)
        if written is not None:
            file, number = written[1], int(written[2])
            for register in range(number, number + 1 + (".64" in name or "WIDE" in name or name == "CS2R")):
                last_write[f"{file}{register}"] = f"{name} {operands}"
    return wrong
