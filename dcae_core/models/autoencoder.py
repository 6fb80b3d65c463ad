"""The autoencoder network (paper, section 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcae_core.errors import DataError
from dcae_core.models.configs import AutoencoderConfig
from dcae_core.models.layers import (
    ACTIVATIONS,
    Downsample,
    RMSNorm2d,
    Upsample,
    average_channels,
    build_block,
    check_image_values,
    repeat_channels,
)


class EncoderHead(nn.Module):
    """Features to latent: a 3x3 convolution, with or without a channel-averaging shortcut."""

    def __init__(self, width: int, latent_channels: int, shortcut: bool) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.conv = nn.Conv2d(width, latent_channels, 3, padding=1)

    def forward(self, x: Tensor, latent_channels: int) -> Tensor:
        """(B, width, h, w) -> the leading `latent_channels` channels of the latent."""
        assert self.conv.bias is not None
        y = F.conv2d(x, self.conv.weight[:latent_channels], self.conv.bias[:latent_channels], padding=1)
        if self.shortcut:
            y = y + average_channels(x, self.conv.out_channels)[:, :latent_channels]
        return y


class DecoderStem(nn.Module):
    """Latent to features: a 3x3 convolution, with or without a channel-repeating shortcut."""

    def __init__(self, latent_channels: int, width: int, shortcut: bool) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.conv = nn.Conv2d(latent_channels, width, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, width, h, w); c may be fewer than all channels: the leading ones."""
        y = F.conv2d(z, self.conv.weight[:, : z.shape[1]], self.conv.bias, padding=1)
        if self.shortcut:
            whole = F.pad(z, (0, 0, 0, 0, 0, self.conv.in_channels - z.shape[1]))
            y = y + repeat_channels(whole, self.conv.out_channels)
        return y


