"""What the two published layouts of autoencoders call each parameter and each setting, and what we call it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcae_core.checkpoints.hub import DIFFUSERS_WEIGHTS_NAME
from dcae_core.errors import CheckpointError, UsageError
from dcae_core.models.configs import HEAD_CHANNELS, AutoencoderConfig
from dcae_core.weights import WEIGHT_SUFFIXES

OWN_CONFIG_NAME = "dcae.json"
DIFFUSERS_CLASS_NAME = "AutoencoderDC"
DIFFUSERS_INDEX_NAME = f"{DIFFUSERS_WEIGHTS_NAME}.index.json"

_ORIGINAL_RES = {"conv1": "main.conv1.conv", "conv2": "main.conv2.conv", "norm": "main.conv2.norm"}
_ORIGINAL_EVIT_GLU = {
    "attention.qkv": "context_module.main.qkv.conv",
    "attention.proj": "context_module.main.proj.conv",
    "attention.norm": "context_module.main.proj.norm",
    "mlp.expand": "local_module.main.inverted_conv.conv",
    "mlp.depthwise": "local_module.main.depth_conv.conv",
    "mlp.project": "local_module.main.point_conv.conv",
    "mlp.norm": "local_module.main.point_conv.norm",
}
_ORIGINAL_ATTENTION_SCALE = {
    "attention.scales.{}.depthwise": "context_module.main.aggreg.{}.0",
    "attention.scales.{}.pointwise": "context_module.main.aggreg.{}.1",
}
_DIFFUSERS_RES = {"conv1": "conv1", "conv2": "conv2", "norm": "norm"}
_DIFFUSERS_EVIT_GLU = {
    "attention.qkv": "attn",
    "attention.proj": "attn.to_out",
    "attention.norm": "attn.norm_out",
    "mlp.expand": "conv_out.conv_inverted",
    "mlp.depthwise": "conv_out.conv_depth",
    "mlp.project": "conv_out.conv_point",
    "mlp.norm": "conv_out.norm",
}
_DIFFUSERS_ATTENTION_SCALE = {
    "attention.scales.{}.depthwise": "attn.to_qkv_multiscale.{}.proj_in",
    "attention.scales.{}.pointwise": "attn.to_qkv_multiscale.{}.proj_out",
}
_DIFFUSERS_QKV = ("to_q", "to_k", "to_v")
_DIFFUSERS_BLOCKS = {"res": "ResBlock", "evit_glu": "EfficientViTBlock"}
# AutoencoderDC's setting -> ours, and what it takes for a setting that its config.json leaves out.
_DIFFUSERS_SETTINGS: dict[str, tuple[str, Any]] = {
    "in_channels": ("in_channels", 3),
    "latent_channels": ("latent_channels", 32),
    "encoder_block_types": ("encoder_blocks", "ResBlock"),
    "decoder_block_types": ("decoder_blocks", "ResBlock"),
    "encoder_block_out_channels": ("encoder_widths", (128, 256, 512, 512, 1024, 1024)),
    "decoder_block_out_channels": ("decoder_widths", (128, 256, 512, 512, 1024, 1024)),
    "encoder_layers_per_block": ("encoder_depths", (2, 2, 2, 3, 3, 3)),
    "decoder_layers_per_block": ("decoder_depths", (3, 3, 3, 3, 3, 3)),
    "encoder_qkv_multiscales": ("encoder_attention_scales", ((), (), (), (5,), (5,), (5,))),
    "decoder_qkv_multiscales": ("decoder_attention_scales", ((), (), (), (5,), (5,), (5,))),
    "upsample_block_type": ("upsample", "pixel_shuffle"),
    "downsample_block_type": ("downsample", "pixel_unshuffle"),
    "decoder_norm_types": ("decoder_norms", "rms_norm"),
    "decoder_act_fns": ("decoder_acts", "silu"),
    "encoder_out_shortcut": ("latent_shortcuts", True),
    "decoder_in_shortcut": ("latent_shortcuts", True),
    "decoder_conv_act_fn": ("head_act", "relu"),
}


@dataclass(frozen=True)
class LayerNames:
    """What a layout calls the layers that have parameters.

    The first five are key prefixes: of the first convolution, of those to and from the latent, of the norm before the
    last convolution, and of that.

    Attributes:
        stages: for "encoder" and "decoder", the key prefix of a stage; {} is its number.
        resampling: for "encoder" and "decoder", the convolution within a change of resolution.
        res: our names within a block of this kind -> theirs.
        evit_glu: as `res`.
        attention_scale: as `res`, for each further scale of a block's attention; {} is its number.
    """

    encoder_stem: str
    encoder_head: str
    decoder_stem: str
    decoder_norm: str
    decoder_out: str
    stages: dict[str, str]
    resampling: dict[str, str]
    res: dict[str, str]
    evit_glu: dict[str, str]
    attention_scale: dict[str, str]


def _key_prefixes(config: AutoencoderConfig, names: LayerNames) -> dict[str, str]:
    """Our prefix -> theirs for every layer; the parameter's own name (weight, running_mean, ...) follows both."""
    prefixes = {
        "encoder.stem" if config.encoder_depths[0] else "encoder.stem.conv": names.encoder_stem,
        "encoder.head.conv": names.encoder_head,
        "decoder.stem.conv": names.decoder_stem,
        "decoder.head.out" if config.decoder_depths[0] else "decoder.head.out.conv": names.decoder_out,
    }
    if config.head_norm:
        prefixes["decoder.head.norm"] = names.decoder_norm
    for side in ("encoder", "decoder"):
        for stage in range(config.num_stages):
            prefixes |= _stage_prefixes(config, names, side, stage)
    return prefixes


