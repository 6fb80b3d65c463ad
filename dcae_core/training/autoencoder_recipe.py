"""A train-ae recipe beside the networks, the files and the processes that it is to run with."""

from pathlib import Path

from dcae_core.checkpoints.locating import locate_autoencoder
from dcae_core.distributed import world_size
from dcae_core.errors import DcaeError, UsageError
from dcae_core.models.autoencoder import Autoencoder, build_on_meta
from dcae_core.models.autoencoder_config import AutoencoderConfig
from dcae_core.recipes.train_ae import AdversarialSettings, NetworkSettings, PhaseSettings, TrainAutoencoderRecipe
from dcae_core.training.discriminator import smallest_side
from dcae_core.zoo import AUTOENCODERS, find_autoencoder, unknown_model


def configuration_of(settings: NetworkSettings) -> AutoencoderConfig:
    """The network that a recipe describes. Weights on the hub that are no released ones are downloaded for it.

    Raises:
        UsageError: no such model, unknown fields, or values that no network can be built from.
        DataError: weights that are not there or do not say what they are.
        DownloadError: they cannot be downloaded.
    """
    if settings.weights is not None:
        entry = find_autoencoder(settings.weights)
        config = entry.config if entry is not None else locate_autoencoder(settings.weights).config
        if config is None:
            raise UsageError(f"{settings.weights} is a lone file that does not say what it is; give its directory")
        return config
    assert settings.model is not None
    if settings.model == "custom":
        return AutoencoderConfig.from_dict(settings.config)
    entry = find_autoencoder(settings.model)
    if entry is None:
        raise unknown_model(settings.model, [*AUTOENCODERS, "custom"])
    return entry.config.replace(**settings.config)


def check_autoencoder_recipe(recipe: TrainAutoencoderRecipe) -> list[str]:
    """Faults that only show beside the network and the number of processes, as "dotted.path: message"."""
    if (recipe.network.model is None) == (recipe.network.weights is None):
        return []  # a fault that the recipe itself reports
    try:
        config = configuration_of(recipe.network)
    except DcaeError as error:
        return [f"network: {error}"]
    network = build_on_meta(config)
    faults = []
    for index, phase in enumerate(recipe.phases):
        faults += [f"phases.{index}.{fault}" for fault in _phase_faults(recipe, phase, network)]
    if recipe.validation is not None:
        faults += [f"validation.{fault}" for fault in _resolution_faults(recipe.validation.resolution, config)]
    if recipe.network.init == "pca" and (config.downsample, config.head_norm) != ("conv", False):
        faults.append("network.init: pca needs a network with downsample: conv and head_norm: false")
    return faults


def _phase_faults(recipe: TrainAutoencoderRecipe, phase: PhaseSettings, network: Autoencoder) -> list[str]:
    config = network.config
    faults = _resolution_faults(phase.resolution, config)
    if phase.batch_size < phase.accumulation * world_size():
        faults.append(
            f"batch_size: {phase.batch_size} does not give each of {world_size()} process(es) "
            f"something to do in each of {phase.accumulation} part(s)"
        )
    if phase.latent_channels and max(phase.latent_channels) > config.latent_channels:
        faults.append(
            f"latent_channels: {max(phase.latent_channels)} is more than the {config.latent_channels} there are"
        )
    if phase.adjacent_stages >= sum(depth > 0 for depth in config.encoder_depths):
        faults.append(f"adjacent_stages: {phase.adjacent_stages} leaves no stage untrained; train: [all] says so")
    if phase.losses.lpips_weights is not None and not Path(phase.losses.lpips_weights).is_dir():
        faults.append(f"losses.lpips_weights: {phase.losses.lpips_weights} is not a directory")
    if phase.losses.adversarial is not None:
        sharded = recipe.execution.sharding == "fsdp" and world_size() > 1
        faults += [
            f"losses.adversarial.{fault}" for fault in _adversarial_faults(phase.losses.adversarial, phase, sharded)
        ]
    return faults


def _adversarial_faults(settings: AdversarialSettings, phase: PhaseSettings, sharded: bool) -> list[str]:
    faults = []
    side = smallest_side(settings.discriminator.num_layers)
    if phase.resolution < side:
        faults.append(f"discriminator.num_layers: needs crops of at least {side} pixels, not {phase.resolution}")
    if settings.adaptive and sharded:
        faults.append("adaptive: needs whole weights, which `sharding: fsdp` spreads over processes; set it to false")
    return faults


def _resolution_faults(resolution: int, config: AutoencoderConfig) -> list[str]:
    f = config.spatial_compression_ratio
    if resolution % f == 0:
        return []
    nearest = max(f, round(resolution / f) * f)
    return [f"resolution: {resolution} is not a multiple of {f}, the network's compression; take {nearest}"]
