"""A train-diffusion recipe beside the latents, the networks and the processes that it is to run with."""

from pathlib import Path
from typing import NamedTuple

from dcae_core.data.latents import LatentDataset
from dcae_core.distributed import world_size
from dcae_core.errors import DcaeError, UsageError
from dcae_core.metrics.reference import read_reference
from dcae_core.models.denoiser_config import DenoiserConfig
from dcae_core.models.denoisers import denoiser_config
from dcae_core.pipelines.generate import SampleSettings
from dcae_core.recipes.train_diffusion import SamplingSettings, TrainDiffusionRecipe
from dcae_core.training.autoencoder_recipe import resolution_faults
from dcae_core.zoo import EMBEDDED_AUTOENCODER, AutoencoderEntry, find_autoencoder

_GIGABYTE = 10**9


def open_latents(recipe: TrainDiffusionRecipe) -> LatentDataset:
    """The dataset that a recipe names.

    Raises:
        DataError: there is none, or a shard is missing.
        DownloadError: it cannot be reached.
    """
    loading = recipe.loading
    cache = Path(loading.cache) if loading.cache is not None else None
    return LatentDataset(recipe.latents, cache=cache, cache_bytes=int(loading.cache_gb * _GIGABYTE))


class LatentKind(NamedTuple):
    """What a network has to know about latents.

    Attributes:
        shape: (C, h, w).
        num_classes: how many there are; 0 without classes.
    """

    shape: tuple[int, int, int]
    num_classes: int

    @classmethod
    def of(cls, dataset: LatentDataset) -> "LatentKind":
        """That of a dataset."""
        return cls(dataset.manifest.latent_shape, len(dataset.manifest.classes))


def configuration_of(recipe: TrainDiffusionRecipe, kind: LatentKind) -> DenoiserConfig:
    """The network that a recipe describes, for latents of this kind.

    Raises:
        UsageError: values that no network can be built from.
    """
    channels, height, width = kind.shape
    settings = recipe.network.model_dump() | {
        "in_channels": channels,
        "input_size": height if height == width else (height, width),
        "num_classes": kind.num_classes,
        "activation_checkpointing": recipe.execution.activation_checkpointing,
    }
    return denoiser_config(settings)


def sample_settings(sampling: SamplingSettings, guidance_scale: float) -> SampleSettings:
    """How pictures are made on the way."""
    return SampleSettings(guidance_scale, sampling.seed, sampling.sampler, sampling.num_steps)


def check_diffusion_recipe(recipe: TrainDiffusionRecipe) -> list[str]:
    """Faults that only show beside the latents and the number of processes, as "dotted.path: message".

    Raises:
        DataError: the latents are missing or damaged, and nothing is wrong with the recipe itself.
        DownloadError: they cannot be reached, likewise.
    """
    faults = []
    if recipe.batch_size < recipe.accumulation * world_size():
        faults.append(
            f"batch_size: {recipe.batch_size} does not give each of {world_size()} process(es) "
            f"something to do in each of {recipe.accumulation} part(s)"
        )
    if recipe.sampling is not None and recipe.sampling.fid is not None:
        try:
            read_reference(Path(recipe.sampling.fid.reference))
        except DcaeError as error:
            faults.append(f"sampling.fid.reference: {error}")
    try:
        dataset = open_latents(recipe)
    except DcaeError as error:
        if faults := [*faults, *check_diffusion_network(recipe)]:
            return [*faults, f"latents: {error}"]
        raise type(error)(f"latents: {error}") from error
    return [*faults, *_dataset_faults(recipe, dataset), *_network_faults(recipe, LatentKind.of(dataset))]


def check_diffusion_network(recipe: TrainDiffusionRecipe) -> list[str]:
    """The faults of `check_diffusion_recipe` that show without the latents, given what the recipe says about them."""
    entry = find_autoencoder(recipe.autoencoder or EMBEDDED_AUTOENCODER)
    faults = []
    if entry is not None and recipe.resolution is not None:
        faults = resolution_faults(recipe.resolution, entry.config)
    return faults + _network_faults(recipe, _expected_latents(recipe, entry))


def _expected_latents(recipe: TrainDiffusionRecipe, autoencoder: AutoencoderEntry | None) -> LatentKind:
    """What the recipe says that its latents are; what it does not say is such that it fits."""
    channels = max(recipe.augmentation.channels) if recipe.augmentation is not None else 1
    side = recipe.network.patch_size
    if autoencoder is not None:
        channels = autoencoder.config.latent_channels
        f = autoencoder.config.spatial_compression_ratio
        if recipe.resolution is not None and recipe.resolution % f == 0:
            side = recipe.resolution // f
    num_classes = recipe.network.num_classes
    if num_classes is None:
        asked = recipe.sampling.classes if recipe.sampling is not None else None
        num_classes = 1 + max(asked or [0])
    return LatentKind((channels, side, side), num_classes)


def _dataset_faults(recipe: TrainDiffusionRecipe, dataset: LatentDataset) -> list[str]:
    manifest, faults = dataset.manifest, []
    found = len(manifest.classes)
    if recipe.network.num_classes not in (None, found):
        faults.append(f"network.num_classes: {recipe.network.num_classes}, but the latents have {found} classes")
    if recipe.resolution not in (None, manifest.transform.resolution):
        faults.append(
            f"resolution: {recipe.resolution}, but the latents are of pictures of {manifest.transform.resolution} px"
        )
    if recipe.batch_size > len(dataset):
        faults.append(f"batch_size: {recipe.batch_size} is more than the {len(dataset)} latents there are")
    if recipe.dataset.shuffle == "window" and recipe.dataset.lanes > len(manifest.shards):
        faults.append(f"dataset.lanes: {recipe.dataset.lanes} is more than the {len(manifest.shards)} shards there are")
    return faults


def _network_faults(recipe: TrainDiffusionRecipe, kind: LatentKind) -> list[str]:
    faults = []
    channels = recipe.augmentation.channels if recipe.augmentation is not None else []
    if channels and max(channels) > kind.shape[0]:
        faults.append(f"augmentation.channels: {max(channels)} is more than the {kind.shape[0]} there are")
    try:
        config = configuration_of(recipe, kind)
    except UsageError as error:
        return [*faults, f"network: {error}"]
    return faults + (_sampling_faults(recipe, recipe.sampling, config) if recipe.sampling is not None else [])


def _sampling_faults(recipe: TrainDiffusionRecipe, sampling: SamplingSettings, config: DenoiserConfig) -> list[str]:
    faults = []
    wrong = [number for number in sampling.classes or [] if number >= max(1, config.num_classes)]
    if wrong:
        faults.append(f"sampling.classes: class {wrong[0]} does not exist; the latents have {config.num_classes}")
    scales = {"sampling": sampling.guidance_scale} | (
        {"sampling.fid": sampling.fid.guidance_scale} if sampling.fid is not None else {}
    )
    for path, scale in scales.items():
        try:
            sample_settings(sampling, scale).check(recipe.objective, config)
        except UsageError as error:
            faults.append(f"{path}: {error}")
    return faults
