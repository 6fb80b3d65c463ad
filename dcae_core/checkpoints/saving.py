"""Models written to disk: autoencoders in our own layout and both published ones, diffusion models in ours."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dcae_core.checkpoints import layouts
from dcae_core.checkpoints.autoencoders import DIFFUSERS, ORIGINAL, OWN
from dcae_core.checkpoints.denoiser_files import (
    DESCRIPTION_KEY,
    SINGLE_WEIGHTS_NAME,
    DiffusionFiles,
    describe_denoiser,
)
from dcae_core.checkpoints.denoisers import read_autoencoder_of, read_network
from dcae_core.checkpoints.hub import CONFIG_NAME, DIFFUSERS_WEIGHTS_NAME, WEIGHTS_STEM
from dcae_core.checkpoints.layouts import OWN_CONFIG_NAME
from dcae_core.checkpoints.training_runs import RESULT_NAME
from dcae_core.errors import UsageError
from dcae_core.files import replace_directory, sha256_of_file
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.zoo import AUTOENCODERS, EMBEDDED_AUTOENCODER

_MAX_FILE_BYTES = 14_900_000  # of tensors; names and shapes come on top


def best_layout(network: Autoencoder) -> str:
    """The diffusers layout where AutoencoderDC can express the network, else our own."""
    try:
        layouts.to_diffusers_config(network.config, None)
    except UsageError:
        return OWN
    return DIFFUSERS


def save_autoencoder(
    network: Autoencoder,
    directory: Path,
    *,
    layout: str | None = None,
    name: str | None = None,
    dtype: torch.dtype = torch.float32,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write a plain (unprepared) network to a directory, whole or not at all.

    The diffusers layout opens in `diffusers.AutoencoderDC.from_pretrained`; beside it, as in our own layout, lies
    `dcae.json` with the configuration, the scaling factor, checksums and `metadata`. The original layout holds what
    the published code reads, and nothing else. Our own layout keeps its weights in files of at most 15 MB, as the
    hosting of source code likes them.

    Args:
        network: the plain network, with its `.scaling_factor`.
        directory: where to; replaced if it exists.
        layout: "original", "diffusers" or "dcae"; by default diffusers where that can express the network.
        name: a zoo name, needed for the original layout, kept by the others.
        dtype: of the stored weights.
        metadata: JSON values to keep beside the weights.

    Raises:
        UsageError: the layout cannot express the network.
        ResourceError: the disk is full or the place cannot be written to.
    """
    if not isinstance(network, Autoencoder):
        raise UsageError("these layouts hold deep-compression autoencoders only, and this is none")
    layout = layout or best_layout(network)
    state = {key: _stored(tensor, dtype) for key, tensor in network.state_dict().items()}
    with replace_directory(directory) as partial:
        if layout == ORIGINAL:
            _write_original(network, state, name, partial)
            return
        if layout == DIFFUSERS:
            config = layouts.to_diffusers_config(network.config, network.scaling_factor)
            _write_json(partial / CONFIG_NAME, config)
            # diffusers refuses weights whose metadata does not name the framework.
            converted = layouts.to_diffusers(network.config, state)
            save_file(converted, partial / DIFFUSERS_WEIGHTS_NAME, metadata={"format": "pt"})
        else:
            _write_parts(state, partial)
        description = {
            "layout": layout,
            "name": name,
            "scaling_factor": network.scaling_factor,
            "config": network.config.to_dict(),
            "weights": _checksums(partial),
            "metadata": metadata or {},
        }
        _write_json(partial / OWN_CONFIG_NAME, description)


def save_diffusion(
    files: DiffusionFiles, directory: Path, *, dtype: torch.dtype = torch.float32, in_parts: bool = False
) -> None:
    """Write a located diffusion model in our own layout, with the averaged weights alone, whole or not at all.

    An autoencoder that lies on this disk comes along, in the folder `autoencoder`; one that has a name keeps it.

    Args:
        files: as `locate_diffusion` found them.
        directory: where to; replaced if it exists.
        dtype: of the network's stored weights; the autoencoder's, which has a fingerprint, stay as they are.
        in_parts: keep the network's in files of at most 15 MB, as `save_autoencoder` does; else in one.

    Raises:
        UsageError: its autoencoder is of a kind that is not written.
        CheckpointError: weights are damaged, or the autoencoder is not the one that made the latents.
        ResourceError: the disk is full or the place cannot be written to.
    """
    network, _ = read_network(files)
    place, made_by = files.autoencoder, files.made_by
    is_local = place is not None and (Path(place).is_absolute() or Path(place).exists())
    with replace_directory(directory) as partial:
        if is_local:
            autoencoder, identity, _ = read_autoencoder_of(files)
            save_autoencoder(autoencoder, partial / RESULT_NAME)
            place, made_by = RESULT_NAME, (made_by[0] or identity, made_by[1])
        state = {key: _stored(tensor, dtype) for key, tensor in network.state_dict().items()}
        if in_parts:
            _write_parts(state, partial)
        else:
            save_file(state, partial / SINGLE_WEIGHTS_NAME)
        assert files.scaling_factor is not None
        description = describe_denoiser(
            files.config,
            files.prediction,
            place,
            files.scaling_factor,
            files.class_names,
            normalisation=files.normalisation,
            made_by=made_by,
        )
        if is_local:
            description["autoencoder_path"] = RESULT_NAME
        _write_json(partial / OWN_CONFIG_NAME, {DESCRIPTION_KEY: description, "weights": _checksums(partial)})


def _write_original(network: Autoencoder, state: dict[str, Tensor], name: str | None, directory: Path) -> None:
    if name not in AUTOENCODERS or AUTOENCODERS[name].config != network.config:
        raise UsageError(
            "the original layout only names released networks, and this one is none of them; "
            "use the diffusers or the dcae layout"
        )
    if name == EMBEDDED_AUTOENCODER:
        raise UsageError(
            f"the original layout only names networks that the published code knows, and {name} is ours; "
            "use the dcae layout"
        )
    save_file(layouts.to_original(network.config, state), directory / f"{WEIGHTS_STEM}.safetensors")
    _write_json(directory / CONFIG_NAME, {"model_name": name})


def _write_parts(state: dict[str, Tensor], directory: Path) -> None:
    for number, tensors in enumerate(_split(state), start=1):
        save_file(tensors, directory / f"weights-{number}.safetensors")


def _checksums(directory: Path) -> dict[str, str]:
    return {file.name: sha256_of_file(file) for file in sorted(directory.glob("*.safetensors"))}


def _split(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors in their order, as many together as fit into one file."""
    together: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if together and sum(each.nbytes for each in together.values()) + tensor.nbytes > _MAX_FILE_BYTES:
            yield together
            together = {}
        together[key] = tensor
    yield together


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
