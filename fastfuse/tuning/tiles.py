"""How each Triton kernel is cut: tile sizes, warps and pipeline stages, by ordered rules.

The first rule of `rules/<kernel>.json` that fits serves; `python -m bench.tune` is their only writer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

RULES = Path(__file__).parent / "rules"


@dataclass(frozen=True)
class Tile:
    """What a launcher needs to know of a cut."""

    block_m: int  # rows (queries) of a program
    block_n: int  # columns (keys) of a step
    num_warps: int
    num_stages: int
    block_d: int = 0  # features of a step of the product; 0: all of them at once


@dataclass(frozen=True)
class Rule:
    """A cut, the problems that it is for, and where it comes from."""

    tile: Tile
    arch: tuple[int, int]  # compute capabilities from .. to, 90 for sm_90
    itemsize: int  # bytes of an element of q or of the features
    max_dim: int  # up to this head dim (the larger of D and Dv), or feature size
    source: str  # "static": from the compiler's report; else the device that it was measured on, and when

    def serves(self, arch: int) -> bool:
        """Whether the rule is for this compute capability."""
        return self.arch[0] <= arch <= self.arch[1]

    def fits(self, arch: int, itemsize: int, dim: int) -> bool:
        """Whether the rule is for this compute capability, element size and dim."""
        return self.serves(arch) and itemsize == self.itemsize and dim <= self.max_dim


@cache
def rules(kernel: str) -> tuple[Rule, ...]:
    """The rules of a kernel, in order."""
    entries = json.loads((RULES / f"{kernel}.json").read_text())
    return tuple(Rule(**entry | {"tile": Tile(**entry["tile"]), "arch": tuple(entry["arch"])}) for entry in entries)


@cache
def tile(kernel: str, arch: int, itemsize: int, dim: int) -> Tile:
    """The cut for a problem.

    Raises:
        LookupError: no rule fits.
    """
    for rule in rules(kernel):
        if rule.fits(arch, itemsize, dim):
            return rule.tile
    raise LookupError(f"{kernel}: no tile for sm_{arch}, {itemsize} bytes an element, dim {dim}")


def tuned_kernels() -> list[str]:
    """The kernels that have rules."""
    return sorted(path.stem for path in RULES.glob("*.json"))
