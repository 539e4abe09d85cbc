"""Triton kernels and their launchers."""

from triton import knobs

if knobs.runtime.interpret:
    from . import interpreter as interpreter
