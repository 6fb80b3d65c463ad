"""Every released model, and the embedded ones: name -> network configuration, hub id, scaling factor, licence.

Source: tables 1 and 8 of arXiv 2410.10733, arXiv 2508.00413, and the released checkpoints themselves.
"""

import fnmatch
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcae_core.errors import UsageError, did_you_mean, near_names
from dcae_core.models import build_denoiser
from dcae_core.models.configs import ARCHITECTURES, AutoencoderConfig, DenoiserConfig, DiTConfig, UViTConfig

if TYPE_CHECKING:
    from torch import nn

    from dcae_core.models.autoencoder import Autoencoder

EMBEDDED_AUTOENCODER = "dc-ae-f32c32-tiny-1.0"
EMBEDDED_DENOISER = f"{EMBEDDED_AUTOENCODER}-usit-emoji-128px"
EMBEDDED_MODELS = Path(str(resources.files("dcae_core") / "embedded"))  # a directory for each, of its name
_LICENCE = "Apache-2.0"
_ORGANISATIONS = ("dc-ae-", "mit-han-lab/dc-ae-", "dc-ai/dc-ae-")
_COSTED_SIDE = 512  # pixels
_WIDTHS = (128, 256, 512, 512, 1024, 1024)


@dataclass(frozen=True)
class Cost:
    """How large a network is, and what one pass costs: facts, as counting takes seconds (`models/complexity.py`).

    Attributes:
        num_parameters: trained values.
        macs: multiply-accumulates of convolutions and matrix products, for one image of 512 x 512 pixels or its latent.
    """

    num_parameters: int
    macs: int


@dataclass(frozen=True)
class AutoencoderEntry:
    """One row of the zoo.

    Attributes:
        name: how the command line calls it.
        scaling_factor: what latents are multiplied by before a diffusion model; None where not published.
        costs: of the encoder and of the decoder.
        hub_id: repository in the original layout; None where the weights are not on the hub.
        diffusers_hub_id: repository in the diffusers layout, if there is one.
        licence: of the weights.
        whole: where this is the leading channels of another model's latent: that model's name.
    """

    name: str
    config: AutoencoderConfig
    scaling_factor: float | None
    costs: tuple[Cost, Cost]
    hub_id: str | None
    diffusers_hub_id: str | None = None
    licence: str = _LICENCE
    whole: str | None = None


def _config(
    latent_channels: int,
    widths: tuple[int, ...],
    encoder_depths: tuple[int, ...],
    decoder_depths: tuple[int, ...],
    **others: Any,
) -> AutoencoderConfig:
    """Encoder and decoder of the same widths; unless `others` say otherwise, of residual blocks, RMS norms and SiLU."""
    num_stages = len(widths)
    settings: dict[str, Any] = {
        "encoder_blocks": ("res",) * num_stages,
        "decoder_blocks": ("res",) * num_stages,
        "encoder_attention_scales": ((),) * num_stages,
        "decoder_attention_scales": ((),) * num_stages,
        "decoder_norms": ("rms_norm",) * num_stages,
        "decoder_acts": ("silu",) * num_stages,
    }
    return AutoencoderConfig(
        latent_channels=latent_channels,
        encoder_widths=widths,
        decoder_widths=widths,
        encoder_depths=encoder_depths,
        decoder_depths=decoder_depths,
        **settings | others,
    )


def _stages(first_three: str, others: str, num_stages: int) -> tuple[str, ...]:
    return (first_three,) * 3 + (others,) * (num_stages - 3)


def _version_1_0(latent_channels: int, *extra_widths: int) -> AutoencoderConfig:
    """Residual blocks in three stages, EViT-GLU in the others; BatchNorm in the decoder's first three."""
    widths = _WIDTHS + extra_widths
    num_stages = len(widths)
    blocks, twos = _stages("res", "evit_glu", num_stages), (2,) * (num_stages - 3)
    return _config(
        latent_channels,
        widths,
        (0, 4, 8, *twos),
        (0, 5, 10, *twos),
        encoder_blocks=blocks,
        decoder_blocks=blocks,
        decoder_norms=_stages("batch_norm", "rms_norm", num_stages),
        decoder_acts=_stages("relu", "silu", num_stages),
    )


