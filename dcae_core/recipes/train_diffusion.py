"""The recipe of `dcae train-diffusion`: which latents, which network, what it predicts, and how it is looked at."""

from typing import Annotated, Literal

from pydantic import Field

from dcae_core.recipes.settings import (
    CheckpointSettings,
    EmaSettings,
    ExecutionSettings,
    Fraction,
    LoggingSettings,
    NonNegative,
    NumSteps,
    OnNonFinite,
    OptimiserSettings,
    Positive,
    PositiveNumber,
    Recipe,
    Section,
)

ObjectiveName = Literal["epsilon", "velocity", "epsilon_variance"]


class DenoiserSettings(Section):
    """The network. The latents say how large they are and how many channels they have."""

    architecture: Literal["uvit", "dit"]
    """U-ViT (arXiv 2209.12152) or DiT (arXiv 2212.09748)."""
    patch_size: Positive = 1
    """Side of the square of latent positions that makes one token."""
    hidden_size: Positive
    """Width of a token."""
    depth: Positive
    """Number of transformer blocks."""
    num_heads: Positive
    """Attention heads."""
    num_classes: NonNegative | None = None
    """Refuse latents with another number of classes; null takes whatever number they have (0: unconditional)."""
    qk_norm: bool = False
    """RMS norm of queries and keys in each head, against attention that saturates (arXiv 2302.05442)."""


class TimeSettings(Section):
    """How often a velocity model is trained at which time, told by the share of noise u = 1 - t."""

    distribution: Literal["uniform", "logit_normal"] = "uniform"
    """uniform (SiT), or logit(u) normal, which trains most between noise and data (arXiv 2403.03206)."""
    mean: float = 0.0
    """With `logit_normal`: of logit(u); above 0 trains more at noisy times."""
    scale: PositiveNumber = 1.0
    """With `logit_normal`: standard deviation of logit(u)."""
    shift: PositiveNumber | None = None
    """Replace u by shift * u / (1 + (shift - 1) * u); above 1 trains more at noisy times. null: not at all."""
    shift_base: Positive | None = None
    """Shift by sqrt(C * h * w / shift_base): latents of so many values need none (4096 in arXiv 2510.11690)."""


class DatasetSettings(Section):
    """The order in which latents are seen."""

    shuffle: Literal["global", "window"] = "global"
    """global: a fresh permutation of everything each epoch; window: shard after shard, for remote datasets."""
    window: Positive = 16
    """With `window`: how many shards are shuffled together."""
    lanes: Positive = 1
    """With `window`: independent streams of shards; a multiple of the number of processes lets each read its own."""


class LoadingSettings(Section):
    """How latents come to the network; the result does not depend on it."""

    verify: bool = True
    """Prove every checksum before the run (about a second per gigabyte). Remote shards are always proved on arrival."""
    num_threads: Positive = 1
    """Threads that read ahead and draw noise; more than one help only where reading waits for a slow disk."""
    cache: str | None = None
    """Local directory for the shards of a remote dataset; null is ~/.cache/dcae/latents."""
    cache_gb: PositiveNumber = 64.0
    """Upper bound of that directory, in GB."""


class AugmentationSettings(Section):
    """DC-AE 1.5's second loss on the leading channels of the latent.

    The paper (arXiv 2508.00413) gives the idea; drawing the number per sample, and the weight, are ours.
    """

    channels: Annotated[list[Positive], Field(min_length=1)]
    """Each sample draws one of these numbers of leading channels; the others are set to zero."""
    weight: PositiveNumber = 1.0
    """How much the second loss counts."""


class FidSettings(Section):
    """Fréchet distance of samples to a reference, now and then."""

    reference: str
    """A file of `dcae fid-ref`, of the published code or of ADM."""
    every: Positive
    """Steps between measurements: a multiple of `sampling.every`."""
    num_images: Annotated[int, Field(ge=2)] = 5000
    """How many samples; published figures use 50,000."""
    guidance_scale: PositiveNumber = 1.0
    """Classifier-free guidance of these samples; 1 is none."""
    inception_weights: str | None = None
    """A file of weights with the published names and shapes; null downloads the published one."""


class SamplingSettings(Section):
    """Images made with the averaged weights on the way, always from the same noise."""

    every: Positive = 10_000
    """Steps between grids; there is also one at the end."""
    classes: list[NonNegative] | None = None
    """Of the grid's images; null spreads `num_images` over all classes."""
    num_images: Positive = 16
    """How many, where `classes` does not say."""
    guidance_scale: PositiveNumber = 1.5
    """Classifier-free guidance of the grid; 1 is none, as always for latents without classes."""
    sampler: str | None = None
    """Null is the published one for the objective."""
    num_steps: NumSteps | None = None
    """Null is the sampler's default."""
    batch_size: Positive = 16
    """Samples at a time in each process."""
    seed: NonNegative = 0
    """Of the noise."""
    fid: FidSettings | None = None
    """Also measure FID; null for not."""


