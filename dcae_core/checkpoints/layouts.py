"""The published layouts of autoencoder weights, key by key, into our own parameter names and back."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcae_core.errors import CheckpointError, UsageError
from dcae_core.models.autoencoder import AutoencoderConfig
from dcae_core.models.layers import HEAD_CHANNELS


@dataclass(frozen=True)
class LayerNames:
    """What a layout calls the layers that have parameters.

    Attributes:
        encoder_stem: key prefix of the first convolution.
        encoder_head: key prefix of the convolution to the latent.
        decoder_stem: key prefix of the convolution from the latent.
        decoder_norm: key prefix of the norm before the last convolution.
        decoder_out: key prefix of the last convolution.
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


def key_prefixes(config: AutoencoderConfig, names: LayerNames) -> dict[str, str]:
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
            prefixes |= _stage(config, names, side, stage)
    return prefixes


def _stage(config: AutoencoderConfig, names: LayerNames, side: str, stage: int) -> dict[str, str]:
    """The encoder's stages end with their change of resolution, the decoder's begin with it."""
    block = _block(names, getattr(config, f"{side}_blocks")[stage], getattr(config, f"{side}_attention_scales")[stage])
    items = [block] * getattr(config, f"{side}_depths")[stage]
    if config.resamples(side, stage):
        items.insert(len(items) if side == "encoder" else 0, {"conv": names.resampling[side]})
    ours, theirs = f"{side}.stages.{stage}", names.stages[side].format(stage)
    return {
        f"{ours}.{index}.{our_name}": f"{theirs}.{index}.{their_name}"
        for index, layers in enumerate(items)
        for our_name, their_name in layers.items()
    }


def _block(names: LayerNames, kind: str, scales: tuple[int, ...]) -> dict[str, str]:
    if kind == "res":
        return names.res
    further = {
        ours.format(scale): theirs.format(scale)
        for scale in range(len(scales))
        for ours, theirs in names.attention_scale.items()
    }
    return names.evit_glu | further


WEIGHTS_STEM = "model"

_RES = {"conv1": "main.conv1.conv", "conv2": "main.conv2.conv", "norm": "main.conv2.norm"}
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


def original_key_prefixes(config: AutoencoderConfig) -> dict[str, str]:
    """Our prefix -> their prefix, for every layer with parameters."""
    return key_prefixes(config, _names(config))


def to_original(config: AutoencoderConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the original key names; tensors are shared, not copied."""
    prefixes = original_key_prefixes(config)
    return {_rename(key, prefixes): tensor for key, tensor in state.items()}


def from_original(config: AutoencoderConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An original state dict under our key names; keys that are not theirs stay as they are, for the strict check."""
    prefixes = {theirs: ours for ours, theirs in original_key_prefixes(config).items()}
    return {_rename(key, prefixes): tensor for key, tensor in state.items()}


def _rename(key: str, prefixes: dict[str, str]) -> str:
    prefix, _, parameter = key.rpartition(".")
    return f"{prefixes[prefix]}.{parameter}" if prefix in prefixes else key


def _names(config: AutoencoderConfig) -> LayerNames:
    down = "conv.conv" if config.downsample == "pixel_unshuffle" else "conv"
    # What has a shortcut beside it is called main.
    resampling, latent = ("main." if beside else "" for beside in (config.residual_shortcuts, config.latent_shortcuts))
    # The published op_list leaves out a norm or an activation that is absent, so the convolution's place moves.
    last = int(config.head_norm) + int(config.head_act is not None)
    return LayerNames(
        encoder_stem=f"encoder.project_in.{'conv' if config.encoder_depths[0] else down}",
        encoder_head=f"encoder.project_out.{latent}op_list.0.conv",
        decoder_stem=f"decoder.project_in.{latent}conv",
        decoder_norm="decoder.project_out.op_list.0",
        decoder_out=f"decoder.project_out.op_list.{last}.{'conv' if config.decoder_depths[0] else 'conv.conv'}",
        stages={"encoder": "encoder.stages.{}.op_list", "decoder": "decoder.stages.{}.op_list"},
        resampling={"encoder": f"{resampling}{down}", "decoder": f"{resampling}conv.conv"},
        res=_RES,
        evit_glu=_ORIGINAL_EVIT_GLU,
        attention_scale=_ORIGINAL_ATTENTION_SCALE,
    )


DIFFUSERS_CLASS_NAME = "AutoencoderDC"
DIFFUSERS_WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
DIFFUSERS_INDEX_NAME = f"{DIFFUSERS_WEIGHTS_NAME}.index.json"

_BLOCKS = {"res": "ResBlock", "evit_glu": "EfficientViTBlock"}
_QKV = ("to_q", "to_k", "to_v")
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
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": HEAD_CHANNELS,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "upsample_block_type": "pixel_shuffle",
    "downsample_block_type": "pixel_unshuffle",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
    "decoder_conv_act_fn": "relu",
    "scaling_factor": 1.0,
}


