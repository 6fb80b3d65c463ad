"""Starting an autoencoder as the best linear code of its data.

A network with strided-convolution downsampling, convolution + pixel-shuffle upsampling, no norm or activation before
the decoder's output, and the last norm of every residual block at zero is linear: each block is the identity. A PCA
of 2x2 blocks, stage after stage, minus what the residual shortcuts already do, makes it reproduce that code exactly.
The first stages' principal components are thus the starting point, and training adds what a linear code cannot do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcae_core.errors import UsageError
from dcae_core.models.autoencoder import Autoencoder, Decoder, Encoder
from dcae_core.models.layers import (
    FACTOR,
    Downsample,
    EViTGLUBlock,
    ResBlock,
    Upsample,
    average_channels,
    repeat_channels,
)


@torch.no_grad()
def initialise_pca(network: Autoencoder, images: Tensor) -> None:
    """Make `network` the stagewise PCA code of `images`, in place; UsageError if its configuration is not linear.

    Each stage keeps as many components of the 2x2 blocks of the stage before as it has channels, and the latent keeps
    the strongest `latent_channels` of the last stage. The PCA is uncentred: the constant is one of its components.
    Costs one covariance per stage: seconds on a CPU for a few hundred images.

    Args:
        network: encoder and decoder of equal widths, `downsample="conv"`, `upsample="pixel_shuffle"`, no head norm,
            no head activation.
        images: (N, 3, H, W) in [-1, 1], H and W multiples of f.
    """
    _check(network)
    features = images.float()
    for block in network.modules():
        _silence(block)
    encoder_steps = [layer for layer in _resampling_layers(network.encoder) if isinstance(layer, Downsample)]
    decoder_steps = [layer for layer in _resampling_layers(network.decoder) if isinstance(layer, Upsample)]
    for down, up in zip(encoder_steps, reversed(decoder_steps), strict=True):
        blocks = F.pixel_unshuffle(features, FACTOR)
        basis = _principal_components(blocks, down.out_channels)
        _set_downsample(down, basis)
        _set_upsample(up, basis)
        features = F.conv2d(blocks, basis[:, :, None, None])
    basis = _principal_components(features, network.latent_channels)
    _set_latent_layers(network, basis)


def _check(network: Autoencoder) -> None:
    config = network.config
    linear = (
        config.downsample == "conv"
        and config.upsample == "pixel_shuffle"
        and not config.head_norm
        and config.head_act is None
        and config.encoder_widths[1:] == config.decoder_widths[1:]
        and config.encoder_depths[0] == config.decoder_depths[0] == 0
    )
    if not linear:
        raise UsageError(
            "init: pca needs downsample: conv, upsample: pixel_shuffle, head_norm: false, head_act: null, equal "
            "encoder and decoder widths, and no blocks in stage 0"
        )


def _silence(module: nn.Module) -> None:
    """A residual block becomes the identity: the norm at its end gives zero."""
    if isinstance(module, ResBlock):
        norms = [module.norm]
    elif isinstance(module, EViTGLUBlock):
        norms = [module.attention.norm, module.mlp.norm]
    else:
        norms = []
    for norm in norms:
        _clear(norm)


def _clear(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _resampling_layers(side: Encoder | Decoder) -> list[nn.Module]:
    """In the order of resolution, highest first."""
    edge = side.stem if isinstance(side, Encoder) else side.head.out
    in_stages = [
        layer for stage in side.stages for layer in stage.children() if isinstance(layer, (Downsample, Upsample))
    ]
    return [edge, *in_stages] if isinstance(edge, Downsample) else [*reversed(in_stages), edge]


def _principal_components(features: Tensor, count: int) -> Tensor:
    """The strongest directions of (N, C, H, W) over C, as rows (count, C); zero rows where C is smaller."""
    channels = features.shape[1]
    second_moment = torch.zeros(channels, channels, dtype=torch.float64)
    for feature in features:
        positions = feature.flatten(1).double()
        second_moment += positions @ positions.T
    vectors = torch.linalg.eigh(second_moment).eigenvectors.flip(1).T[:count]
    return F.pad(vectors, (0, 0, 0, count - vectors.shape[0])).to(features.dtype)


def _set_downsample(layer: Downsample, basis: Tensor) -> None:
    """A 3x3 convolution of stride 2 and padding 1 sees each 2x2 block in the last two rows and columns."""
    in_channels = layer.conv.in_channels
    matrix = basis.clone()
    if layer.shortcut:
        identity = torch.eye(in_channels * FACTOR**2)[:, :, None, None]
        matrix -= average_channels(identity, layer.out_channels).squeeze((2, 3)).T
    _clear(layer.conv)
    layer.conv.weight[:, :, 1:, 1:] = matrix.unflatten(1, (in_channels, FACTOR, FACTOR))


def _set_upsample(layer: Upsample, basis: Tensor) -> None:
    matrix = basis.T.clone()
    in_channels = layer.conv.in_channels
    if layer.shortcut:
        identity = torch.eye(in_channels)[:, :, None, None]
        matrix -= repeat_channels(identity, layer.out_channels * FACTOR**2).squeeze((2, 3)).T
    _set_centre(layer.conv, matrix)


def _set_latent_layers(network: Autoencoder, basis: Tensor) -> None:
    width = basis.shape[1]
    to_latent, from_latent = basis.clone(), basis.T.clone()
    if network.config.latent_shortcuts:
        average = average_channels(torch.eye(width)[:, :, None, None], network.latent_channels)
        repeat = repeat_channels(torch.eye(network.latent_channels)[:, :, None, None], width)
        to_latent -= average.squeeze((2, 3)).T
        from_latent -= repeat.squeeze((2, 3)).T
    _set_centre(network.encoder.head.conv, to_latent)
    _set_centre(network.decoder.stem.conv, from_latent)


def _set_centre(conv: nn.Conv2d, matrix: Tensor) -> None:
    """Make a 3x3 convolution the 1x1 convolution by `matrix` (out, in)."""
    _clear(conv)
    conv.weight[:, :, 1, 1] = matrix
