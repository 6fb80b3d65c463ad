"""A train-ae recipe beside the networks, the files and the processes that it is to run with."""

from pathlib import Path

from dcae_core.checkpoints.locating import locate_autoencoder
from dcae_core.distributed import world_size
from dcae_core.errors import DcaeError, UsageError
from dcae_core.models.autoencoder import Autoencoder, build_on_meta
from dcae_core.models.autoencoder_config import AutoencoderConfig
from dcae_core.recipes.train_ae import NetworkSettings, PhaseSettings, TrainAutoencoderRecipe
from dcae_core.training.discriminator import smallest_side
from dcae_core.training.parts import stages_of
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
    """Faults that only show beside the network, the files and the processes, as "dotted.path: message"."""
    faults = _network_faults(recipe)
    for index, phase in enumerate(recipe.phases):
        faults += [f"phases.{index}.{fault}" for fault in _surroundings_faults(recipe, phase)]
    return faults


def check_autoencoder_network(recipe: TrainAutoencoderRecipe) -> list[str]:
    """The faults of `check_autoencoder_recipe` that need neither the run's files nor a download to be seen."""
    return [] if _is_elsewhere(recipe.network.weights) else _network_faults(recipe)


def _is_elsewhere(weights: str | None) -> bool:
    """Whether these may be a hub's, or another training's that is still to come: what network they are is not known."""
    return weights is not None and "/" in weights and not Path(weights).exists() and find_autoencoder(weights) is None


def _network_faults(recipe: TrainAutoencoderRecipe) -> list[str]:
    if (recipe.network.model is None) == (recipe.network.weights is None):
        return []  # a fault that the recipe itself reports
    try:
        config = configuration_of(recipe.network)
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
        side = smallest_side(num_layers)
        if phase.resolution < side:
            faults.append(
                f"losses.adversarial.discriminator.num_layers: {num_layers} need crops of at least {side} pixels, "
                f"not {phase.resolution}"
            )
    return faults


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
    faults = []
    if phase.batch_size < phase.accumulation * world_size():
        faults.append(
            f"batch_size: {phase.batch_size} does not give each of {world_size()} process(es) "
            f"something to do in each of {phase.accumulation} part(s)"
        )
    losses = phase.losses
    if losses.lpips_weights is not None and not Path(losses.lpips_weights).is_dir():
        faults.append(f"losses.lpips_weights: {losses.lpips_weights} is not a directory")
    is_sharded = recipe.execution.sharding == "fsdp" and world_size() > 1
    if losses.adversarial is not None and losses.adversarial.adaptive and is_sharded:
        faults.append(
            "losses.adversarial.adaptive: needs whole weights, which `sharding: fsdp` spreads over processes; "
            "set it to false"
        )
    return faults


def resolution_faults(resolution: int, config: AutoencoderConfig) -> list[str]:
    """What is wrong with pictures of this size, as "resolution: message"."""
    f = config.spatial_compression_ratio
    if resolution % f == 0:
        return []
    nearest = max(f, round(resolution / f) * f)
    return [f"resolution: {resolution} is not a multiple of {f}, the network's compression; take {nearest}"]