class TrainDiffusionRecipe(Recipe):
    """A whole training of a diffusion model."""

    command: Literal["train-diffusion"] = "train-diffusion"
    """Says that this is a recipe for `dcae train-diffusion`."""
    run_dir: Annotated[str, Field(min_length=1)]
    """Where the run lives; the same command continues what it finds there."""
    seed: NonNegative = 0
    """Of initial weights, noise, times, order and label dropout."""
    latents: str
    """A latent dataset of `dcae encode-dataset`: a directory or any fsspec URL."""
    autoencoder: str | None = None
    """The autoencoder that made them (zoo name, hub id or directory); null is the embedded model."""
    resolution: Positive | None = None
    """Refuse latents of images of another size; null takes what they are."""
    dataset: DatasetSettings = DatasetSettings()
    """The order in which latents are seen."""
    loading: LoadingSettings = LoadingSettings()
    """How latents come to the network."""
    network: DenoiserSettings
    """What is trained."""
    objective: ObjectiveName
    """What it predicts: epsilon (U-ViT), velocity (USiT), epsilon_variance (DiT)."""
    normalisation: Literal["scalar", "channel"] = "scalar"
    """What the network sees: latent * scaling factor, or (latent - mean) / deviation of each channel (2501.01423)."""
    times: TimeSettings = TimeSettings()
    """With the objective velocity: which times are trained how often."""
    min_snr_gamma: PositiveNumber | None = None
    """With the objective epsilon: weigh samples by min(SNR, gamma) / SNR (arXiv 2303.09556 takes 5); null: alike."""
    augmentation: AugmentationSettings | None = None
    """A second loss on leading channels; null for none."""
    label_dropout: Fraction = 0.1
    """Share of samples that are trained without their class, for guidance."""
    steps: Positive
    """Optimiser steps."""
    batch_size: Positive
    """Latents per step, over all processes and accumulated parts."""
    accumulation: Positive = 1
    """Parts that a batch is computed in, one after the other, to save memory."""
    optimiser: OptimiserSettings
    """AdamW and its learning rate."""
    ema: EmaSettings | None = EmaSettings()
    """The moving average of the weights; null for none."""
    on_nonfinite: OnNonFinite = "stop"
    """A step whose loss or gradient is not finite ends the run, or is skipped: it changes nothing and is counted."""
    max_skips: Positive = 10
    """With `skip`: more than so many steps in a row end the run."""
    sampling: SamplingSettings | None = SamplingSettings()
    """Images on the way; null for none."""
    execution: ExecutionSettings = ExecutionSettings()
    """How it is computed."""
    checkpoints: CheckpointSettings = CheckpointSettings()
    """What is saved and kept."""
    logging: LoggingSettings = LoggingSettings()
    """What is written down."""

    def faults(self) -> list[str]:
        """Faults between settings."""
        faults = []
        if self.batch_size < self.accumulation:
            faults.append(f"accumulation: a batch of {self.batch_size} cannot fill {self.accumulation} parts")
        if self.batch_size % self.dataset.lanes:
            faults.append(f"dataset.lanes: a batch of {self.batch_size} does not split into {self.dataset.lanes} lanes")
        faults += [f"optimiser.{fault}" for fault in self.optimiser.warmup_faults(self.steps)]
        if self.augmentation is not None and self.objective == "epsilon_variance":
            faults.append("augmentation: works with the objectives epsilon and velocity, not with epsilon_variance")
        faults += self._objective_faults()
        sampling = self.sampling
        if sampling is not None and sampling.fid is not None and sampling.fid.every % sampling.every:
            faults.append(
                f"sampling.fid.every: {sampling.fid.every} is no multiple of sampling.every, {sampling.every}"
            )
        return faults

    def _objective_faults(self) -> list[str]:
        times, faults = self.times, []
        if times != TimeSettings() and self.objective != "velocity":
            faults.append(f"times: belong to the objective velocity; {self.objective} draws its steps uniformly")
        if times.distribution == "uniform" and (times.mean, times.scale) != (0.0, 1.0):
            faults.append("times: mean and scale belong to `distribution: logit_normal`")
        if times.shift is not None and times.shift_base is not None:
            faults.append("times: give shift or shift_base, not both")
        if self.min_snr_gamma is not None and self.objective != "epsilon":
            faults.append(f"min_snr_gamma: weighs the objective epsilon, not {self.objective}")
        return faults