def _stage_prefixes(config: AutoencoderConfig, names: LayerNames, side: str, stage: int) -> dict[str, str]:
    """The encoder's stages end with their change of resolution, the decoder's begin with it."""
    block = _block_names(
        names, getattr(config, f"{side}_blocks")[stage], getattr(config, f"{side}_attention_scales")[stage]
    )
    items = [block] * getattr(config, f"{side}_depths")[stage]
    if config.resamples(side, stage):
        items.insert(len(items) if side == "encoder" else 0, {"conv": names.resampling[side]})
    ours, theirs = f"{side}.stages.{stage}", names.stages[side].format(stage)
    return {
        f"{ours}.{index}.{our_name}": f"{theirs}.{index}.{their_name}"
        for index, layers in enumerate(items)
        for our_name, their_name in layers.items()
    }


def _block_names(names: LayerNames, kind: str, scales: tuple[int, ...]) -> dict[str, str]:
    if kind == "res":
        return names.res
    further = {
        ours.format(scale): theirs.format(scale)
        for scale in range(len(scales))
        for ours, theirs in names.attention_scale.items()
    }
    return names.evit_glu | further


def _original_prefixes(config: AutoencoderConfig) -> dict[str, str]:
    down = "conv.conv" if config.downsample == "pixel_unshuffle" else "conv"
    # What has a shortcut beside it is called main.
    resampling, latent = ("main." if beside else "" for beside in (config.residual_shortcuts, config.latent_shortcuts))
    # The published op_list leaves out a norm or an activation that is absent, so the convolution's place moves.
    last = int(config.head_norm) + int(config.head_act is not None)
    names = LayerNames(
        encoder_stem=f"encoder.project_in.{'conv' if config.encoder_depths[0] else down}",
        encoder_head=f"encoder.project_out.{latent}op_list.0.conv",
        decoder_stem=f"decoder.project_in.{latent}conv",
        decoder_norm="decoder.project_out.op_list.0",
        decoder_out=f"decoder.project_out.op_list.{last}.{'conv' if config.decoder_depths[0] else 'conv.conv'}",
        stages={"encoder": "encoder.stages.{}.op_list", "decoder": "decoder.stages.{}.op_list"},
        resampling={"encoder": f"{resampling}{down}", "decoder": f"{resampling}conv.conv"},
        res=_ORIGINAL_RES,
        evit_glu=_ORIGINAL_EVIT_GLU,
        attention_scale=_ORIGINAL_ATTENTION_SCALE,
    )
    return _key_prefixes(config, names)


