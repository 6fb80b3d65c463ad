"""Sampling from Python in one call: what `dcae sample` does, in memory."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from dcae_core.data.class_names import parse_classes
from dcae_core.errors import UsageError
from dcae_core.pipelines.generate import DiffusionPipeline, default_classes, draw_classes, load_diffusion
from dcae_core.progress import ProgressCallback


def sample(
    model: str | Path | DiffusionPipeline | None = None,
    classes: Sequence[int | str] | None = None,
    *,
    num: int | None = None,
    guidance_scale: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    sampler: str | None = None,
    num_steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    progress: ProgressCallback | None = None,
) -> list[Image.Image]:
    """Sample images from a diffusion model: those of `dcae sample` with the same settings, to the last bit.

    Args:
        model: what `load_diffusion` takes, or the pipeline that it gives, which serves many calls; None is the embedded
            model, which draws emoji.
        classes: numbers or names, one for each image.
        num: instead, this many of random classes, drawn by the seed. Where there is neither, 16 random ones, or those
            chosen for the embedded model.
        guidance_scale: of classifier-free guidance; 1 is none, and half the cost. None is 1, or what is best
            for the embedded model.
        guidance_interval: where to guide between data (0) and noise (1); None is everywhere.
        sampler: a name of `dcae_core.diffusion.SAMPLERS`; None is the model's default: the published one for this
            network.
        num_steps: None is the sampler's default.
        seed: image i depends on it and on i alone.
        batch_size: images at once; None tries until memory suffices.
        device: where to load a model that is named.
        dtype: of a model that is named, such as `torch.bfloat16` or "bf16"; float32 if None.
        progress: called after each step of each batch.

    Raises:
        UsageError: no such model or class, both `classes` and `num`, or settings that this network cannot do.
        CheckpointError: the weights are damaged or do not fit.
        DownloadError: the files are not cached and cannot be downloaded.
        ResourceError: even one image does not fit into memory.
    """
    if classes is not None and num is not None:
        raise UsageError("give classes or num, not both")
    pipeline = model if isinstance(model, DiffusionPipeline) else load_diffusion(model, device=device, dtype=dtype)
    labels = _labels(pipeline, classes, num, seed)
    return pipeline.generate(
        labels,
        guidance_scale,
        seed,
        num_steps=num_steps,
        sampler=sampler,
        guidance_interval=guidance_interval,
        batch_size=batch_size,
        progress=progress,
    ).images


def _labels(pipeline: DiffusionPipeline, classes: Sequence[int | str] | None, num: int | None, seed: int) -> list[int]:
    num_classes = pipeline.config.num_classes
    if num is not None:
        return draw_classes(num, num_classes, seed)
    if classes is None:
        return default_classes(pipeline.defaults, num_classes, pipeline.class_names, seed)
    if num_classes == 0:
        raise UsageError("this network has no classes; give num instead")
    return [number for each in classes for number in parse_classes(str(each), num_classes, pipeline.class_names)]
