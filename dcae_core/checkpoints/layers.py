"""One walk over the layers of an autoencoder: the key prefix of each here, and in another layout."""

from dataclasses import dataclass

from dcae_core.models.autoencoder_config import AutoencoderConfig


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
