"""Where the files of a diffusion model are, and what network and autoencoder they hold.

Three layouts are read:

- the released one: `config.json` = {"model_name": ...} beside `model.safetensors`, with keys under
  `diffusion_model.` and, in most, the autoencoder's under `autoencoder.`; or a lone weights file of the network;
- a directory of ours: `dcae.json` with a "diffusion" description beside `model.safetensors` and, where there is an
  average of the weights, `ema.safetensors`, whose tensors take the place of those of the same names;
- a run of `dcae train-diffusion`, which has that `dcae.json`, or one of its `checkpoints/step_N`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcae_core.checkpoints import hub
from dcae_core.checkpoints.autoencoders import (
    CONFIG_NAME,
    OWN_CONFIG_NAME,
    embedded_directory,
    load_autoencoder,
    not_found,
    original_weights,
)
from dcae_core.checkpoints.layouts import WEIGHTS_STEM, from_original
from dcae_core.errors import CheckpointError, DcaeError, UsageError
from dcae_core.models import build_denoiser, denoiser_config
from dcae_core.models.autoencoder import Autoencoder, build_on_meta
from dcae_core.models.denoiser import DenoiserConfig
from dcae_core.models.inference import prepare_for_inference
from dcae_core.weights import load_strictly, read_json, read_weights, require_scaling_factor
from dcae_core.zoo import AUTOENCODERS, DENOISERS, EMBEDDED_DENOISER, DenoiserEntry, find_denoiser

DESCRIPTION_KEY = "diffusion"
EMA, RAW = "ema", "raw"
_KINDS = (EMA, RAW)
_NETWORK_PREFIX, _AUTOENCODER_PREFIX = "diffusion_model.", "autoencoder."
_RELEASED_FILES = [CONFIG_NAME, f"{WEIGHTS_STEM}.safetensors"]


@dataclass(frozen=True)
class DiffusionFiles:
    """A diffusion model on the disk.

    Attributes:
        name: a zoo name, or the last part of where it lies.
        where: the directory or file, for messages.
        config: the network.
        prediction: "epsilon", "epsilon_variance" or "velocity".
        autoencoder: what to load where the weights hold no autoencoder; None where nothing says.
        scaling_factor: what the network's latents were multiplied by; None is the autoencoder's own.
        weights: the files; later ones take the place of tensors of the same names in earlier ones.
        sha256: what the bytes of a single file must hash to, where that is known.
        class_names: one for each class, where the files say.
    """

    name: str
    where: Path
    config: DenoiserConfig
    prediction: str
    autoencoder: str | None
    scaling_factor: float | None
    weights: tuple[Path, ...]
    sha256: str | None = None
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class DiffusionParts:
    """What a diffusion model consists of, in evaluation mode.

    Attributes:
        denoiser: called as `denoiser(x, t, y)`.
        autoencoder: prepared for inference.
        prediction: "epsilon", "epsilon_variance" or "velocity".
        scaling_factor: latents are multiplied by it before the network and divided by it before the decoder.
    """

    denoiser: nn.Module
    autoencoder: Autoencoder
    prediction: str
    scaling_factor: float
    config: DenoiserConfig


def locate_diffusion(
    model: str | Path | None = None, revision: str | None = None, weights: str = EMA
) -> DiffusionFiles:
    """Find the files of a diffusion model, downloading them where they are in no cache.

    Args:
        model: a zoo name, a hub id, a directory in one of the layouts above, or a weights file of a released network;
            None stands for an embedded one, of which there is none yet.
        revision: of a hub repository.
        weights: "ema" or "raw", where a training directory has both.

    Raises:
        UsageError: nothing is called that, or nothing is embedded.
        CheckpointError: the directory or file is no diffusion model.
        DownloadError: the files are not cached and cannot be downloaded.
    """
    if weights not in _KINDS:
        raise UsageError(f"weights are {' or '.join(_KINDS)}, not {weights!r}")
    if model is None:
        return _open_directory(_embedded_directory(), weights)
    path, name = Path(model), str(model)
    if path.is_dir():
        return _open_directory(path, weights)
    if path.is_file():
        return _lone_file(path)
    entry = find_denoiser(name)
    if entry is None and not hub.is_hub_id(name):
        raise not_found(name, DENOISERS)
    offline = entry is not None and revision is None and is_cached(entry)
    repository = entry.hub_id if entry else name
    return _open_directory(hub.fetch_files(repository, _RELEASED_FILES, revision, offline=offline), RAW)


def is_diffusion_model(model: str | Path | None) -> bool:
    """Whether this is a place on this disk that holds a diffusion model, or the name of a released one."""
    if model is None or not Path(model).exists():
        return model is not None and find_denoiser(str(model)) is not None
    try:
        locate_diffusion(model)
    except DcaeError:
        return False
    return True


def _embedded_directory() -> Path:
    if EMBEDDED_DENOISER is None:
        raise UsageError(
            "no diffusion model comes with this package; name one with --model: a released one, downloaded once "
            "(`dcae models list '*-in-512px*'` shows them), or a run directory of `dcae train-diffusion`; "
            "example: dcae sample --model dc-ae-f32c32-in-1.0-uvit-s-in-512px"
        )
    return embedded_directory(EMBEDDED_DENOISER)


def is_cached(entry: DenoiserEntry) -> bool:
    """Whether a zoo model can be loaded without a network."""
    return hub.is_cached(entry.hub_id, _RELEASED_FILES)


def _open_directory(directory: Path, weights: str) -> DiffusionFiles:
    if (directory / "checkpoints").is_dir():
        return _open_directory(_last_checkpoint(directory), weights)
    for place in (directory, directory.resolve().parent.parent):
        file = place / OWN_CONFIG_NAME
        if file.is_file() and DESCRIPTION_KEY in (values := read_json(file)):
            return _own(directory, file, values, weights)
    if (directory / CONFIG_NAME).is_file():
        weights_file = original_weights(directory)
        return _released(_entry_in(directory / CONFIG_NAME), directory, weights_file)
    raise CheckpointError(
        f"{directory} holds no diffusion model: expected {CONFIG_NAME} with a model_name beside "
        f"{WEIGHTS_STEM}.safetensors, or a run of `dcae train-diffusion`"
    )


def _last_checkpoint(run: Path) -> Path:
    steps = {
        int(match[1]): child
        for child in (run / "checkpoints").iterdir()
        if (match := re.fullmatch(r"step_(\d+)", child.name))
    }
    if not steps:
        raise CheckpointError(f"{run / 'checkpoints'} holds no checkpoint yet")
    return steps[max(steps)]


def _own(directory: Path, description_file: Path, values: dict[str, Any], weights: str) -> DiffusionFiles:
    raw, average = directory / f"{WEIGHTS_STEM}.safetensors", directory / f"{EMA}.safetensors"
    if not raw.is_file():
        raise CheckpointError(f"{directory} holds no {raw.name}")
    try:
        description = values[DESCRIPTION_KEY]
        # Earlier files also say how the network was trained, which does not belong to its configuration.
        settings = {key: value for key, value in description["config"].items() if key != "activation_checkpointing"}
        config = denoiser_config(settings)
        if not isinstance(description["autoencoder"], str | None):
            raise UsageError(f"autoencoder is no name or place: {description['autoencoder']!r}")
        return DiffusionFiles(
            name=directory.resolve().name,
            where=directory,
            config=config,
            prediction=description["prediction"],
            autoencoder=description["autoencoder"],
            scaling_factor=require_scaling_factor(description["scaling_factor"], description_file),
            weights=(raw, average) if weights == EMA and average.is_file() else (raw,),
            class_names=tuple(description.get("class_names") or ()) or None,
        )
    except (AttributeError, KeyError, TypeError, ValueError, UsageError) as error:
        raise CheckpointError(f"{description_file} describes no diffusion model: {error}") from error


def _lone_file(path: Path) -> DiffusionFiles:
    """A weights file: its own name says which network, or else its directory's configuration."""
    config = path.parent / CONFIG_NAME
    if find_denoiser(path.stem) is None and config.is_file():
        return _released(_entry_in(config), path, path)
    return _released(_require_entry(path.stem, path), path, path)


