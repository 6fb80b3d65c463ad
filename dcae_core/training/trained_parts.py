"""The parts of networks: those an autoencoder trains while the rest stays bit for bit as it is, and all blocks."""

from collections.abc import Iterable

from torch import nn

from dcae_core.models import dit, uvit
from dcae_core.models.autoencoder import Autoencoder


def modules_of_part(network: Autoencoder, part: str, adjacent_stages: int = 0) -> list[nn.Module]:
    """The modules that a part's name stands for, without overlap among themselves.

    Parts are all, encoder, decoder, encoder_stem, encoder_head, decoder_stem and decoder_head; `adjacent_stages`
    beside a stem or head count as part of it, see `stages_of`.
    """
    encoder, decoder = network.encoder, network.decoder
    if part == "all":
        return [network]
    if part in ("encoder", "decoder"):
        return [getattr(network, part)]
    side, end = part.split("_")
    stages = stages_of(network, side)
    if part in ("encoder_head", "decoder_stem"):
        stages.reverse()
    return [getattr(encoder if side == "encoder" else decoder, end), *stages[:adjacent_stages]]


def stages_of(network: Autoencoder, side: str) -> list[nn.Module]:
    """The stages of the "encoder" or "decoder" that have anything to train, from high resolution to low."""
    stages = network.encoder.stages if side == "encoder" else network.decoder.stages
    return [stage for stage in stages if next(stage.children(), None)]


def train_only(network: Autoencoder, parts: Iterable[str], adjacent_stages: int = 0) -> None:
    """Let gradients reach the named parts alone. `set_training_mode` then keeps frozen norms' statistics."""
    network.requires_grad_(False)
    for part in parts:
        for module in modules_of_part(network, part, adjacent_stages):
            module.requires_grad_(True)


def set_training_mode(network: nn.Module) -> None:
    """Training mode for modules that have something to train, evaluation mode (frozen statistics) for the others."""
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        module.training = any(parameter.requires_grad for parameter in own)


def count_trained(network: nn.Module) -> tuple[int, int]:
    """(trained, all) parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def blocks_of(network: Autoencoder) -> list[nn.Module]:
    """The residual and resampling blocks of all stages: what memory is saved by, one at a time."""
    stages = [*network.encoder.stages, *network.decoder.stages]
    return [block for stage in stages for block in stage.children()]


def transformer_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of a diffusion network."""
    return [module for module in network.modules() if isinstance(module, (dit.Block, uvit.Block))]