def to_diffusers_config(config: AutoencoderConfig, scaling_factor: float | None) -> dict[str, Any]:
    """What `AutoencoderDC.from_config` builds the same network from; an unknown scaling factor becomes 1.

    Raises:
        UsageError: AutoencoderDC cannot express the configuration.
    """
    if not config.head_norm or config.head_act is None:
        raise UsageError(
            "diffusers' AutoencoderDC always has a norm and an activation before its last convolution; "
            "this configuration has not, so only the dcae layout can hold it (--to dcae)"
        )
    if not config.residual_shortcuts:
        raise UsageError(
            "diffusers' AutoencoderDC always has residual shortcuts around changes of resolution; "
            "this configuration has not, so only the dcae layout can hold it (--to dcae)"
        )
    if 0 in config.encoder_depths[1:] + config.decoder_depths[1:]:
        raise UsageError(
            "diffusers' AutoencoderDC changes the resolution only in stages that have blocks; "
            "this configuration has a later stage without, so only the dcae layout can hold it (--to dcae)"
        )
    return {
        "_class_name": DIFFUSERS_CLASS_NAME,
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "attention_head_dim": HEAD_CHANNELS,
        "encoder_block_types": [_BLOCKS[block] for block in config.encoder_blocks],
        "decoder_block_types": [_BLOCKS[block] for block in config.decoder_blocks],
        "encoder_block_out_channels": list(config.encoder_widths),
        "decoder_block_out_channels": list(config.decoder_widths),
        "encoder_layers_per_block": list(config.encoder_depths),
        "decoder_layers_per_block": list(config.decoder_depths),
        "encoder_qkv_multiscales": [list(scales) for scales in config.encoder_attention_scales],
        "decoder_qkv_multiscales": [list(scales) for scales in config.decoder_attention_scales],
        "upsample_block_type": config.upsample,
        "downsample_block_type": config.downsample,
        "decoder_norm_types": list(config.decoder_norms),
        "decoder_act_fns": list(config.decoder_acts),
        "encoder_out_shortcut": config.latent_shortcuts,
        "decoder_in_shortcut": config.latent_shortcuts,
        "decoder_conv_act_fn": config.head_act,
        "scaling_factor": 1.0 if scaling_factor is None else scaling_factor,
    }


