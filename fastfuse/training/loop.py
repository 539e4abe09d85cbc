"""The training loop. What it does at step n follows from the config and n alone, so a killed run goes on exactly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from tqdm import tqdm

from fastfuse.data import (
    Batch,
    CaptionTokenizer,
    Preprocess,
    TrainingBatches,
    open_dataset,
    training_captions,
)
from fastfuse.models import Captioner, CaptionerConfig, Losses
from fastfuse.training.checkpoint import Trained, latest_checkpoint, load_captioner, load_optimizers, save_checkpoint
from fastfuse.training.config import TrainingConfig, autocast_dtype
from fastfuse.training.evaluate import evaluate
from fastfuse.training.logs import RunLog, plot_losses
from fastfuse.training.optimizers import build_optimizers, set_learning_rate
from fastfuse.training.schedule import learning_rate


class Trainer:
    """A model, its optimizers and its data; :meth:`step` does one step.

    Args:
        config: what to train on what.
        device: where.
        resume: a checkpoint's folder to go on from.
    """

    def __init__(self, config: TrainingConfig, device: torch.device | str = "cpu", resume: Path | None = None) -> None:
        self.config = config
        self.device = torch.device(device)
        dataset = open_dataset(config.data, "train", config.seed, config.train_size)
        if resume is None:
            kind: Literal["word", "bpe"] = "bpe" if config.data.startswith("coco") else "word"
            self.tokenizer = CaptionTokenizer.train(training_captions(dataset), kind=kind)
            torch.manual_seed(config.seed)
            sizes = CaptionerConfig.preset(config.preset, len(self.tokenizer), **config.model)
            self.model = Captioner(sizes, config.attention).to(self.device)
            self.next_step = 0
        else:
            trained = load_captioner(resume, config.attention, self.device)
            self.tokenizer, self.model, self.next_step = trained.tokenizer, trained.model, trained.step
        self.model.train()
        self.optimizers = build_optimizers(self.model, config)
        if resume is not None:
            load_optimizers(resume, self.model, self.optimizers)
        self.batches = TrainingBatches(
            dataset,
            self.tokenizer,
            Preprocess(self.model.config.image_size),
            config.batch_size,
            seed=config.seed,
            augment=config.augment,
            max_length=self.model.config.max_length,
            captions_per_image=config.captions_per_image,
            paraphrases=config.paraphrases,
        )
        self.autocast_dtype = autocast_dtype(config.precision, self.device)

    def step(self, batch: Batch) -> dict[str, float]:
        """Forward, backward, update; what there is to log about it."""
        config = self.config
        rate = learning_rate(
            self.next_step, peak=config.learning_rate, warmup_steps=config.warmup_steps, steps=config.steps
        )
        set_learning_rate(self.optimizers, rate)
        losses = self.losses(batch)
        losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.next_step += 1
        return {
            "caption": losses.caption.item(),
            "contrastive": losses.contrastive.item(),
            "grad_norm": norm.item(),
            "learning_rate": rate,
        }

    def losses(self, batch: Batch) -> Losses:
        """The forward pass, in the run's precision."""
        batch = batch.to(self.device)
        hide_words = self.next_step < self.config.hide_words * self.config.steps
        with self.autocast():
            losses: Losses = self.model(batch.images, batch.tokens, batch.ids, hide_words)
        return losses

    def autocast(self) -> torch.autocast:
        """A context in the run's precision."""
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def exact_match(self, pictures: int = 200) -> float:
        """Share of held-out pictures whose greedy caption is a valid one."""
        heldout = open_dataset(self.config.data, "heldout", self.config.seed, pictures)
        scores = evaluate(self.model, self.tokenizer, heldout, dtype=self.autocast_dtype)
        self.model.train()
        return scores.grades["exact"]

    def upcoming(self) -> Iterator[Batch]:
        """The batches from the next step to the last; each is made while the one before is in use."""
        with ThreadPoolExecutor(1) as maker:
            future = maker.submit(self.batches.batch, self.next_step)
            for step in range(self.next_step, self.config.steps):
                batch = future.result()
                if step + 1 < self.config.steps:
                    future = maker.submit(self.batches.batch, step + 1)
                yield batch


def train(config: TrainingConfig, out: Path, *, device: torch.device | str = "cpu", quiet: bool = False) -> Trained:
    """Train into the folder ``out``, or go on with the run that it holds.

    Writes ``log.jsonl``, ``tensorboard/``, ``checkpoints/`` and ``losses.png``. Killed at any moment and started again
    with the same config, it ends with the same weights, bit by bit, on one machine.

    Raises:
        ValueError: ``out`` holds a run with another config.
    """
    out.mkdir(parents=True, exist_ok=True)
    resume = latest_checkpoint(out)
    trainer = Trainer(config, device, resume)
    if resume is not None:
        _check_same(TrainingConfig.load(resume / "training.json"), config, out)
    log = RunLog(out, trainer.next_step)
    start_step = trainer.next_step
    progress = tqdm(desc="train", unit="step", total=config.steps, initial=start_step, mininterval=0.5, disable=quiet)
    for batch in trainer.upcoming():
        start = time.perf_counter()
        values = trainer.step(batch)
        step, seconds = trainer.next_step, time.perf_counter() - start
        if config.evaluate_every and step % config.evaluate_every == 0:
            values["exact"] = trainer.exact_match()
        log.write(step, **values, seconds=seconds)
        told = {name: f"{values[name]:.3f}" for name in ("caption", "contrastive")}
        progress.set_postfix(told, refresh=False)
        progress.update()
        if step % config.checkpoint_every == 0 or step == config.steps:
            save_checkpoint(out, step, trainer.model, trainer.optimizers, trainer.tokenizer, config)
    progress.close()
    log.close()
    plot_losses(out)
    return Trained(trainer.model.eval(), trainer.tokenizer, config, trainer.next_step)


def steps_within(config: TrainingConfig, minutes: float, device: torch.device | str = "cpu", sample: int = 8) -> int:
    """How many steps fit in ``minutes``, by the median time of ``sample`` trial steps."""
    trainer = Trainer(replace(config, steps=sample), device)
    times = []
    for batch in trainer.upcoming():
        start = time.perf_counter()
        trainer.step(batch)
        times.append(time.perf_counter() - start)
    return max(1, int(minutes * 60 / median(times)))


def _check_same(found: TrainingConfig, config: TrainingConfig, out: Path) -> None:
    changed = [name for name in vars(config) if getattr(found, name) != getattr(config, name)]
    if changed:
        told = ", ".join(f"{name} {getattr(found, name)!r}" for name in changed)
        raise ValueError(f"out: {out} holds a run with {told}; go on with that, or choose another folder")
