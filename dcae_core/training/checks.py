"""Recipes beside the networks, files, latents and processes that they are to run with."""

import math
from pathlib import Path
from typing import NamedTuple

from dcae_core.checkpoints.autoencoders import locate_autoencoder
from dcae_core.checkpoints.hub import is_hub_id
from dcae_core.data.latents import LatentDataset
from dcae_core.diffusion.objectives import Objective, TimeDistribution, build_objective, resolution_shift
from dcae_core.distributed import world_size
from dcae_core.errors import DataError, DcaeError, UsageError
from dcae_core.metrics.reference import read_reference
from dcae_core.models.autoencoder import Autoencoder, build_on_meta
from dcae_core.models.configs import AutoencoderConfig, DenoiserConfig, denoiser_config
from dcae_core.models.normalisation import ChannelNormalisation
from dcae_core.pipelines.generate import SampleSettings
from dcae_core.recipes.settings import Recipe
from dcae_core.recipes.train_ae import NetworkSettings, PhaseSettings, TrainAutoencoderRecipe
from dcae_core.recipes.train_diffusion import SamplingSettings, TrainDiffusionRecipe
from dcae_core.training.adversarial import smallest_side
from dcae_core.training.equivariance import smallest_latent_side
from dcae_core.training.trained_parts import stages_of
from dcae_core.zoo import AUTOENCODERS, EMBEDDED_AUTOENCODER, AutoencoderEntry, find_autoencoder, unknown_model


def autoencoder_config_of(settings: NetworkSettings) -> AutoencoderConfig:
    """The network that a recipe describes. Weights on the hub that are no released ones are downloaded for it.

    UsageError where no network can be built, DataError where weights are not there or do not say what they are.
    """
    if settings.weights is not None:
        entry = find_autoencoder(settings.weights)
        config = entry.config if entry is not None else locate_autoencoder(settings.weights).config
        if config is None:
            raise UsageError(f"{settings.weights} does not say which of our networks it is; give a whole directory")
        return config
    assert settings.model is not None
    if settings.model == "custom":
        return AutoencoderConfig.from_dict(settings.config)
    entry = find_autoencoder(settings.model)
    if entry is None:
        raise unknown_model(settings.model, [*AUTOENCODERS, "custom"])
    return entry.config.replace(**settings.config)


def check_autoencoder_recipe(recipe: TrainAutoencoderRecipe) -> list[str]:
    """Faults that only show beside the network, the files and the processes, as "dotted.path: message"."""
    faults = _autoencoder_network_faults(recipe)
    for index, phase in enumerate(recipe.phases):
        faults += [f"phases.{index}.{fault}" for fault in _surroundings_faults(recipe, phase)]
    return faults


def _is_elsewhere(weights: str | None) -> bool:
    """Whether these may be a hub's, or another training's that is still to come: what network they are is not known."""
    return weights is not None and "/" in weights and not Path(weights).exists() and find_autoencoder(weights) is None


def _autoencoder_network_faults(recipe: TrainAutoencoderRecipe) -> list[str]:
    if (recipe.network.model is None) == (recipe.network.weights is None):
        return []  # a fault that the recipe itself reports
    try:
        config = autoencoder_config_of(recipe.network)
    except DcaeError as error:
        return [f"network: {error}"]
    network = build_on_meta(config)
    faults = []
    for index, phase in enumerate(recipe.phases):
        faults += [f"phases.{index}.{fault}" for fault in _phase_faults(phase, network)]
    if recipe.validation is not None:
        faults += [f"validation.{fault}" for fault in resolution_faults(recipe.validation.resolution, config)]
    if recipe.network.init == "pca" and (config.downsample, config.head_norm) != ("conv", False):
        faults.append("network.init: pca needs a network with downsample: conv and head_norm: false")
    return faults


def _phase_faults(phase: PhaseSettings, network: Autoencoder) -> list[str]:
    config = network.config
    faults = resolution_faults(phase.resolution, config) + _adjacent_stages_faults(phase, network)
    if phase.latent_channels and max(phase.latent_channels) > config.latent_channels:
        faults.append(
            f"latent_channels: {max(phase.latent_channels)} is more than the {config.latent_channels} there are"
        )
    if phase.losses.adversarial is not None:
        num_layers = phase.losses.adversarial.discriminator.num_layers
        side, smallest = smallest_side(num_layers), _smallest_image(phase, config)
        if smallest < side:
            shrunk = "" if smallest == phase.resolution else ", to which equivariance shrinks them"
            faults.append(
                f"losses.adversarial.discriminator.num_layers: {num_layers} need crops of at least {side} pixels, "
                f"not {smallest}{shrunk}"
            )
    return faults


