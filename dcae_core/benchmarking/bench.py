"""A whole benchmark: settings, subjects, rounds, results."""

import gc
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dcae_core.benchmarking.measuring import Measurement, ProgressNote, Subject, measure
from dcae_core.benchmarking.networks import notes_about, open_denoiser
from dcae_core.benchmarking.subjects import (
    BenchSettings,
    autoencoder_step,
    autoencoder_subjects,
    denoiser_step,
    denoiser_subjects,
    reading_subject,
)
from dcae_core.checkpoints.denoisers import is_diffusion_model

AUTOENCODER_SUBJECTS = ("encode", "decode", "reconstruct")
DENOISER_SUBJECTS = ("denoise", "sample")
TRAIN_STEP, LATENT_READING = "train-step", "latent-reading"
SUBJECTS = (*AUTOENCODER_SUBJECTS, *DENOISER_SUBJECTS, TRAIN_STEP, LATENT_READING)


def run_benchmarks(
    whats: list[str], settings: BenchSettings, progress: ProgressNote = lambda done, total, what: None
) -> tuple[list[Measurement], list[str]]:
    """Measure subjects of `SUBJECTS`: a measurement for each subject and implementation, and notes for the reader.

    Raises:
        UsageError: no such model, a resolution that does not fit, or a peer that is not there or cannot do it.
        CheckpointError: a directory's weights are damaged.
    """
    measurements: list[Measurement] = []
    notes: list[str] = []
    with TemporaryDirectory() as scratch:
        for subjects, own_notes in _groups(whats, settings, Path(scratch)):
            notes += own_notes
            for subject in subjects:
                measurements += measure(subject, settings.repeats, settings.device, progress)
            for subject in subjects:
                subject.contestants.clear()  # and with them the networks, before the next group has its own
            gc.collect()
    return measurements, list(dict.fromkeys(notes))


def _groups(whats: list[str], settings: BenchSettings, scratch: Path) -> Iterator[tuple[list[Subject], list[str]]]:
    """Subjects that share networks, one group after the other, so that only one group's networks are in memory."""
    if chosen := [what for what in whats if what in AUTOENCODER_SUBJECTS]:
        yield autoencoder_subjects(chosen, settings)
    if chosen := [what for what in whats if what in DENOISER_SUBJECTS]:
        yield denoiser_subjects(chosen, settings)
    if TRAIN_STEP in whats:
        yield _training(settings, scratch / "run")
    if LATENT_READING in whats:
        yield [reading_subject(scratch / "latents")], []


def _training(settings: BenchSettings, directory: Path) -> tuple[list[Subject], list[str]]:
    if settings.model is not None and not is_diffusion_model(settings.model):
        subject, notes = autoencoder_step(settings, directory)
        return [subject], notes

    opened = open_denoiser(settings.model, settings.device, torch.float32, settings.resolution)
    return [denoiser_step(opened, settings, directory)], notes_about(opened)