def _diffusers_prefixes(config: AutoencoderConfig) -> dict[str, str]:
    """The prefix of q, k and v is their common parent."""
    names = LayerNames(
        encoder_stem="encoder.conv_in" if config.encoder_depths[0] else "encoder.conv_in.conv",
        encoder_head="encoder.conv_out",
        decoder_stem="decoder.conv_in",
        decoder_norm="decoder.norm_out",
        decoder_out="decoder.conv_out" if config.decoder_depths[0] else "decoder.conv_out.conv",
        stages={"encoder": "encoder.down_blocks.{}", "decoder": "decoder.up_blocks.{}"},
        resampling={"encoder": "conv", "decoder": "conv"},
        res=_DIFFUSERS_RES,
        evit_glu=_DIFFUSERS_EVIT_GLU,
        attention_scale=_DIFFUSERS_ATTENTION_SCALE,
    )
    return _key_prefixes(config, names)


def to_original(config: AutoencoderConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the original key names; tensors are shared, not copied."""
    prefixes = _original_prefixes(config)
    return {_rename(key, prefixes): tensor for key, tensor in state.items()}


def from_original(config: AutoencoderConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An original state dict under our key names; keys that are not theirs stay as they are, for the strict check."""
    prefixes = {theirs: ours for ours, theirs in _original_prefixes(config).items()}
    return {_rename(key, prefixes): tensor for key, tensor in state.items()}


def _rename(key: str, prefixes: dict[str, str]) -> str:
    prefix, _, parameter = key.rpartition(".")
    return f"{prefixes[prefix]}.{parameter}" if prefix in prefixes else key


def to_diffusers(config: AutoencoderConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under AutoencoderDC's key names and shapes."""
    converted = {}
    prefixes = _diffusers_prefixes(config)
    for key, tensor in state.items():
        prefix, _, parameter = key.rpartition(".")
        theirs = prefixes[prefix]
        if prefix.endswith(".attention.qkv"):
            for name, third in zip(_DIFFUSERS_QKV, tensor.flatten(1).chunk(3), strict=True):
                converted[f"{theirs}.{name}.{parameter}"] = third.contiguous()
        elif prefix.endswith(".attention.proj"):
            converted[f"{theirs}.{parameter}"] = tensor.flatten(1)
        else:
            converted[f"{theirs}.{parameter}"] = tensor
    return converted


def from_diffusers(config: AutoencoderConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An AutoencoderDC state dict under our names; keys that are not theirs stay, for the strict check."""
    converted = dict(state)
    for ours, theirs in _diffusers_prefixes(config).items():
        if ours.endswith(".attention.qkv"):
            parts = [f"{theirs}.{name}.weight" for name in _DIFFUSERS_QKV]
            if all(part in converted for part in parts):
                converted[f"{ours}.weight"] = torch.cat([converted.pop(part) for part in parts])[:, :, None, None]
            continue
        for parameter in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            if (tensor := converted.pop(f"{theirs}.{parameter}", None)) is not None:
                is_linear = ours.endswith(".attention.proj") and tensor.dim() == 2
                converted[f"{ours}.{parameter}"] = tensor[:, :, None, None] if is_linear else tensor
    return converted


def to_diffusers_config(config: AutoencoderConfig, scaling_factor: float | None) -> dict[str, Any]:
    """What `AutoencoderDC.from_config` builds the same network from; an unknown scaling factor becomes 1.

    UsageError where AutoencoderDC cannot express the configuration.
    """
    for differs, theirs in (
        (not config.head_norm or config.head_act is None, "has a norm and an activation before its last convolution"),
        (not config.residual_shortcuts, "has residual shortcuts around changes of resolution"),
        (0 in config.encoder_depths[1:] + config.decoder_depths[1:], "has blocks in every stage after the first"),
    ):
        if differs:
            raise UsageError(
                f"diffusers' AutoencoderDC always {theirs}; this configuration has not, so only the dcae layout can "
                "hold it (--to dcae)"
            )
    ours = config.to_dict()
    for blocks in ("encoder_blocks", "decoder_blocks"):
        ours[blocks] = [_DIFFUSERS_BLOCKS[block] for block in ours[blocks]]
    return {
        "_class_name": DIFFUSERS_CLASS_NAME,
        "attention_head_dim": HEAD_CHANNELS,
        **{theirs: _as_lists(ours[name]) for theirs, (name, _) in _DIFFUSERS_SETTINGS.items()},
        "scaling_factor": 1.0 if scaling_factor is None else scaling_factor,
    }


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def note_on_diffusers(config: AutoencoderConfig) -> str | None:
    """A line about the versions of diffusers that open this network, where not all that know AutoencoderDC do."""
    if config.latent_shortcuts and config.head_act == "relu":
        return None
    return (
        "diffusers below 0.35 does not know all settings of this network: it opens the directory without a word and "
        "computes something else (reconstructions 0.15 to 0.96 off); use diffusers 0.35 or newer"
    )


def from_diffusers_config(values: dict[str, Any]) -> AutoencoderConfig:
    """The configuration that an AutoencoderDC `config.json` describes.

    CheckpointError at values that this network has no counterpart for.
    """
    given = {key: value for key, value in values.items() if value is not None}
    if given.get("attention_head_dim", HEAD_CHANNELS) != HEAD_CHANNELS:
        raise CheckpointError(f"attention_head_dim is {given['attention_head_dim']}; only {HEAD_CHANNELS} is known")
    theirs = {key: given.get(key, default) for key, (_, default) in _DIFFUSERS_SETTINGS.items()}
    if theirs["encoder_out_shortcut"] != theirs["decoder_in_shortcut"]:
        raise CheckpointError("encoder_out_shortcut and decoder_in_shortcut differ; only equal values are known")
    blocks = {theirs: ours for ours, theirs in _DIFFUSERS_BLOCKS.items()}
    try:
        for key in ("encoder_block_types", "decoder_block_types", "decoder_norm_types", "decoder_act_fns"):
            if isinstance(theirs[key], str):  # one for all stages
                theirs[key] = [theirs[key]] * len(theirs["encoder_block_out_channels"])
        for key in ("encoder_block_types", "decoder_block_types"):
            theirs[key] = [blocks[block] for block in theirs[key]]
        # AutoencoderDC takes any other word for the strided convolution ("conv", "Conv") and for shuffling.
        if theirs["downsample_block_type"] != "pixel_unshuffle":
            theirs["downsample_block_type"] = "conv"
        if theirs["upsample_block_type"] != "interpolate":
            theirs["upsample_block_type"] = "pixel_shuffle"
        return AutoencoderConfig.from_dict({ours: theirs[key] for key, (ours, _) in _DIFFUSERS_SETTINGS.items()})
    except KeyError as error:
        raise CheckpointError(f"describes no known autoencoder: there is no block {error}") from error
    except TypeError as error:
        raise CheckpointError("describes no known autoencoder: a setting is of another type") from error
    except UsageError as error:
        raise CheckpointError(f"describes no known autoencoder: {error}") from error


_LATENT_HEAD = ("encoder.head.conv.weight", "encoder.head.conv.bias")
_LATENT_STEM = ("decoder.stem.conv.weight",)


def keep_leading(
    config: AutoencoderConfig, state: dict[str, Tensor], channels: int, where: object
) -> tuple[AutoencoderConfig, dict[str, Tensor]]:
    """A network and its weights, by our own names, without the latent channels after the first `channels`.

    Raises:
        UsageError: it has no more than so many, or shortcuts that go over all of them; `where` is for the message.
    """
    if config.latent_shortcuts:
        raise UsageError(f"{where}: shortcuts over all channels of its latent keep leading ones from standing alone")
    if channels >= config.latent_channels:
        raise UsageError(f"{where}: its latent has {config.latent_channels} channels; -c{channels} asks for too many")
    kept = {name: state[name][:channels].clone() for name in _LATENT_HEAD if name in state}
    kept |= {name: state[name][:, :channels].clone() for name in _LATENT_STEM if name in state}
    return config.replace(latent_channels=channels), state | kept


def local_leading(path: Path) -> tuple[Path, int] | None:
    """The local directory or weights file, and the number of channels, that `PLACE-cN` or `PLACE-cN.pt` stands for."""
    suffix = path.suffix if path.suffix in WEIGHT_SUFFIXES else ""
    match = re.fullmatch(r"(.+)-c([1-9]\d{0,5})", path.name.removesuffix(suffix))
    if match is None:
        return None
    whole = path.with_name(match[1] + suffix)
    return (whole, int(match[2])) if whole.exists() else None