def _smallest_image(phase: PhaseSettings, config: AutoencoderConfig) -> int:
    """Side in pixels of the smallest images that a reconstruction is compared with."""
    if phase.equivariance is None:
        return phase.resolution
    ratio = config.spatial_compression_ratio
    return ratio * smallest_latent_side(phase.resolution // ratio, phase.equivariance)


def _adjacent_stages_faults(phase: PhaseSettings, network: Autoencoder) -> list[str]:
    faults = []
    for side in ("encoder", "decoder"):
        found = len(stages_of(network, side))
        has_trained_end = any(part.startswith(f"{side}_") for part in phase.parts)
        if has_trained_end and 0 < found <= phase.adjacent_stages:
            faults.append(
                f"adjacent_stages: {phase.adjacent_stages} leaves none of the {side}'s {found} stages untrained; "
                f"train: [{side}] says so"
            )
    return faults


def _surroundings_faults(recipe: TrainAutoencoderRecipe, phase: PhaseSettings) -> list[str]:
    faults = _batch_faults(phase)
    losses = phase.losses
    if losses.lpips_weights is not None and not Path(losses.lpips_weights).is_dir():
        faults.append(f"losses.lpips_weights: {losses.lpips_weights} is not a directory")
    is_sharded = recipe.execution.sharding == "fsdp" and world_size() > 1
    for name, term in {"adversarial": losses.adversarial, "alignment": losses.alignment}.items():
        if term is not None and term.adaptive and is_sharded:
            faults.append(
                f"losses.{name}.adaptive: needs whole weights, which `sharding: fsdp` spreads over processes; "
                "set it to false"
            )
    if losses.alignment is not None and not (
        Path(losses.alignment.model).is_dir() or is_hub_id(losses.alignment.model)
    ):
        faults.append(f"losses.alignment.model: {losses.alignment.model} is neither a directory nor a hub id")
    return faults


def _batch_faults(settings: PhaseSettings | TrainDiffusionRecipe) -> list[str]:
    if settings.batch_size >= settings.accumulation * world_size():
        return []
    return [
        f"batch_size: {settings.batch_size} does not give each of {world_size()} process(es) "
        f"something to do in each of {settings.accumulation} part(s)"
    ]


def resolution_faults(resolution: int, config: AutoencoderConfig) -> list[str]:
    """What is wrong with images of this size, as "resolution: message"."""
    f = config.spatial_compression_ratio
    if resolution % f == 0:
        return []
    nearest = max(f, round(resolution / f) * f)
    return [f"resolution: {resolution} is not a multiple of {f}, the network's compression; take {nearest}"]


_GIGABYTE = 10**9


def open_latents(recipe: TrainDiffusionRecipe) -> LatentDataset:
    """The dataset that a recipe names."""
    loading = recipe.loading
    cache = Path(loading.cache) if loading.cache is not None else None
    return LatentDataset(recipe.latents, cache=cache, cache_bytes=int(loading.cache_gb * _GIGABYTE))


class LatentKind(NamedTuple):
    """What a network has to know about latents: their shape (C, h, w), and how many classes there are, 0 without."""

    shape: tuple[int, int, int]
    num_classes: int

    @classmethod
    def of(cls, dataset: LatentDataset) -> "LatentKind":
        """That of a dataset."""
        return cls(dataset.manifest.latent_shape, len(dataset.manifest.classes))


def denoiser_config_of(recipe: TrainDiffusionRecipe, kind: LatentKind) -> DenoiserConfig:
    """The network that a recipe describes, for latents of this kind."""
    channels, height, width = kind.shape
    settings = recipe.network.model_dump() | {
        "in_channels": channels,
        "input_size": height if height == width else (height, width),
        "num_classes": kind.num_classes,
    }
    return denoiser_config(settings)


def objective_of(recipe: TrainDiffusionRecipe, config: DenoiserConfig) -> Objective:
    """What a recipe trains, on latents of the network's shape."""
    settings = recipe.times
    shift = settings.shift or 1.0
    if settings.shift_base is not None:
        shift = resolution_shift(config.in_channels * math.prod(config.latent_size), settings.shift_base)
    times = TimeDistribution(settings.distribution, settings.mean, settings.scale, shift)
    return build_objective(recipe.objective, times=times, min_snr_gamma=recipe.min_snr_gamma)


def normalisation_of(recipe: TrainDiffusionRecipe, dataset: LatentDataset) -> ChannelNormalisation | None:
    """The mean and standard deviation of each channel, where the recipe asks for that.

    Raises:
        DataError: a channel of the latents never varies, or they are none.
    """
    if recipe.normalisation == "scalar":
        return None
    statistics = dataset.manifest.statistics
    if statistics is None:
        raise DataError(f"{dataset.store.where} has no statistics to normalise by: it holds no latents")
    try:
        return ChannelNormalisation.of(statistics.channel_mean, statistics.channel_std)
    except UsageError as error:
        raise DataError(f"{dataset.store.where} cannot be normalised by channel: {error}") from error


def sample_settings(sampling: SamplingSettings, guidance_scale: float, *, has_classes: bool) -> SampleSettings:
    """How images are made on the way: without guidance where there are no classes to guide towards."""
    return SampleSettings(guidance_scale if has_classes else 1.0, sampling.seed, sampling.sampler, sampling.num_steps)


def check_diffusion_recipe(recipe: TrainDiffusionRecipe) -> list[str]:
    """Faults that only show beside the latents and the number of processes, as "dotted.path: message".

    Raises:
        DataError: the latents are missing or damaged, and nothing is wrong with the recipe itself.
        DownloadError: they cannot be reached, likewise.
    """
    faults = _batch_faults(recipe)
    if recipe.sampling is not None and recipe.sampling.fid is not None:
        try:
            read_reference(Path(recipe.sampling.fid.reference))
        except DcaeError as error:
            faults.append(f"sampling.fid.reference: {error}")
    try:
        dataset = open_latents(recipe)
    except DcaeError as error:
        if faults := [*faults, *_expected_faults(recipe)]:
            return [*faults, f"latents: {error}"]
        raise type(error)(f"latents: {error}") from error
    return [*faults, *_dataset_faults(recipe, dataset), *_denoiser_network_faults(recipe, LatentKind.of(dataset))]


def _expected_faults(recipe: TrainDiffusionRecipe) -> list[str]:
    """What shows without the latents, given what the recipe says about them."""
    entry = find_autoencoder(recipe.autoencoder or EMBEDDED_AUTOENCODER)
    faults = []
    if entry is not None and recipe.resolution is not None:
        faults = resolution_faults(recipe.resolution, entry.config)
    return faults + _denoiser_network_faults(recipe, _expected_latents(recipe, entry))


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
            f"resolution: {recipe.resolution}, but the latents are of images of {manifest.transform.resolution} px"
        )
    if recipe.batch_size > len(dataset):
        faults.append(f"batch_size: {recipe.batch_size} is more than the {len(dataset)} latents there are")
    if recipe.dataset.shuffle == "window" and recipe.dataset.lanes > len(manifest.shards):
        faults.append(f"dataset.lanes: {recipe.dataset.lanes} is more than the {len(manifest.shards)} shards there are")
    return faults


def _denoiser_network_faults(recipe: TrainDiffusionRecipe, kind: LatentKind) -> list[str]:
    faults = []
    channels = recipe.augmentation.channels if recipe.augmentation is not None else []
    if channels and max(channels) > kind.shape[0]:
        faults.append(f"augmentation.channels: {max(channels)} is more than the {kind.shape[0]} there are")
    try:
        config = denoiser_config_of(recipe, kind)
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
    # Latents without classes turn guidance off; a recipe that itself rules classes out may not ask for it.
    has_classes = config.num_classes > 0 or recipe.network.num_classes == 0
    for path, scale in scales.items():
        try:
            sample_settings(sampling, scale, has_classes=has_classes).check(recipe.objective, config)
        except UsageError as error:
            faults.append(f"{path}: {error}")
    return faults


def check_network(recipe: Recipe) -> list[str]:
    """The faults of a training recipe that show without data and downloads, as "dotted.path: message"."""
    if isinstance(recipe, TrainAutoencoderRecipe) and not _is_elsewhere(recipe.network.weights):
        return _autoencoder_network_faults(recipe)
    return _expected_faults(recipe) if isinstance(recipe, TrainDiffusionRecipe) else []
