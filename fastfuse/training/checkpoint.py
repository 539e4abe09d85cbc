"""Checkpoints that survive a kill at any moment.

A checkpoint is a folder ``OUT/checkpoints/step-00000100`` with all that a model and its training need::

    model.safetensors  optimizer.safetensors  config.json (sizes)  training.json  tokenizer.json

It is written under another name, flushed to the disk and renamed: a folder with this name is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastfuse.data import CaptionTokenizer
from fastfuse.models import Captioner, CaptionerConfig
from fastfuse.nn.core import Attention
from fastfuse.training.config import TrainingConfig

KEPT = 2  # checkpoints of a run; older ones are deleted
_PREFIX = "step-"


class Trained(NamedTuple):
    """A model ready for use, and how it came about."""

    model: Captioner
    tokenizer: CaptionTokenizer
    training: TrainingConfig
    step: int


def save_checkpoint(
    out: Path,
    step: int,
    model: Captioner,
    optimizers: Sequence[torch.optim.Optimizer],
    tokenizer: CaptionTokenizer,
    training: TrainingConfig,
) -> Path:
    """Write the state after ``step`` steps under ``out / "checkpoints"``; delete all but the last ones."""
    folder = out / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".writing-{step:08d}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    save_file(_contiguous(model.state_dict()), unfinished / "model.safetensors")
    save_file(_contiguous(_optimizer_tensors(model, optimizers)), unfinished / "optimizer.safetensors")
    (unfinished / "config.json").write_text(json.dumps(asdict(model.config), indent=2) + "\n")
    training.save(unfinished / "training.json")
    tokenizer.save(unfinished / "tokenizer.json")
    for path in (*unfinished.iterdir(), unfinished):
        _flush(path)
    final = folder / f"{_PREFIX}{step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    unfinished.rename(final)
    _flush(folder)
    for old in _complete(folder)[:-KEPT]:
        shutil.rmtree(old)
    return final


def latest_checkpoint(out: Path) -> Path | None:
    """The last complete checkpoint of a run, or ``out`` itself where it is one; None where there is none."""
    if (out / "model.safetensors").is_file():
        return out
    found = _complete(out / "checkpoints")
    return found[-1] if found else None


def load_captioner(out: Path, attention: Attention = "fused", device: torch.device | str = "cpu") -> Trained:
    """The model of a run's last checkpoint, in evaluation mode.

    Args:
        out: a run's folder or one checkpoint's.
        attention: "fused" or "eager".
        device: where to put it.

    Raises:
        FileNotFoundError: there is no complete checkpoint.
    """
    folder = latest_checkpoint(out)
    if folder is None:
        raise FileNotFoundError(f"out: no complete checkpoint in {out}")
    config = CaptionerConfig(**json.loads((folder / "config.json").read_text()))
    model = Captioner(config, attention)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    training = TrainingConfig.load(folder / "training.json")
    tokenizer = CaptionTokenizer.load(folder / "tokenizer.json")
    return Trained(model.to(device).eval(), tokenizer, training, _step(folder))


def load_optimizers(folder: Path, model: Captioner, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Fill ``optimizers``, which share out ``model``'s parameters, from a checkpoint's folder."""
    stored = load_file(folder / "optimizer.safetensors")
    for name, parameter, optimizer in _owned(model, optimizers):
        optimizer.state[parameter] = {
            key.removeprefix(f"{name}/"): value.to(parameter.device) if value.dim() else value
            for key, value in stored.items()
            if key.startswith(f"{name}/")
        }


def _optimizer_tensors(model: Captioner, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """{"parameter/exp_avg": tensor, ...}."""
    return {
        f"{name}/{key}": value
        for name, parameter, optimizer in _owned(model, optimizers)
        for key, value in optimizer.state[parameter].items()
    }


def _owned(
    model: Captioner, optimizers: Sequence[torch.optim.Optimizer]
) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer]]:
    """Every parameter's name, itself, and its optimizer."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield names[parameter], parameter, optimizer


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _complete(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob(f"{_PREFIX}*")) if folder.is_dir() else []


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX)) if folder.name.startswith(_PREFIX) else 0


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