class DecoderHead(nn.Module):
    """Features to image: norm, activation, convolution; with the last doubling where stage 0 has no blocks."""

    def __init__(self, width: int, config: AutoencoderConfig) -> None:
        super().__init__()
        self.norm = RMSNorm2d(width) if config.head_norm else nn.Identity()
        self.act = ACTIVATIONS[config.head_act]() if config.head_act else nn.Identity()
        self.out: nn.Module
        if config.decoder_depths[0] > 0:
            self.out = nn.Conv2d(width, config.in_channels, 3, padding=1)
        else:
            self.out = Upsample(width, config.in_channels, config.upsample, shortcut=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> (B, 3, H, W)."""
        return self.out(self.act(self.norm(x)))


class Encoder(nn.Module):
    """Image to latent: stem, stages from high to low resolution, head."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, depths = config.encoder_widths, config.encoder_depths
        self.stem: nn.Module
        if depths[0] > 0:
            self.stem = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        else:
            self.stem = Downsample(config.in_channels, widths[1], config.downsample, shortcut=False)
        self.stages = nn.ModuleList(self._build_stage(config, stage) for stage in range(config.num_stages))
        self.head = EncoderHead(widths[-1], config.latent_channels, config.latent_shortcuts)

    @staticmethod
    def _build_stage(config: AutoencoderConfig, stage: int) -> nn.Sequential:
        width, depth = config.encoder_widths[stage], config.encoder_depths[stage]
        kind, scales = config.encoder_blocks[stage], config.encoder_attention_scales[stage]
        layers = [build_block(kind, width, "rms_norm", "silu", scales) for _ in range(depth)]
        if config.resamples("encoder", stage):
            next_width = config.encoder_widths[stage + 1]
            layers.append(Downsample(width, next_width, config.downsample, config.residual_shortcuts))
        return nn.Sequential(*layers)

    def forward(self, x: Tensor, latent_channels: int) -> Tensor:
        """(B, 3, H, W) -> (B, latent_channels, H/f, W/f)."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x, latent_channels)


class Decoder(nn.Module):
    """Latent to image: stem, stages from low to high resolution (stage 0 is the last to run), head."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, depths = config.decoder_widths, config.decoder_depths
        self.stem = DecoderStem(config.latent_channels, widths[-1], config.latent_shortcuts)
        self.stages = nn.ModuleList(self._build_stage(config, stage) for stage in range(config.num_stages))
        self.head = DecoderHead(widths[0] if depths[0] > 0 else widths[1], config)

    @staticmethod
    def _build_stage(config: AutoencoderConfig, stage: int) -> nn.Sequential:
        width, depth = config.decoder_widths[stage], config.decoder_depths[stage]
        kind, scales = config.decoder_blocks[stage], config.decoder_attention_scales[stage]
        norm, act = config.decoder_norms[stage], config.decoder_acts[stage]
        layers: list[nn.Module] = []
        if config.resamples("decoder", stage):
            layers.append(Upsample(config.decoder_widths[stage + 1], width, config.upsample, config.residual_shortcuts))
        layers += [build_block(kind, width, norm, act, scales) for _ in range(depth)]
        return nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, 3, f * h, f * w)."""
        x = self.stem(z)
        for stage in reversed(self.stages):
            x = stage(x)
        return self.head(x)


class Autoencoder(nn.Module):
    """A deep-compression autoencoder: deterministic, with latents as the encoder gives them (unscaled).

    `scaling_factor` is what latents are multiplied by before a diffusion model, 1 / rms; None where not known.

    Source: DC-AE (arXiv 2410.10733), section 4.1; DC-AE 1.5 (arXiv 2508.00413) for leading latent channels.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.scaling_factor: float | None = None
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def spatial_compression_ratio(self) -> int:
        """f: pixels per latent position along each axis."""
        return self.config.spatial_compression_ratio

    @property
    def latent_channels(self) -> int:
        """C of a whole latent."""
        return self.config.latent_channels

    def encode(self, x: Tensor, latent_channels: int | None = None) -> Tensor:
        """Images to latents (B, C, H/f, W/f), unscaled.

        Args:
            x: (B, 3, H, W) in [-1, 1]; H and W multiples of f.
            latent_channels: only this many leading channels (DC-AE 1.5); all of them if None.

        Raises:
            DataError: a shape that does not fit, or values that are no float numbers in about [-1, 1].
        """
        f = self.spatial_compression_ratio
        if x.dim() != 4 or x.shape[1] != self.config.in_channels or x.shape[2] % f or x.shape[3] % f:
            raise DataError(
                f"the encoder takes (B, {self.config.in_channels}, H, W) with H and W multiples of {f}, "
                f"not {tuple(x.shape)}; pad or crop the image first"
            )
        check_image_values(x)
        channels = self.latent_channels if latent_channels is None else latent_channels
        self._check_latent_channels(channels)
        return self.encoder(x, channels)

    def decode(self, z: Tensor) -> Tensor:
        """Latents to images (B, 3, f * h, f * w), about [-1, 1], not clamped.

        Args:
            z: (B, c, h, w), unscaled; c is C, or fewer leading channels (DC-AE 1.5).

        Raises:
            DataError: a shape that does not fit.
        """
        if z.dim() != 4:
            raise DataError(f"the decoder takes (B, {self.latent_channels}, h, w), not {tuple(z.shape)}")
        self._check_latent_channels(z.shape[1])
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        """Images through the latent and back: (B, 3, H, W) in [-1, 1] to the same shape, not clamped."""
        return self.decode(self.encode(x))

    def _check_latent_channels(self, channels: int) -> None:
        if not 1 <= channels <= self.latent_channels:
            raise DataError(f"this autoencoder's latents have {self.latent_channels} channels, not {channels}")


def build_on_meta(config: AutoencoderConfig) -> Autoencoder:
    """The network without memory for its weights: for counting, or for loading with `assign=True`."""
    with torch.device("meta"):
        return Autoencoder(config)
