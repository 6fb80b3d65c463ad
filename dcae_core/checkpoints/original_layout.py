"""Key names of the original (efficientvit) layout: `model.safetensors` beside `config.json` {"model_name": ...}.

A pair is (our key prefix, their key prefix); the parameter's own name (weight, bias, running_mean, ...) follows both.
"""

from collections.abc import Iterator

from torch import Tensor

from dcae_core.models.autoencoder_config import AutoencoderConfig

Pairs = Iterator[tuple[str, str]]

WEIGHTS_STEM = "model"


def original_key_prefixes(config: AutoencoderConfig) -> dict[str, str]:
    """Our prefix -> their prefix, for every layer with parameters."""
    return dict([*_encoder(config), *_decoder(config)])


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


def _encoder(config: AutoencoderConfig) -> Pairs:
    down = "conv.conv" if config.downsample == "pixel_unshuffle" else "conv"
    main = "main." if config.residual_shortcuts else ""
    if config.encoder_depths[0]:
        yield "encoder.stem", "encoder.project_in.conv"
    else:
        yield "encoder.stem.conv", f"encoder.project_in.{down}"
    for stage, depth in enumerate(config.encoder_depths):
        ours, theirs = f"encoder.stages.{stage}", f"encoder.stages.{stage}.op_list"
        kind, scales = config.encoder_blocks[stage], config.encoder_attention_scales[stage]
        for index in range(depth):
            yield from _block(f"{ours}.{index}", f"{theirs}.{index}", kind, len(scales))
        if config.resamples("encoder", stage):
            yield f"{ours}.{depth}.conv", f"{theirs}.{depth}.{main}{down}"
    head = "main." if config.latent_shortcuts else ""
    yield "encoder.head.conv", f"encoder.project_out.{head}op_list.0.conv"


def _decoder(config: AutoencoderConfig) -> Pairs:
    main = "main." if config.residual_shortcuts else ""
    stem = "main." if config.latent_shortcuts else ""
    yield "decoder.stem.conv", f"decoder.project_in.{stem}conv"
    for stage, depth in enumerate(config.decoder_depths):
        ours, theirs = f"decoder.stages.{stage}", f"decoder.stages.{stage}.op_list"
        kind, scales = config.decoder_blocks[stage], config.decoder_attention_scales[stage]
        first_block = 0
        if config.resamples("decoder", stage):
            yield f"{ours}.0.conv", f"{theirs}.0.{main}conv.conv"
            first_block = 1
        for index in range(first_block, first_block + depth):
            yield from _block(f"{ours}.{index}", f"{theirs}.{index}", kind, len(scales))
    # The published op_list leaves out a norm or an activation that is absent, so the convolution's place moves.
    last = int(config.head_norm) + int(config.head_act is not None)
    if config.head_norm:
        yield "decoder.head.norm", "decoder.project_out.op_list.0"
    if config.decoder_depths[0]:
        yield "decoder.head.out", f"decoder.project_out.op_list.{last}.conv"
    else:
        yield "decoder.head.out.conv", f"decoder.project_out.op_list.{last}.conv.conv"


def _block(ours: str, theirs: str, kind: str, num_scales: int) -> Pairs:
    if kind == "res":
        yield f"{ours}.conv1", f"{theirs}.main.conv1.conv"
        yield f"{ours}.conv2", f"{theirs}.main.conv2.conv"
        yield f"{ours}.norm", f"{theirs}.main.conv2.norm"
        return
    attention, mlp = f"{theirs}.context_module.main", f"{theirs}.local_module.main"
    yield f"{ours}.attention.qkv", f"{attention}.qkv.conv"
    for scale in range(num_scales):
        yield f"{ours}.attention.scales.{scale}.depthwise", f"{attention}.aggreg.{scale}.0"
        yield f"{ours}.attention.scales.{scale}.pointwise", f"{attention}.aggreg.{scale}.1"
    yield f"{ours}.attention.proj", f"{attention}.proj.conv"
    yield f"{ours}.attention.norm", f"{attention}.proj.norm"
    yield f"{ours}.mlp.expand", f"{mlp}.inverted_conv.conv"
    yield f"{ours}.mlp.depthwise", f"{mlp}.depth_conv.conv"
    yield f"{ours}.mlp.project", f"{mlp}.point_conv.conv"
    yield f"{ours}.mlp.norm", f"{mlp}.point_conv.norm"
