"""The recipe of `dcae encode-dataset`: which images, which autoencoder, and how latents are stored."""

from typing import Literal

from dcae_core.recipes.settings import (
    AlphaRule,
    CompileChoice,
    ComputingType,
    NonNegative,
    Positive,
    Recipe,
    StoredType,
)


class EncodeDatasetRecipe(Recipe):
    """A whole encoding."""

    command: Literal["encode-dataset"] = "encode-dataset"
    """Says that this is a recipe for `dcae encode-dataset`."""
    images: str | None = None
    """A folder with a folder per class, a glob, a text file listing images, tar shards or parquet files."""
    out: str | None = None
    """Directory of the latent dataset: new, empty, or left by a stopped run of the same settings."""
    model: str | None = None
    """Zoo name, hub id or directory of the autoencoder; null is the embedded model."""
    resolution: Positive = 512
    """Side of ADM's centre crop, in pixels."""
    flipped_copies: bool = False
    """Also store the latent of every image's mirror image."""
    latent_dtype: StoredType = "float16"
    """How latents are stored."""
    dtype: ComputingType = "fp32"
    """Number type of the network."""
    batch_size: Positive = 16
    """Images at a time in each process; part of what the bytes depend on."""
    shard_size: Positive = 1024
    """Images per shard: what a kill can lose, per process."""
    damaged: Literal["skip", "fail"] = "skip"
    """An image that cannot be decoded is listed in the manifest and left out, or ends the run."""
    apply_exif: bool = True
    """Turn images upright first; the published code does not."""
    alpha: AlphaRule = "white"
    """Transparent images: composed on white, and 16 bits rescaled; or drop: `convert("RGB")`, as published."""
    max_pixels: Positive = 178_956_970
    """Larger images count as damaged."""
    num_workers: Positive = 4
    """Threads of each process that decode images; the bytes do not depend on it."""
    num_threads: Positive = 1
    """Threads of each process that compute on a CPU; part of what the bytes depend on."""
    compile: CompileChoice = "auto"
    """Whether the network runs compiled: auto (on CUDA, where the number of images repays it), always or never."""
    seed: NonNegative = 0
    """Of the noise with which the latents of a KL autoencoder are drawn; others have none."""