def from_diffusers_config(values: dict[str, Any]) -> AutoencoderConfig:
    """The configuration that an AutoencoderDC `config.json` describes.

    Raises:
        CheckpointError: values that this network has no counterpart for.
    """
    values = _DEFAULTS | {key: value for key, value in values.items() if value is not None}
    if values["attention_head_dim"] != HEAD_CHANNELS:
        raise CheckpointError(f"attention_head_dim is {values['attention_head_dim']}; only {HEAD_CHANNELS} is known")
    if values["encoder_out_shortcut"] != values["decoder_in_shortcut"]:
        raise CheckpointError("encoder_out_shortcut and decoder_in_shortcut differ; only equal values are known")
    names = {theirs: ours for ours, theirs in _BLOCKS.items()}

    def per_stage(key: str) -> list[Any]:
        value = values[key]
        return [value] * len(values["encoder_block_out_channels"]) if isinstance(value, str) else value

    try:
        return AutoencoderConfig.from_dict(
            {
                "in_channels": values["in_channels"],
                "latent_channels": values["latent_channels"],
                "encoder_widths": values["encoder_block_out_channels"],
                "encoder_depths": values["encoder_layers_per_block"],
                "encoder_blocks": [names[block] for block in per_stage("encoder_block_types")],
                "encoder_attention_scales": values["encoder_qkv_multiscales"],
                "decoder_widths": values["decoder_block_out_channels"],
                "decoder_depths": values["decoder_layers_per_block"],
                "decoder_blocks": [names[block] for block in per_stage("decoder_block_types")],
                "decoder_attention_scales": values["decoder_qkv_multiscales"],
                "decoder_norms": per_stage("decoder_norm_types"),
                "decoder_acts": per_stage("decoder_act_fns"),
                # AutoencoderDC takes any other word for the strided convolution ("conv", "Conv") and for shuffling.
                "downsample": "pixel_unshuffle" if values["downsample_block_type"] == "pixel_unshuffle" else "conv",
                "upsample": "interpolate" if values["upsample_block_type"] == "interpolate" else "pixel_shuffle",
                "head_act": values["decoder_conv_act_fn"],
                "latent_shortcuts": values["encoder_out_shortcut"],
            }
        )
    except (KeyError, TypeError, UsageError) as error:
        raise CheckpointError(f"config.json describes no known autoencoder: {error}") from error


def to_diffusers(config: AutoencoderConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under AutoencoderDC's key names and shapes."""
    converted = {}
    prefixes = _key_prefixes(config)
    for key, tensor in state.items():
        prefix, _, parameter = key.rpartition(".")
        theirs = prefixes[prefix]
        if prefix.endswith(".attention.qkv"):
            for name, third in zip(_QKV, tensor.flatten(1).chunk(3), strict=True):
                converted[f"{theirs}.{name}.{parameter}"] = third.contiguous()
        elif prefix.endswith(".attention.proj"):
            converted[f"{theirs}.{parameter}"] = tensor.flatten(1)
        else:
            converted[f"{theirs}.{parameter}"] = tensor
    return converted


def from_diffusers(config: AutoencoderConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An AutoencoderDC state dict under our names; keys that are not theirs stay, for the strict check."""
    converted = dict(state)
    for ours, theirs in _key_prefixes(config).items():
        if ours.endswith(".attention.qkv"):
            parts = [f"{theirs}.{name}.weight" for name in _QKV]
            if all(part in converted for part in parts):
                converted[f"{ours}.weight"] = torch.cat([converted.pop(part) for part in parts])[:, :, None, None]
            continue
        for parameter in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            if (tensor := converted.pop(f"{theirs}.{parameter}", None)) is not None:
                is_linear = ours.endswith(".attention.proj") and tensor.dim() == 2
                converted[f"{ours}.{parameter}"] = tensor[:, :, None, None] if is_linear else tensor
    return converted


def _key_prefixes(config: AutoencoderConfig) -> dict[str, str]:
    """Our prefix -> theirs for every layer with parameters; that of q, k and v is their common parent."""
    names = LayerNames(
        encoder_stem="encoder.conv_in" if config.encoder_depths[0] else "encoder.conv_in.conv",
        encoder_head="encoder.conv_out",
        decoder_stem="decoder.conv_in",
        decoder_norm="decoder.norm_out",
        decoder_out="decoder.conv_out" if config.decoder_depths[0] else "decoder.conv_out.conv",
        stages={"encoder": "encoder.down_blocks.{}", "decoder": "decoder.up_blocks.{}"},
        resampling={"encoder": "conv", "decoder": "conv"},
        res={"conv1": "conv1", "conv2": "conv2", "norm": "norm"},
        evit_glu=_DIFFUSERS_EVIT_GLU,
        attention_scale=_DIFFUSERS_ATTENTION_SCALE,
    )
    return key_prefixes(config, names)
