"""The autoencoder: its configuration, and the network (paper, section 3)."""

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcae_core.errors import DataError, UsageError, unknown_name
from dcae_core.models.config_values import (
    MAX_BLOCKS,
    MAX_CHANNELS,
    require_choice,
    require_count,
    require_counts,
    require_size,
)
from dcae_core.models.layers import (
    ACTIVATIONS,
    HEAD_CHANNELS,
    Downsample,
    RMSNorm2d,
    Upsample,
    average_channels,
    build_block,
    check_image_values,
    repeat_channels,
)

_CHOICES: dict[str, tuple[object, ...]] = {
    "downsample": ("pixel_unshuffle", "conv"),
    "upsample": ("pixel_shuffle", "interpolate"),
    "head_norm": (True, False),
    "head_act": (*ACTIVATIONS, None),
    "latent_shortcuts": (True, False),
    "residual_shortcuts": (True, False),
}
_CHOICES_PER_STAGE = {
    "encoder_blocks": ("res", "evit_glu"),
    "decoder_blocks": ("res", "evit_glu"),
    "decoder_norms": ("rms_norm", "batch_norm"),
    "decoder_acts": tuple(ACTIVATIONS),
}
_MAX_KERNEL_SIZE, _MAX_STAGES, _MAX_SCALES = 99, 16, 16
_PER_STAGE = ("widths", "depths", "blocks", "attention_scales")
_DECODER_PER_STAGE = ("norms", "acts")


