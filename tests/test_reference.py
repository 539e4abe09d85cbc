"""What the formulas themselves stand on: Philox's published vectors, and what dropout keeps."""

from __future__ import annotations

import pytest
import torch

import fastfuse as ff
from fastfuse.reference import dropout

# Random123's known answers for philox4x32-10: counter, key, output.
KNOWN = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter: list[int], key: list[int], words: list[int]) -> None:
    got = dropout._philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert [int(word) for word in got] == words


def test_an_element_depends_on_its_place_alone() -> None:
    mask = ff.reference.dropout_mask(5, (2, 3, 7, 13), 0.4)
    assert mask.shape == (2, 3, 7, 13)
    assert torch.equal(mask[:, :, :4, :6], ff.reference.dropout_mask(5, (2, 3, 4, 6), 0.4))
    assert torch.equal(mask[:1], ff.reference.dropout_mask(5, (1, 3, 7, 13), 0.4))
    assert not torch.equal(mask, ff.reference.dropout_mask(6, (2, 3, 7, 13), 0.4))
    assert not torch.equal(mask, ff.reference.dropout_mask(5 + 2**32, (2, 3, 7, 13), 0.4))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.9])
def test_it_drops_the_share_that_was_asked_for(p: float) -> None:
    dropped = 1 - ff.reference.dropout_mask(-3, (2, 2, 100, 100), p).double().mean().item()
    assert abs(dropped - p) <= 4 * (p * (1 - p) / 40_000) ** 0.5
