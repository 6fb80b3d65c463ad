"""Key names of the original (efficientvit) layout: `model.safetensors` beside `config.json` {"model_name": ...}."""

from torch import Tensor

from dcae_core.checkpoints.layers import LayerNames, key_prefixes
from dcae_core.models.autoencoder_config import AutoencoderConfig

WEIGHTS_STEM = "model"

_RES = {"conv1": "main.conv1.conv", "conv2": "main.conv2.conv", "norm": "main.conv2.norm"}
_EVIT_GLU = {
    "attention.qkv": "context_module.main.qkv.conv",
    "attention.proj": "context_module.main.proj.conv",
    "attention.norm": "context_module.main.proj.norm",
    "mlp.expand": "local_module.main.inverted_conv.conv",
    "mlp.depthwise": "local_module.main.depth_conv.conv",
    "mlp.project": "local_module.main.point_conv.conv",
    "mlp.norm": "local_module.main.point_conv.norm",
}
_ATTENTION_SCALE = {
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
        evit_glu=_EVIT_GLU,
        attention_scale=_ATTENTION_SCALE,
    )