def _sana() -> AutoencoderConfig:
    """A second, 5x5 scale in the attention; strided convolutions down, interpolation up."""
    blocks, scales = _stages("res", "evit_glu", 6), ((), (), (), (5,), (5,), (5,))
    return _config(
        32,
        _WIDTHS,
        (2, 2, 2, 3, 3, 3),
        (3, 3, 3, 3, 3, 3),
        encoder_blocks=blocks,
        decoder_blocks=blocks,
        encoder_attention_scales=scales,
        decoder_attention_scales=scales,
        downsample="conv",
        upsample="interpolate",
    )


def _lite() -> AutoencoderConfig:
    """The Sana encoder with a faster decoder of residual blocks."""
    return _sana().replace(
        decoder_depths=(0, 3, 5, 4, 4, 4),
        decoder_blocks=("res",) * 6,
        decoder_attention_scales=((),) * 6,
        upsample="pixel_shuffle",
        head_act="silu",
    )


def _all_residual(*extra_widths: int) -> AutoencoderConfig:
    """DC-AE 1.1 and 1.5: residual blocks everywhere, 128 latent channels, no shortcut next to the latent."""
    depths = (0, 5, 10, 4, 4, 4) + (4,) * len(extra_widths)
    return _config(128, _WIDTHS + extra_widths, depths, depths, head_act="silu", latent_shortcuts=False)


def _tiny() -> AutoencoderConfig:
    """The embedded model: reduced width, linear at the start of its training (recipes/train_ae/tiny.yaml)."""
    return _config(
        32,
        (16, 16, 64, 128, 256, 256),
        (0, 0, 0, 1, 1, 1),
        (0, 0, 1, 2, 2, 1),
        downsample="conv",
        head_norm=False,
        head_act=None,
    )


def _mit(
    name: str, config: AutoencoderConfig, scaling_factor: float | None, costs: tuple[Cost, Cost]
) -> AutoencoderEntry:
    hub_id = f"mit-han-lab/{name}"
    return AutoencoderEntry(name, config, scaling_factor, costs, hub_id, f"{hub_id}-diffusers")


_F32C32, _F64C128, _F128C512 = _version_1_0(32), _version_1_0(128, 2048), _version_1_0(512, 2048, 2048)

_COSTS = {
    "tiny": (Cost(3_698_720, 3_671_064_576), Cost(8_154_060, 10_097_786_880)),
    "f32c32": (Cost(123_172_384, 1_042_723_373_056), Cost(200_184_076, 1_384_726_921_216)),
    "f64c128": (Cost(264_550_528, 1_052_632_678_400), Cost(412_345_612, 1_398_260_105_216)),
    "f128c512": (Cost(415_661_056, 1_055_393_120_256), Cost(705_021_196, 1_402_832_486_400)),
    "sana": (Cost(153_027_104, 647_429_357_568), Cost(159_223_171, 1_046_056_009_728)),
    "lite": (Cost(153_027_104, 647_429_357_568), Cost(268_154_124, 939_264_049_152)),
    "f32c128": (Cost(228_609_408, 1_370_581_106_688), Cost(295_000_332, 1_480_656_420_864)),
    "f64c128-1.5": (Cost(306_478_720, 1_375_790_432_256), Cost(408_262_924, 1_487_677_685_760)),
}