def _entry_in(config: Path) -> DenoiserEntry:
    return _require_entry(str(read_json(config).get("model_name")), config)


def _require_entry(name: str, where: Path) -> DenoiserEntry:
    entry = find_denoiser(name)
    if entry is None:
        raise CheckpointError(f"{where} names {name!r}, which is no released diffusion model; `dcae models` lists them")
    return entry


def _released(entry: DenoiserEntry, where: Path, weights: Path) -> DiffusionFiles:
    return DiffusionFiles(
        name=entry.name,
        where=where,
        config=entry.config,
        prediction=entry.prediction,
        autoencoder=entry.autoencoder,
        scaling_factor=AUTOENCODERS[entry.autoencoder].scaling_factor,
        weights=(weights,),
        sha256=hub.cached_sha256(weights),
    )


def read_diffusion(
    files: DiffusionFiles,
    *,
    autoencoder: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> DiffusionParts:
    """Load a located diffusion model, strictly.

    Holds one copy of the weights: the file is mapped into memory and the network takes its tensors over.

    Args:
        files: as `locate_diffusion` found them.
        autoencoder: where to take the autoencoder from instead, as for `load_autoencoder`.
        device: where both go.
        dtype: of both; float32 if None.

    Raises:
        UsageError: no autoencoder is called that.
        CheckpointError: the weights are damaged or do not fit, or the autoencoder makes other latents.
        DownloadError: the autoencoder's files are not cached and cannot be downloaded.
    """
    state: dict[str, Tensor] = {}
    for file in files.weights:
        state |= read_weights(file, files.sha256)
    inside = _take(state, _AUTOENCODER_PREFIX)
    with torch.device("meta"):
        network = build_denoiser(files.config)
    load_strictly(network, _take(state, _NETWORK_PREFIX) or state, files.where, dtype)
    if autoencoder is None and inside:
        decoder = _released_autoencoder(files, inside, dtype).to(device)
    else:
        decoder = load_autoencoder(autoencoder or files.autoencoder, device=device, dtype=dtype)
    scaling_factor = files.scaling_factor or decoder.scaling_factor
    _require_fit(files, decoder, scaling_factor)
    assert scaling_factor is not None
    return DiffusionParts(network.to(device).eval(), decoder, files.prediction, scaling_factor, files.config)


def _take(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Move what lies under a prefix out of `state`."""
    return {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}


def _released_autoencoder(files: DiffusionFiles, state: dict[str, Tensor], dtype: torch.dtype | None) -> Autoencoder:
    assert files.autoencoder is not None
    entry = AUTOENCODERS[files.autoencoder]
    network = build_on_meta(entry.config)
    load_strictly(network, from_original(entry.config, state), files.where, dtype)
    network.scaling_factor = entry.scaling_factor
    return prepare_for_inference(network.eval())


def _require_fit(files: DiffusionFiles, autoencoder: Autoencoder, scaling_factor: float | None) -> None:
    channels = files.config.in_channels
    if autoencoder.latent_channels != channels:
        raise CheckpointError(
            f"this autoencoder has {autoencoder.latent_channels} latent channels, the diffusion network in "
            f"{files.where} makes {channels}; give the one it was trained on with --autoencoder"
        )
    if scaling_factor is None:
        raise CheckpointError(f"{files.where}: neither the diffusion network nor its autoencoder has a scaling factor")


def describe_denoiser(
    config: DenoiserConfig,
    prediction: str,
    autoencoder: str | None,
    scaling_factor: float,
    class_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What `dcae.json` keeps under "diffusion", so that the weights beside it or in `checkpoints/` can be read back.

    `autoencoder` is what `load_autoencoder` takes to get that of its latents, None the embedded one; latents were
    multiplied by `scaling_factor`.
    """
    return {
        "config": config.to_dict(),
        "prediction": prediction,
        "autoencoder": autoencoder,
        "scaling_factor": scaling_factor,
        "class_names": list(class_names) if class_names else None,
    }
