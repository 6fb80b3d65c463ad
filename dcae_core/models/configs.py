"""What describes a network: every field checked, and no torch, so that the zoo can be listed at once."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

from dcae_core.errors import UsageError, unknown_name
from dcae_core.models.config_values import (
    MAX_BLOCKS,
    MAX_CHANNELS,
    require_choice,
    require_count,
    require_counts,
    require_size,
)

HEAD_CHANNELS = 32  # of each head in the autoencoders' linear attention
_CHOICES: dict[str, tuple[object, ...]] = {
    "downsample": ("pixel_unshuffle", "conv"),
    "upsample": ("pixel_shuffle", "interpolate"),
    "head_norm": (True, False),
    "head_act": ("relu", "silu", None),
    "latent_shortcuts": (True, False),
    "residual_shortcuts": (True, False),
}
_CHOICES_PER_STAGE = {
    "encoder_blocks": ("res", "evit_glu"),
    "decoder_blocks": ("res", "evit_glu"),
    "decoder_norms": ("rms_norm", "batch_norm"),
    "decoder_acts": ("relu", "silu"),
}
_MAX_KERNEL_SIZE, _MAX_STAGES, _MAX_SCALES = 99, 16, 16
_PER_STAGE = ("widths", "depths", "blocks", "attention_scales")
_DECODER_PER_STAGE = ("norms", "acts")
_MAX_CLASSES, _MAX_SIDE = 1 << 20, 1 << 20


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


@dataclass(frozen=True)
class DenoiserConfig:
    """What every network of the form `forward(x, t, y)` is described by.

    Attributes:
        input_size: height and width of the latent; one number stands for a square.
        patch_size: side of the square of latent positions that makes one token; divides both sides.
        in_channels: channels of the latent.
        hidden_size: width of a token, a multiple of `num_heads`.
        depth: number of transformer blocks.
        num_heads: attention heads.
        num_classes: classes 0..num_classes-1; class `num_classes` is the null class. 0: unconditional.
        qk_norm: RMS norm of queries and keys in each head, which keeps attention's logits from growing in long or
            half-precision trainings (arXiv 2302.05442); none of the released networks has it.
    """

    architecture: ClassVar[str]

    input_size: int | tuple[int, int] = 16
    patch_size: int = 1
    in_channels: int = 32
    hidden_size: int = 512
    depth: int = 12
    num_heads: int = 8
    num_classes: int = 1000
    qk_norm: bool = False

    def __post_init__(self) -> None:
        limits = {"patch_size": MAX_CHANNELS, "in_channels": MAX_CHANNELS, "hidden_size": MAX_CHANNELS}
        for name, limit in (limits | {"depth": MAX_BLOCKS, "num_heads": MAX_CHANNELS}).items():
            require_count(f"{self.architecture} {name}", getattr(self, name), 1, limit)
        require_count(f"{self.architecture} num_classes (0: unconditional)", self.num_classes, 0, _MAX_CLASSES)
        self._check_input_size()
        for field in dataclasses.fields(self):
            if isinstance(field.default, bool):
                require_choice(f"{self.architecture} {field.name}", getattr(self, field.name), (True, False))
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise UsageError(
                f"{self.architecture} hidden_size {self.hidden_size} must be a multiple of 4 "
                f"and of num_heads {self.num_heads}"
            )
        if any(side % self.patch_size for side in self.latent_size):
            raise UsageError(
                f"{self.architecture} input_size {self.input_size} must be a multiple of patch_size {self.patch_size}"
            )

        self._check_size()

    def _check_size(self) -> None:
        """From above: attention and MLP of every block, the table of classes, patches in and out."""
        width, patch = self.hidden_size, self.patch_size**2 * self.in_channels
        weights = self.depth * 24 * width**2 + (self.num_classes + 1) * width + 3 * patch * width
        require_size(f"the {self.architecture}", self.depth, weights)

    def _check_input_size(self) -> None:
        size = self.input_size
        if isinstance(size, tuple) and len(size) != 2:
            raise UsageError(f"{self.architecture} input_size is one number or (height, width), not {size}")
        for side in size if isinstance(size, tuple) else (size,):
            require_count(f"{self.architecture} input_size", side, 1, _MAX_SIDE)

    @property
    def latent_size(self) -> tuple[int, int]:
        """(height, width) of the latent."""
        size = self.input_size
        return size if isinstance(size, tuple) else (size, size)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        height, width = self.latent_size
        return height // self.patch_size, width // self.patch_size

    @property
    def out_channels(self) -> int:
        """Channels of the prediction."""
        return self.in_channels

    def takes_channels(self, channels: int) -> bool:
        """Whether latents may have so many channels."""
        return channels == self.in_channels

    def require_latent(self, shape: Sequence[int]) -> None:
        """Refuse, with UsageError, latents whose shape is not (B, in_channels, *latent_size)."""
        channels, height, width = self.in_channels, *self.latent_size
        if len(shape) == 4 and self.takes_channels(shape[1]):
            channels = shape[1]
        if len(shape) != 4 or tuple(shape[1:]) != (channels, height, width):
            raise UsageError(
                f"this {self.architecture} takes latents (B, {channels}, {height}, {width}), not {tuple(shape)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, `architecture` among them; `denoiser_config` reads them back."""
        return {"architecture": self.architecture} | dataclasses.asdict(self)

    def replace(self, **overrides: Any) -> Self:
        """The same configuration with some fields changed.

        UsageError at an unknown field, or values that no network can be built from.
        """
        fields = [field.name for field in dataclasses.fields(self)]
        for name in overrides:
            if name not in fields:
                raise unknown_name(f"{self.architecture} setting", name, fields)
        if isinstance(overrides.get("input_size"), list):
            overrides["input_size"] = tuple(overrides["input_size"])
        return dataclasses.replace(self, **overrides)


@dataclass(frozen=True)
class UViTConfig(DenoiserConfig):
    """A U-ViT. `depth` is even: half of the blocks before the middle one, half after it, the middle one not counted.

    `attention_float32`: attention in float32 whatever the working dtype, as published (parity only).
    `adaptive_channels`: latents may have fewer channels than `in_channels`, the leading ones: the patch convolution and
    the output layer then use their first channels. The parameters are the same with and without.
    """

    architecture = "uvit"

    attention_float32: bool = False
    adaptive_channels: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth % 2:
            raise UsageError(f"uvit depth must be even, not {self.depth}")

    def takes_channels(self, channels: int) -> bool:
        """Whether latents may have so many channels."""
        return channels == self.in_channels or (self.adaptive_channels and 1 <= channels < self.in_channels)


@dataclass(frozen=True)
class DiTConfig(DenoiserConfig):
    """A DiT.

    With `learned_variance`, it predicts beside the noise where the variance lies in its range: twice the channels.
    """

    architecture = "dit"

    hidden_size: int = 384
    num_heads: int = 6
    learned_variance: bool = True

    @property
    def out_channels(self) -> int:
        """Channels of the prediction."""
        return 2 * self.in_channels if self.learned_variance else self.in_channels


ARCHITECTURES: dict[str, type[DenoiserConfig]] = {config.architecture: config for config in (UViTConfig, DiTConfig)}


def denoiser_config(values: dict[str, Any]) -> DenoiserConfig:
    """The configuration with these values; `architecture` says of which network, what is left out has its default.

    UsageError at an unknown architecture or setting, or values that no network can be built from.
    """
    settings = dict(values)
    architecture = settings.pop("architecture", None)
    if architecture not in ARCHITECTURES:
        raise unknown_name("diffusion network", architecture, ARCHITECTURES)
    return ARCHITECTURES[architecture]().replace(**settings)