AUTOENCODERS: dict[str, AutoencoderEntry] = {
    entry.name: entry
    for entry in (
        AutoencoderEntry(EMBEDDED_AUTOENCODER, _tiny(), 0.9878550997522865, _COSTS["tiny"], None),
        _mit("dc-ae-f32c32-in-1.0", _F32C32, 0.3189, _COSTS["f32c32"]),
        _mit("dc-ae-f32c32-mix-1.0", _F32C32, 0.4552, _COSTS["f32c32"]),
        _mit("dc-ae-f64c128-in-1.0", _F64C128, 0.2889, _COSTS["f64c128"]),
        _mit("dc-ae-f64c128-mix-1.0", _F64C128, 0.4538, _COSTS["f64c128"]),
        _mit("dc-ae-f128c512-in-1.0", _F128C512, 0.4883, _COSTS["f128c512"]),
        _mit("dc-ae-f128c512-mix-1.0", _F128C512, 0.3620, _COSTS["f128c512"]),
        _mit("dc-ae-f32c32-sana-1.0", _sana(), 0.41407, _COSTS["sana"]),
        _mit("dc-ae-f32c32-sana-1.1", _sana(), 0.41407, _COSTS["sana"]),
        _mit("dc-ae-f32c32-in-1.0-256px", _F32C32, None, _COSTS["f32c32"]),
        AutoencoderEntry(
            "dc-ae-lite-f32c32-sana-1.1",
            _lite(),
            0.41407,
            _COSTS["lite"],
            "dc-ai/dc-ae-lite-f32c32",
            "dc-ai/dc-ae-lite-f32c32-diffusers",
        ),
        AutoencoderEntry("dc-ae-f32c128-1.1", _all_residual(), None, _COSTS["f32c128"], None),
        AutoencoderEntry("dc-ae-f32c128-1.5", _all_residual(), None, _COSTS["f32c128"], "dc-ai/dc-ae-f32c128-1.5"),
        AutoencoderEntry(
            "dc-ae-f64c128-1.5", _all_residual(1024), 0.5935, _COSTS["f64c128-1.5"], "dc-ai/dc-ae-f64c128-1.5"
        ),
    )
}

LEADING_CHANNELS = tuple(range(16, 128, 16))


