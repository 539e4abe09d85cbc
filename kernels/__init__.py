"""Triton kernels and their launchers."""

from . import interpreter as interpreter