@dataclass(frozen=True)
class AutoencoderConfig:
    """A deep-compression autoencoder (arXiv 2410.10733, section 4.1). Stage 0 has the highest resolution.

    Those fields of the decoder that are not listed are as for the encoder.

    Attributes:
        latent_channels: C of the latent (B, C, H/f, W/f), with f = 2 ** (number of stages - 1).
        encoder_widths: channels of each stage.
        encoder_depths: residual blocks of each stage. Stage 0 without blocks is folded into the stem; a later stage
            without blocks is its change of resolution alone.
        encoder_blocks: "res" or "evit_glu" for each stage.
        encoder_attention_scales: for each stage, the kernel sizes of further attention scales.
        decoder_norms: "rms_norm" or "batch_norm" for each stage (the encoder has "rms_norm" throughout).
        decoder_acts: "relu" or "silu" for each stage (the encoder has "silu" throughout).
        downsample: "pixel_unshuffle" or "conv".
        upsample: "pixel_shuffle" or "interpolate".
        head_norm: a norm before the decoder's last convolution.
        head_act: an activation before the decoder's last convolution: "relu", "silu" or None.
        latent_shortcuts: channel-averaging and channel-repeating shortcuts around the convolutions next to the latent.
        residual_shortcuts: the shortcuts around every change of resolution; False only to show what they bring.
        in_channels: channels of the image.
    """

    latent_channels: int
    encoder_widths: tuple[int, ...]
    encoder_depths: tuple[int, ...]
    encoder_blocks: tuple[str, ...]
    encoder_attention_scales: tuple[tuple[int, ...], ...]
    decoder_widths: tuple[int, ...]
    decoder_depths: tuple[int, ...]
    decoder_blocks: tuple[str, ...]
    decoder_attention_scales: tuple[tuple[int, ...], ...]
    decoder_norms: tuple[str, ...]
    decoder_acts: tuple[str, ...]
    downsample: str = "pixel_unshuffle"
    upsample: str = "pixel_shuffle"
    head_norm: bool = True
    head_act: str | None = "relu"
    latent_shortcuts: bool = True
    residual_shortcuts: bool = True
    in_channels: int = 3

    def __post_init__(self) -> None:
        self._check_values()
        self._check_stages()
        self._check_channels()
        sizes = [self._count_blocks_and_weights(side) for side in ("encoder", "decoder")]
        require_size("the autoencoder", *(sum(counts) for counts in zip(*sizes, strict=True)))

    @property
    def num_stages(self) -> int:
        """How many resolutions there are."""
        return len(self.encoder_widths)

    @property
    def spatial_compression_ratio(self) -> int:
        """f: pixels per latent position along each axis."""
        return 2 ** (self.num_stages - 1)

    def resamples(self, side: str, stage: int) -> bool:
        """Whether a stage of the "encoder" or "decoder" has a change of resolution to the next one inside it."""
        is_folded_into_stem = stage == 0 and getattr(self, f"{side}_depths")[0] == 0
        return stage + 1 < self.num_stages and not is_folded_into_stem

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `AutoencoderConfig.from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AutoencoderConfig":
        """The configuration with these field values, lists taken as tuples.

        UsageError at an unknown or missing field, or values that no network can be built from.
        """
        missing = [
            field.name
            for field in dataclasses.fields(cls)
            if field.default is dataclasses.MISSING and field.name not in values
        ]
        if missing:
            raise UsageError(f"autoencoder configuration lacks {', '.join(missing)}")
        _refuse_unknown(values, {field.name for field in dataclasses.fields(cls)})
        return cls(**{name: _as_tuples(value) for name, value in values.items()})

    def replace(self, **overrides: Any) -> "AutoencoderConfig":
        """The same configuration with some fields changed; errors as `from_dict`.

        `widths`, `depths`, `blocks` and `attention_scales` set encoder and decoder alike. Where the number of stages
        changes, each per-stage field that is not given keeps its first stages and repeats its last.
        """
        fields = {field.name for field in dataclasses.fields(self)}
        _refuse_unknown(overrides, fields | set(_PER_STAGE))
        values = self.to_dict()
        for name in _PER_STAGE:
            if name in overrides:
                shared = overrides.pop(name)
                overrides = {f"encoder_{name}": shared, f"decoder_{name}": shared} | overrides
        values |= {name: _as_tuples(value) for name, value in overrides.items()}
        require_counts("autoencoder encoder_widths", values["encoder_widths"], 1, MAX_CHANNELS)
        num_stages = len(values["encoder_widths"])
        for name in _per_stage_fields():
            if name not in overrides:
                values[name] = _resize(values[name], num_stages)
        return AutoencoderConfig(**values)

    def _check_values(self) -> None:
        """Each field by itself: of the right kind, and of a size that can be built."""
        for field, choices in _CHOICES.items():
            require_choice(f"autoencoder {field}", getattr(self, field), choices)
        for field in ("latent_channels", "in_channels"):
            require_count(f"autoencoder {field}", getattr(self, field), 1, MAX_CHANNELS)
        for side in ("encoder", "decoder"):
            require_counts(f"autoencoder {side}_widths", getattr(self, f"{side}_widths"), 1, MAX_CHANNELS)
            require_counts(f"autoencoder {side}_depths", getattr(self, f"{side}_depths"), 0, MAX_BLOCKS)
        for field in _per_stage_fields():
            if not isinstance(getattr(self, field), tuple):
                raise UsageError(f"autoencoder {field} must be a list, one entry a stage, not {getattr(self, field)!r}")
        for field, names in _CHOICES_PER_STAGE.items():
            for name in getattr(self, field):
                require_choice(f"autoencoder {field}", name, names)
        for side in ("encoder", "decoder"):
            for scales in getattr(self, f"{side}_attention_scales"):
                self._check_scales(f"autoencoder {side}_attention_scales", scales)

    @staticmethod
    def _check_scales(what: str, scales: object) -> None:
        require_counts(what, scales, 1, _MAX_KERNEL_SIZE)
        assert isinstance(scales, tuple)
        if len(scales) > _MAX_SCALES:
            raise UsageError(f"{what}: a stage has up to {_MAX_SCALES} scales, not {len(scales):,}")
        if any(scale % 2 == 0 for scale in scales):
            raise UsageError(f"{what}: a kernel size must be odd, so that it has a middle, not {scales}")

    def _check_stages(self) -> None:
        for field in _per_stage_fields():
            if len(getattr(self, field)) != self.num_stages:
                raise UsageError(
                    f"autoencoder {field} has {len(getattr(self, field))} entries, encoder_widths has {self.num_stages}"
                )
        if not 2 <= self.num_stages <= _MAX_STAGES:
            raise UsageError(f"an autoencoder has 2 to {_MAX_STAGES} stages, not {self.num_stages}")
        for side in ("encoder", "decoder"):
            for stage, (width, block) in enumerate(
                zip(getattr(self, f"{side}_widths"), getattr(self, f"{side}_blocks"), strict=True)
            ):
                if block == "evit_glu" and width % HEAD_CHANNELS:
                    raise UsageError(
                        f"autoencoder {side}_widths: evit_glu stage {stage} needs a multiple of {HEAD_CHANNELS}, "
                        f"not {width}"
                    )
        for stage, block in enumerate(self.decoder_blocks):
            if block == "evit_glu" and self.decoder_norms[stage] != "rms_norm":
                raise UsageError(f"autoencoder decoder_norms: evit_glu stage {stage} has rms_norm only")

    def _check_channels(self) -> None:
        encoder, decoder = self._resampled_widths("encoder"), self._resampled_widths("decoder")
        if self.downsample == "pixel_unshuffle" and any(out % 4 for _, out in encoder):
            raise UsageError("autoencoder encoder_widths: pixel_unshuffle needs multiples of 4")
        shortcuts_fit = all(4 * high % low == 0 for high, low in encoder + decoder)
        if self.residual_shortcuts and not shortcuts_fit:
            raise UsageError(
                "autoencoder widths: with residual_shortcuts, 4 times a stage's width must be a multiple of "
                "the next width"
            )
        if self.latent_shortcuts and (
            self.encoder_widths[-1] % self.latent_channels or self.decoder_widths[-1] % self.latent_channels
        ):
            raise UsageError(
                f"autoencoder latent_channels: with latent_shortcuts, {self.latent_channels} must divide the last "
                "stage's widths"
            )

    def _count_blocks_and_weights(self, side: str) -> tuple[int, int]:
        """About, from above: convolutions and projections of every block and every change of resolution."""
        widths, depths, blocks = (getattr(self, f"{side}_{name}") for name in ("widths", "depths", "blocks"))
        scales = getattr(self, f"{side}_attention_scales")
        weights = 9 * (self.latent_channels * widths[-1] + 4 * self.in_channels * max(widths[:2]))
        for width, depth, block, stage_scales in zip(widths, depths, blocks, scales, strict=True):
            per_block = 18 if block == "res" else 16 + len(stage_scales)
            local = sum(3 * width * (size**2 + HEAD_CHANNELS) for size in stage_scales)
            weights += depth * (per_block * width**2 + local)
        return sum(depths), weights + sum(36 * narrow * wide for narrow, wide in pairwise(widths))

    def _resampled_widths(self, side: str) -> list[tuple[int, int]]:
        """(high-resolution width, low-resolution width) of every change of resolution that has a shortcut."""
        widths, depths = getattr(self, f"{side}_widths"), getattr(self, f"{side}_depths")
        first = 0 if depths[0] > 0 else 1
        return list(zip(widths[first:-1], widths[first + 1 :], strict=True))


def _per_stage_fields() -> list[str]:
    both = [f"{side}_{name}" for side in ("encoder", "decoder") for name in _PER_STAGE]
    return both + [f"decoder_{name}" for name in _DECODER_PER_STAGE]


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _resize(values: tuple[Any, ...], length: int) -> tuple[Any, ...]:
    return values[:length] + values[-1:] * (length - len(values))


def _refuse_unknown(values: dict[str, Any], known: set[str]) -> None:
    for name in values:
        if name not in known:
            raise unknown_name("autoencoder setting", name, sorted(known))


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
