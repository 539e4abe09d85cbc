"""The cases that are timed, in sizes of use for a CPU and for a GPU, and tiny ones for the rehearsal of a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from cases import AttentionCase

import fastfuse as ff
from bench import machine


def padded(case: AttentionCase) -> ff.KeySpan:
    return ff.KeySpan.lengths(torch.linspace(case.Sk // 2, case.Sk, case.B).int())


def seventy_seven(case: AttentionCase) -> ff.KeySpan:
    return ff.KeySpan.lengths(torch.full((case.B,), 77))


def causal(case: AttentionCase) -> ff.KeySpan:
    return ff.KeySpan.causal(case.Sq, case.Sk)


def latest_of_4(case: AttentionCase) -> ff.KeySpan:
    index = (torch.arange(case.Sq) * 4 // case.Sq).expand(case.B, -1)
    return ff.KeySpan.latest_media(index, torch.linspace(0, case.Sk, 5).int()[None])


def packed_8(case: AttentionCase) -> ff.KeySpan:
    return ff.KeySpan.packed(*(torch.linspace(0, size, 9).int() for size in (case.Sq, case.Sk)))


@dataclass(frozen=True)
class Sizes:
    """What a device is asked."""

    dtypes: tuple[torch.dtype, ...]
    forward: list[AttentionCase]
    training: list[AttentionCase]
    learned: list[AttentionCase]  # options with gradients that most peers lack
    learned_dtype: torch.dtype
    decode: list[AttentionCase]
    beams: list[AttentionCase]
    pairs: list[tuple[int, int]]  # N, D
    retrieval: list[tuple[int, int, int, int]]  # N, M, D, k


_CPU_FORWARD = [
    AttentionCase("caption over ViT-B/16", 8, 12, Sq=64, Sk=197, D=64),
    AttentionCase("at 384 pixels, padded", 8, 12, Sq=64, Sk=577, D=64, span=padded),
    AttentionCase("pooler, padded", 4, 8, Sq=256, Sk=1024, D=64, span=padded),
    AttentionCase("short captions", 16, 12, Sq=20, Sk=257, D=64),
    AttentionCase("D 128, padded", 2, 8, Sq=512, Sk=2048, D=128, span=padded),
    AttentionCase("causal", 1, 16, Sq=1024, Sk=1024, D=64, span=causal),
    AttentionCase("latest of 4 pictures", 4, 8, Sq=256, Sk=1024, D=64, span=latest_of_4),
    AttentionCase("8 packed documents", 1, 12, Sq=512, Sk=2048, D=64, span=packed_8),
    AttentionCase("4 K/V heads of 16", 4, 16, Hk=4, Sq=128, Sk=577, D=64),
]
_CPU = Sizes(
    dtypes=(torch.float32, torch.bfloat16),
    forward=_CPU_FORWARD,
    training=[_CPU_FORWARD[i] for i in (0, 1, 2, 5, 6)],
    learned=[
        AttentionCase("bias a head", 8, 12, Sq=64, Sk=197, D=64, bias="1 H Sq Sk"),
        AttentionCase("sink and gate", 4, 8, Sq=256, Sk=577, D=64, sink=True, gate="head"),
    ],
    learned_dtype=torch.float32,
    decode=[
        AttentionCase("32 texts", 32, 12, Sq=1, Sk=577, D=64),
        AttentionCase("8 texts, D 128", 8, 16, Sq=1, Sk=1024, D=128),
    ],
    beams=[AttentionCase("5 beams", 8, 12, Sq=5, Sk=577, D=64), AttentionCase("8 beams", 4, 16, Sq=8, Sk=1024, D=64)],
    pairs=[(2048, 512), (4096, 256)],
    retrieval=[(1000, 25_000, 256, 10), (256, 100_000, 128, 100)],
)

_GPU_MASKED = [
    AttentionCase("pixels at 77 of 512 words", 4, 24, Sq=1344, Sk=512, D=64, span=seventy_seven),
    AttentionCase("latents at 77 words, padded", 8, 16, Sq=4096, Sk=77, D=64, span=padded),
    AttentionCase("at 336 pixels, padded", 32, 16, Sq=128, Sk=577, D=64, span=padded),
    AttentionCase("speech of 30 seconds, padded", 16, 20, Sq=448, Sk=1500, D=64, span=padded),
    AttentionCase("latest of 4 pictures", 8, 16, Sq=1024, Sk=1028, D=128, span=latest_of_4),
    AttentionCase("8 packed documents", 1, 16, Sq=4096, Sk=4096, D=128, span=packed_8),
]
_GPU_DENSE = [
    AttentionCase("caption over ViT-L/14", 64, 16, Sq=77, Sk=257, D=64),
    AttentionCase("dense 2k", 4, 16, Sq=2048, Sk=2048, D=128),
    AttentionCase("dense 8k", 1, 8, Sq=8192, Sk=8192, D=128),
    AttentionCase("causal 4k", 1, 16, Sq=4096, Sk=4096, D=128, span=causal),
]
_GPU = Sizes(
    dtypes=(torch.bfloat16,),
    forward=[*_GPU_MASKED, *_GPU_DENSE],
    training=[*_GPU_MASKED, *_GPU_DENSE[:3]],
    learned=[
        AttentionCase("bias a head", 16, 16, Sq=256, Sk=577, D=64, bias="1 H Sq Sk"),
        AttentionCase("sink and gate, padded", 8, 16, Sq=512, Sk=1024, D=128, sink=True, gate="head", span=padded),
    ],
    learned_dtype=torch.bfloat16,
    decode=[
        AttentionCase("256 texts", 256, 16, Sq=1, Sk=577, D=64),
        AttentionCase("16 texts, D 128", 16, 32, Hk=8, Sq=1, Sk=8192, D=128),
    ],
    beams=[AttentionCase("5 beams", 64, 16, Sq=5, Sk=577, D=64)],
    pairs=[(32768, 768), (16384, 512)],
    retrieval=[(8192, 200_000, 512, 10)],
)

_TINY = AttentionCase("tiny", 1, 2, Sq=20, Sk=40, D=16, span=padded)
_INTERPRETER = Sizes(
    dtypes=(torch.float32, torch.float16),
    forward=[_TINY],
    training=[_TINY],
    learned=[AttentionCase("tiny bias", 1, 2, Sq=20, Sk=40, D=16, bias="1 H Sq Sk")],
    learned_dtype=torch.float32,
    decode=[AttentionCase("tiny", 1, 2, Sq=1, Sk=100, D=16)],
    beams=[AttentionCase("tiny", 1, 2, Sq=3, Sk=40, D=16)],
    pairs=[(40, 16)],
    retrieval=[(10, 100, 16, 5)],
)


def sizes() -> Sizes:
    """Of the device in use."""
    return {"cpu": _CPU, "cuda": _GPU, "interpreter": _INTERPRETER}[machine.device()]