def _leading(entry: AutoencoderEntry, channels: int) -> AutoencoderEntry:
    """The autoencoder whose latent is the first channels of another's, on the same weights."""
    config, (encoder, decoder) = entry.config, entry.costs
    left_out = config.latent_channels - channels
    into, out_of = 9 * config.encoder_widths[-1] * left_out, 9 * config.decoder_widths[-1] * left_out
    positions = (_COSTED_SIDE // config.spatial_compression_ratio) ** 2
    return replace(
        entry,
        name=f"{entry.name}-c{channels}",
        config=config.replace(latent_channels=channels),
        costs=(
            Cost(encoder.num_parameters - into - left_out, encoder.macs - into * positions),
            Cost(decoder.num_parameters - out_of, decoder.macs - out_of * positions),
        ),
        whole=entry.name,
    )


# DC-AE 1.1 and 1.5 by their leading latent channels, as DC-Gen names them (figure 3 of arXiv 2508.00413).
CHANNEL_VARIANTS: dict[str, AutoencoderEntry] = {
    variant.name: variant
    for name in ("dc-ae-f32c128-1.1", "dc-ae-f32c128-1.5", "dc-ae-f64c128-1.5")
    for variant in (_leading(AUTOENCODERS[name], channels) for channels in LEADING_CHANNELS)
}


@dataclass(frozen=True)
class SamplingDefaults:
    """What a model draws, and how, where nobody says otherwise.

    Attributes:
        guidance_scale: of classifier-free guidance; 1 is none.
        sampler: None is the published one for what the network predicts.
        num_steps: with that sampler; None is the sampler's own default.
        classes: by name; None draws 16 at random.
    """

    guidance_scale: float = 1.0
    sampler: str | None = None
    num_steps: int | None = None
    classes: tuple[str, ...] | None = None


USUAL_SAMPLING = SamplingDefaults()


@dataclass(frozen=True)
class DenoiserEntry:
    """One diffusion network of the zoo; its repository holds the autoencoder too.

    Attributes:
        name: how the command line calls it.
        prediction: "epsilon", "epsilon_variance" or "velocity": what it was trained to predict.
        autoencoder: zoo name of the autoencoder whose latents it makes.
        cost: of one evaluation.
        hub_id: repository in the original layout; None for the embedded one.
        licence: of the weights.
        sampling: its own defaults.
    """

    name: str
    config: DenoiserConfig
    prediction: str
    autoencoder: str
    cost: Cost
    hub_id: str | None
    licence: str = _LICENCE
    sampling: SamplingDefaults = USUAL_SAMPLING


@dataclass(frozen=True)
class _Size:
    """What a diffusion network's name says about it."""

    config: DenoiserConfig
    prediction: str


def _uvit(prediction: str, depth: int, hidden_size: int, num_heads: int, **settings: Any) -> _Size:
    return _Size(UViTConfig(hidden_size=hidden_size, depth=depth, num_heads=num_heads, **settings), prediction)


_DENOISER_SIZES = {
    "uvit-s": _uvit("epsilon", 12, 512, 8),
    "uvit-h": _uvit("epsilon", 28, 1152, 16),
    "uvit-2b": _uvit("epsilon", 28, 2048, 32),
    "usit-h": _uvit("velocity", 28, 1152, 16),
    "usit-2b": _uvit("velocity", 28, 2048, 32),
    "dit-xl": _Size(DiTConfig(hidden_size=1152, depth=28, num_heads=16), "epsilon_variance"),
    "sit-xl": _Size(DiTConfig(hidden_size=1152, depth=28, num_heads=16, learned_variance=False), "velocity"),
}
_ADAPTIVE_SIZES = {
    "usit-2b": _uvit("velocity", 28, 2048, 32, adaptive_channels=True),
    "usit-3b": _uvit("velocity", 56, 2048, 32, adaptive_channels=True),
}


def _denoiser(size: str, autoencoder: str, suffix: str = "") -> DenoiserEntry:
    """One of the class-conditional models for ImageNet at 512 pixels."""
    found = (_ADAPTIVE_SIZES if autoencoder.endswith("-1.5") else _DENOISER_SIZES)[size]
    latent = AUTOENCODERS[autoencoder].config
    name = f"{autoencoder}-{size}-in-512px{suffix}"
    config = found.config.replace(
        input_size=512 // latent.spatial_compression_ratio, in_channels=latent.latent_channels
    )
    cost = _DENOISER_COSTS[size.replace("usit", "uvit"), autoencoder]
    return DenoiserEntry(name, config, found.prediction, autoencoder, cost, f"mit-han-lab/{name}")


_F32, _F64, _F64_1_5 = "dc-ae-f32c32-in-1.0", "dc-ae-f64c128-in-1.0", "dc-ae-f64c128-1.5"

_DENOISER_COSTS = {
    ("uvit-s", _F32): Cost(44_788_768, 12_256_890_880),
    ("uvit-h", _F32): Cost(500_868_896, 133_206_193_152),
    ("uvit-h", _F64): Cost(500_868_992, 33_243_632_640),
    ("uvit-2b", _F32): Cost(1_580_396_576, 414_821_466_112),
    ("uvit-2b", _F64): Cost(1_580_396_672, 104_637_349_888),
    ("dit-xl", _F32): Cost(674_890_048, 118_635_577_344),
    ("sit-xl", _F32): Cost(674_853_152, 118_626_140_160),
    ("uvit-2b", _F64_1_5): Cost(1_580_396_672, 104_637_349_888),
    ("uvit-3b", _F64_1_5): Cost(3_107_725_440, 205_900_890_112),
}

_EMOJI_CLASSES = """face-smiling face-affection face-hat cat-face monkey-face animal-mammal food-fruit drink
    plant-flower transport-ground flag heart time musical-instrument award-medal person-role"""
_EMOJI = DenoiserEntry(
    EMBEDDED_DENOISER,
    UViTConfig(input_size=4, hidden_size=256, depth=8, num_heads=4, num_classes=97, qk_norm=True),
    "velocity",
    EMBEDDED_AUTOENCODER,
    Cost(7_674_272, 138_610_688),
    hub_id=None,
    sampling=SamplingDefaults(guidance_scale=3.0, sampler="heun", num_steps=16, classes=tuple(_EMOJI_CLASSES.split())),
)

DENOISERS: dict[str, DenoiserEntry] = {
    entry.name: entry
    for entry in (
        _EMOJI,
        _denoiser("uvit-s", _F32),
        _denoiser("dit-xl", _F32),
        _denoiser("dit-xl", _F32, "-trainbs1024"),
        _denoiser("uvit-h", _F32),
        _denoiser("uvit-h", _F64),
        _denoiser("uvit-h", _F64, "-train2000k"),
        _denoiser("uvit-2b", _F32),
        _denoiser("uvit-2b", _F64),
        _denoiser("uvit-2b", _F64, "-train2000k"),
        _denoiser("usit-h", _F32),
        _denoiser("usit-2b", _F32),
        # Released with DC-Gen; their FIDs are not published beside them.
        _denoiser("sit-xl", _F32),
        _denoiser("usit-2b", _F64_1_5),
        _denoiser("usit-3b", _F64_1_5),
    )
}


def embedded_directory(name: str) -> Path:
    """Where a model of this name lies inside this package; not every copy of the package has all of them."""
    return EMBEDDED_MODELS / name


def list_models(pattern: str = "*") -> list[str]:
    """Names of the zoo that match a shell pattern: autoencoders, then diffusion models, the embedded one first.

    Names of leading channels (`dc-ae-f32c128-1.5-c32`) stand behind those of whole autoencoders.
    """
    return [name for name in (*AUTOENCODERS, *CHANNEL_VARIANTS, *DENOISERS) if fnmatch.fnmatchcase(name, pattern)]


def create_autoencoder(name: str, **overrides: Any) -> "Autoencoder":
    """Build a zoo network with random weights, on the CPU, in training mode.

    Args:
        name: a zoo name or hub id.
        overrides: fields of `AutoencoderConfig` to change, such as `latent_channels`, `widths`, `decoder_depths`.

    Raises:
        UsageError: no such model or field, or values that no network can be built from.
    """
    entry = find_autoencoder(name)
    if entry is None:
        raise unknown_model(name, list(AUTOENCODERS))
    from dcae_core.models.autoencoder import Autoencoder

    network = Autoencoder(entry.config.replace(**overrides))
    network.scaling_factor = None if overrides else entry.scaling_factor
    return network


def find_autoencoder(name: str) -> AutoencoderEntry | None:
    """The row that a zoo name or a hub id (either layout) stands for; None if there is none."""
    for entry in AUTOENCODERS.values():
        if name in (entry.name, f"mit-han-lab/{entry.name}", entry.hub_id, entry.diffusers_hub_id):
            return entry
    return CHANNEL_VARIANTS.get(name.rsplit("/", 1)[-1]) if name.startswith(_ORGANISATIONS) else None


def create_denoiser(name: str, **overrides: Any) -> "nn.Module":
    """Build a diffusion network with random weights, on the CPU, in training mode.

    Args:
        name: a zoo name or hub id, or an architecture, "uvit" or "dit".
        overrides: settings of `UViTConfig` or `DiTConfig` to change: `input_size`, `patch_size`, `in_channels`,
            `hidden_size`, `depth`, `num_heads`, `num_classes`, ...

    Returns:
        A module called as `forward(x, t, y)`, with the published parameter names.

    Raises:
        UsageError: no such model or setting, or values that no network can be built from.
    """
    if name in ARCHITECTURES:
        return build_denoiser(ARCHITECTURES[name]().replace(**overrides))
    entry = find_denoiser(name)
    if entry is None:
        raise unknown_model(name, [*DENOISERS, *ARCHITECTURES])
    return build_denoiser(entry.config.replace(**overrides))


def find_denoiser(name: str) -> DenoiserEntry | None:
    """The row that a zoo name or a hub id stands for; None if there is none."""
    return DENOISERS.get(name.removeprefix("mit-han-lab/"))


def unknown_model(name: str, known: list[str]) -> UsageError:
    """The error for a name that is not in the table where it is looked for, with the nearest names that are."""
    hint = did_you_mean(near_names(name.split("/")[-1], known, cutoff=0.4), "`dcae models` lists the names")
    if find_autoencoder(name) is not None:
        return UsageError(f"{name} is an autoencoder, which is not what is asked for here; {hint}")
    if find_denoiser(name) is not None:
        return UsageError(f"{name} is a diffusion model, which is not what is asked for here; {hint}")
    return UsageError(f"unknown model {name!r}: no zoo name, no hub id and no directory here; {hint}")
