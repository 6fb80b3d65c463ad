"""The paper's headline: how much faster the same diffusion transformer is on DC-AE's latents than on SD-VAE's.

UViT-H for images of 512 pixels on latents 4x64x64 with patch size 2 (1024 patches) against latents 128x8x8 with
patch size 1 (64 patches). Random weights: they do not change speed. The diffusion network alone is measured, without
guidance and without the decoders. Source: DC-AE (arXiv 2410.10733), table 3 (one H100, fp16, TensorRT for inference).
"""

import gc
import math
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from dcae_core.benchmarking.measuring import (
    Contestant,
    Machine,
    Measurement,
    ProgressNote,
    Subject,
    held_bytes,
    measure,
)
from dcae_core.benchmarking.networks import NamedDenoiser, random_denoiser
from dcae_core.benchmarking.subjects import BenchSettings, denoiser_step
from dcae_core.diffusion.samplers import EPSILON, run_sampler
from dcae_core.models.complexity import denoiser_complexity
from dcae_core.models.configs import DenoiserConfig, UViTConfig
from dcae_core.models.inference import for_run

EVALUATIONS = 30
PUBLISHED = {"train": 17.9, "infer": 19.1}
"""Ratios of throughput in the paper: 55 to 984 and 5.85 to 111.77 images per second."""
_PUBLISHED_TRAINING_BATCH, _INFERENCE_BATCH = 256, 64
_CPU_BATCHES = {"f8": 1, "f64": 16}  # about as many tokens each

_UVIT_H: dict[str, Any] = {"hidden_size": 1152, "depth": 28, "num_heads": 16}
_SMALL: dict[str, Any] = {"hidden_size": 64, "depth": 2, "num_heads": 2}


@dataclass(frozen=True)
class HeadlineSettings:
    """How to measure the headline.

    Attributes:
        evaluations: of the network in the timed part of sampling; throughput is told for the published 30.
        small: a network of a few thousand weights, to try the command: its ratios mean nothing.
        batch: images of one call on both sides; None takes what suits the device.
    """

    evaluations: int
    small: bool = False
    batch: int | None = None


@dataclass(frozen=True)
class Headline:
    """What was measured."""

    measurements: dict[tuple[str, str], Measurement]
    evaluations: int

    def images_per_second(self, what: str, side: str) -> float:
        """Throughput; of sampling for the published number of evaluations, whatever was timed."""
        rate = self.measurements[what, side].items_per_second
        return rate if what == "train" else rate * self.evaluations / EVALUATIONS

    def ratio(self, what: str) -> float:
        """How many times more images per second on f64 latents."""
        return self.images_per_second(what, "f64") / self.images_per_second(what, "f8")

    def as_json(self, machine: Machine) -> dict[str, Any]:
        """As plain values."""
        return {
            "ratios": {what: {"measured": self.ratio(what), "published": PUBLISHED[what]} for what in PUBLISHED},
            "evaluations_timed": self.evaluations,
            "evaluations_of_an_image": EVALUATIONS,
            "images_per_second": {
                f"{what}.{side}": self.images_per_second(what, side) for what, side in self.measurements
            },
            "measurements": [measurement.as_json(machine) for measurement in self.measurements.values()],
        }


def headline_config(side: str, small: bool = False) -> DenoiserConfig:
    """The network on f8 latents with patch size 2, or on f64 latents with patch size 1."""
    latents: dict[str, Any] = (
        {"input_size": 64, "patch_size": 2, "in_channels": 4}
        if side == "f8"
        else {"input_size": 8, "patch_size": 1, "in_channels": 128}
    )
    return UViTConfig(**latents, **(_SMALL if small else _UVIT_H))


def measure_headline(
    headline: HeadlineSettings,
    settings: BenchSettings,
    progress: ProgressNote = lambda done, total, what: None,
) -> Headline:
    """Measure both sides, in inference and in training; one network is in memory at a time.

    UViT-H needs 2 GB in float32 for inference and four times that for training, and activations. On two CPU cores
    the default takes about three minutes, on one H100 less than one, and compilation.
    """
    measured = {}
    for what in ("infer", "train"):
        for side in ("f8", "f64"):
            batch = headline.batch or _default_batch(what, side, settings.device)
            with TemporaryDirectory() as scratch:
                side_settings = replace(settings, batch=batch)
                if what == "infer":
                    subject = _sampling(side, headline, side_settings)
                else:
                    subject = _training(side, headline, side_settings, Path(scratch))
                measured[what, side] = measure(subject, settings.repeats, settings.device, progress)[0]
            subject.contestants.clear()
            del subject
            _free(settings.device)
    return Headline(measured, headline.evaluations)


def _default_batch(what: str, side: str, device: torch.device) -> int:
    if device.type == "cpu":
        return _CPU_BATCHES[side]
    return _PUBLISHED_TRAINING_BATCH if what == "train" else _INFERENCE_BATCH


def _name(side: str, small: bool) -> str:
    return f"{'small UViT' if small else 'UViT-H'} {side}"


def _sampling(side: str, headline: HeadlineSettings, settings: BenchSettings) -> Subject:
    config, batch, device = headline_config(side, headline.small), settings.batch, settings.device
    plain = random_denoiser(config, device, settings.dtype)
    network = for_run(plain, math.inf, settings.compile_mode)
    noise = torch.randn(batch, config.in_channels, *config.latent_size, generator=torch.Generator().manual_seed(0))
    noise, classes = noise.to(device), torch.zeros(batch, dtype=torch.long, device=device)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return network(x.to(settings.dtype), t, classes).float()

    def call() -> None:
        with torch.inference_mode():
            run_sampler(None, model, noise, prediction=EPSILON, num_steps=headline.evaluations)

    macs = batch * headline.evaluations * denoiser_complexity(config).macs
    setting = f"{_name(side, headline.small)}, batch {batch}, {headline.evaluations} evaluation(s)"
    contestant = Contestant(settings.our_name, call, lambda: held_bytes(network))
    return Subject("infer", setting, batch, macs, 2 * noise.nbytes, [contestant])


def _training(side: str, headline: HeadlineSettings, settings: BenchSettings, directory: Path) -> Subject:
    config = headline_config(side, headline.small)
    network = random_denoiser(config, settings.device, torch.float32)
    opened = NamedDenoiser(_name(side, headline.small), network, config, EPSILON, None, random_weights=True)
    return replace(denoiser_step(opened, settings, directory), what="train")


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
