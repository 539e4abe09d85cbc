"""Which block of the contrastive sweeps has which tiles, in which order: csrc/cuda/pair_tiles.cuh by itself."""

from __future__ import annotations

import ctypes
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from emulation import load_plain


class Shape(NamedTuple):
    """Of the tiles: rows [row_begin, row_end), columns; at most so many blocks."""

    row_begin: int
    row_end: int
    cols: int
    symmetric: bool
    blocks: int

    def tiles(self) -> set[tuple[int, int]]:
        return {
            (row, col)
            for row in range(self.row_begin, self.row_end)
            for col in range(row // 2 if self.symmetric else 0, self.cols)
        }


class Step(NamedTuple):
    """One tile of a block's walk."""

    block: int
    row: int
    col: int
    first_meeting: int
    row_part: int
    row_parts: int
    row_counted: int
    left_of_row: int


def walks(shape: Shape) -> list[Step]:
    to = torch.full((len(shape.tiles()) + 1, 8), -1, dtype=torch.int32)
    count = _library().walks(*shape, ctypes.c_void_p(to.data_ptr()))
    return [Step(*row) for row in to[:count].tolist()]


def owners(shape: Shape, of_row: bool, line: int) -> list[int]:
    to = torch.empty(shape.blocks + 1, dtype=torch.int32)
    return to[: _library().owners(*shape, of_row, line, ctypes.c_void_p(to.data_ptr()))].tolist()


def _library() -> ctypes.CDLL:
    return load_plain(Path(__file__).parent / "pair_tiles.cpp")


SHAPES = [
    Shape(row_begin, row_begin + rows, cols, False, blocks)
    for row_begin, rows, cols in [(0, 1, 1), (0, 1, 12), (0, 9, 1), (3, 5, 7), (0, 4, 6), (0, 7, 8), (2, 3, 20)]
    for blocks in (1, 3, 4, 6, 8, 132)
] + [
    Shape(row_begin, row_end, cols, True, blocks)
    for row_begin, row_end, cols in [(0, 1, 1), (0, 2, 1), (0, 9, 5), (0, 16, 8), (4, 7, 5), (8, 10, 5)]
    for blocks in (1, 3, 4, 132)
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(str(int(number)) for number in s))
def test_every_tile_has_one_owner(shape: Shape) -> None:
    steps = walks(shape)
    assert sorted((step.row, step.col) for step in steps) == sorted(shape.tiles())
    blocks = min(shape.blocks, len(steps))
    runs = [list(run) for _, run in groupby(steps, key=lambda step: step.block)]
    assert max(len(run) for run in runs) == -(-len(steps) // blocks)

    for run in runs:
        met = set()
        for step in run:
            assert step.first_meeting == (step.col not in met)
            met.add(step.col)
        for row, of_row in groupby(run, key=lambda step: step.row):
            counted = [(step.row_counted, step.left_of_row) for step in of_row]
            assert counted == [(row, left) for left in range(len(counted), 0, -1)]
        assert [row for row, _ in groupby(step.row for step in run)] == sorted({step.row for step in run})

    parts = {(step.block, step.row): step.row_part for step in steps}
    assert len(set(parts.values())) == len(parts)
    assert all(0 <= step.row_part < step.row_parts for step in steps)
    for row in range(shape.row_begin, shape.row_end):
        assert owners(shape, True, row) == sorted({step.block for step in steps if step.row == row})
    for col in range(shape.cols):
        assert owners(shape, False, col) == sorted({step.block for step in steps if step.col == col})


@pytest.mark.parametrize("rows", [256, 200])
def test_blocks_are_at_few_columns_and_rows_at_a_time(rows: int) -> None:
    runs = [
        [(step.row, step.col) for step in run]
        for _, run in groupby(walks(Shape(0, rows, 128, False, 132)), key=lambda step: step.block)
    ]
    for at in zip(*runs[:-4], strict=True):
        at_rows, at_cols = (set(line) for line in zip(*at, strict=True))
        assert len(at_cols) <= 2 * 4  # of two rows of tiles that differ by where they are shared
        assert len(at_rows) <= 132 // 4
