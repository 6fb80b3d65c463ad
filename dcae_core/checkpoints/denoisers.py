"""Where the files of a diffusion model are, and what network and autoencoder they hold.

Three layouts are read:

- the released one: `config.json` = {"model_name": ...} beside `model.safetensors`, with keys under
  `diffusion_model.` and, in most, the autoencoder's under `autoencoder.`; or a lone weights file of the network;
- a directory or hub repository of ours: `dcae.json` with a "diffusion" description beside `model.safetensors`, or the
  files of weights that it lists, and, where there is an average of the weights, `ema.safetensors`, whose tensors take
  the place of those of the same names;
- a run of `dcae train-diffusion`, which has that `dcae.json`, or one of its `checkpoints/step_N`.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dcae_core.checkpoints import hub
from dcae_core.checkpoints.autoencoders import (
    fetch_own,
    load_autoencoder,
    not_found,
    original_weights,
)
from dcae_core.checkpoints.denoiser_files import (
    DESCRIPTION_KEY,
    EMA,
    RAW,
    SINGLE_WEIGHTS_NAME,
    DiffusionFiles,
    read_description,
    recorded_weights,
)
from dcae_core.checkpoints.hub import CONFIG_NAME, WEIGHTS_STEM
from dcae_core.checkpoints.layouts import OWN_CONFIG_NAME, from_original
from dcae_core.checkpoints.training_runs import RESULT_NAME, last_checkpoint, read_files
from dcae_core.errors import CheckpointError, DcaeError, DownloadError, UsageError
from dcae_core.models import build_denoiser
from dcae_core.models.autoencoder import Autoencoder, build_on_meta
from dcae_core.models.configs import DenoiserConfig
from dcae_core.models.inference import prepare_for_inference
from dcae_core.models.normalisation import ChannelNormalisation
from dcae_core.weights import encoder_fingerprint, fingerprint, load_strictly, read_json
from dcae_core.zoo import (
    AUTOENCODERS,
    DENOISERS,
    EMBEDDED_AUTOENCODER,
    EMBEDDED_DENOISER,
    USUAL_SAMPLING,
    DenoiserEntry,
    SamplingDefaults,
    embedded_directory,
    find_denoiser,
)

_KINDS = (EMA, RAW)
_NETWORK_PREFIX, _AUTOENCODER_PREFIX = "diffusion_model.", "autoencoder."
_RELEASED_FILES = [CONFIG_NAME, SINGLE_WEIGHTS_NAME]


@dataclass(frozen=True)
class DiffusionParts:
    """What a diffusion model consists of, in evaluation mode.

    Attributes:
        denoiser: called as `denoiser(x, t, y)`.
        autoencoder: prepared for inference.
        prediction: "epsilon", "epsilon_variance" or "velocity".
        scaling_factor: latents are multiplied by it before the network and divided by it before the decoder.
        autoencoder_fingerprint: of the autoencoder's weights; None where they lie in one file with the network's.
        warnings: what is unusual about these parts, a line each.
        normalisation: per channel, in the place of the scaling factor; None where that is all.
        class_names: one for each class, where the model says.
        sampling: what it draws, and how, where nobody says otherwise.
    """

    denoiser: nn.Module
    autoencoder: Autoencoder
    prediction: str
    scaling_factor: float
    config: DenoiserConfig
    autoencoder_fingerprint: str | None = None
    warnings: tuple[str, ...] = ()
    normalisation: ChannelNormalisation | None = None
    class_names: tuple[str, ...] | None = None
    sampling: SamplingDefaults = USUAL_SAMPLING

    def unscale(self, latents: Tensor) -> Tensor:
        """What the network makes -> latents for the decoder."""
        return latents / self.scaling_factor if self.normalisation is None else self.normalisation.undo(latents)


def locate_diffusion(
    model: str | Path | None = None, revision: str | None = None, weights: str = EMA
) -> DiffusionFiles:
    """Find the files of a diffusion model, downloading them where they are in no cache.

    Args:
        model: a zoo name, a hub id, a directory in one of the layouts above, or a weights file of a released network;
            None is the embedded one.
        revision: of a hub repository.
        weights: "ema" or "raw", where a training directory has both.

    Raises:
        UsageError: nothing is called that, or None is given and this copy of the package has no embedded one.
        CheckpointError: the directory or file is no diffusion model.
        DownloadError: the files are not cached and cannot be downloaded.
    """
    if weights not in _KINDS:
        raise UsageError(f"weights are {' or '.join(_KINDS)}, not {weights!r}")
    if model is None or find_denoiser(str(model)) is DENOISERS[EMBEDDED_DENOISER]:
        return _embedded(model, weights)
    path, name = Path(model), str(model)
    if path.is_dir():
        return _open_directory(path, weights)
    if path.is_file():
        return _lone_file(path)
    entry = find_denoiser(name)
    if entry is not None and entry.hub_id is not None:
        offline = revision is None and hub.is_release_cached(entry)
        return _open_directory(hub.fetch_files(entry.hub_id, _RELEASED_FILES, revision, offline=offline), RAW)
    if hub.is_hub_id(name):
        try:
            return _from_hub(name, revision)
        except (UsageError, DownloadError) as refusal:
            raise hub.neither_here_nor_there(name, refusal) from refusal
    raise not_found(name, DENOISERS)


def is_diffusion_model(model: str | Path | None) -> bool:
    """Whether this is a place on this disk that holds a diffusion model, or the name of a released one."""
    if model is None or not Path(model).exists():
        return model is not None and find_denoiser(str(model)) is not None
    try:
        locate_diffusion(model)
    except DcaeError:
        return False
    return True


def _from_hub(repository: str, revision: str | None) -> DiffusionFiles:
    """Any repository: in the released layout, or in ours, which may have the autoencoder in a folder."""
    try:
        return _open_directory(hub.fetch_files(repository, _RELEASED_FILES, revision), RAW)
    except UsageError as refusal:
        try:
            directory = hub.fetch_files(repository, [OWN_CONFIG_NAME], revision)
            weights = [*recorded_weights(read_json(directory / OWN_CONFIG_NAME))] or [SINGLE_WEIGHTS_NAME]
            hub.fetch_files(repository, weights, revision)
        except UsageError:
            raise refusal from None
    files = replace(_open_directory(directory, RAW), name=repository)
    if files.autoencoder == str(directory.resolve() / RESULT_NAME):
        fetch_own(repository, revision, f"{RESULT_NAME}/")
    return files


def _embedded(asked: str | Path | None, weights: str) -> DiffusionFiles:
    directory = embedded_directory(EMBEDDED_DENOISER)
    if directory.is_dir():
        return replace(_open_directory(directory, weights), sampling=DENOISERS[EMBEDDED_DENOISER].sampling)
    if asked is None:
        raise UsageError(
            "no diffusion model comes with this package; name one with --model: a released one, downloaded once "
            "(`dcae models list '*-in-512px*'` shows them), or a run directory of `dcae train-diffusion`; "
            "example: dcae sample --model dc-ae-f32c32-in-1.0-uvit-s-in-512px"
        )
    raise CheckpointError(f"the weights of {asked} are not in this copy of the package; `make emoji` trains them")


def _open_directory(directory: Path, weights: str) -> DiffusionFiles:
    if (directory / "checkpoints").is_dir():
        return _open_directory(last_checkpoint(directory), weights)
    for place in (directory, directory.resolve().parent.parent):
        file = place / OWN_CONFIG_NAME
        if file.is_file() and DESCRIPTION_KEY in (values := read_json(file)):
            return read_description(directory, file, values, weights)
    if (directory / CONFIG_NAME).is_file():
        weights_file = original_weights(directory)
        return _released(_entry_in(directory / CONFIG_NAME), directory, weights_file)
    raise CheckpointError(
        f"{directory} holds no diffusion model: expected {CONFIG_NAME} with a model_name beside "
        f"{WEIGHTS_STEM}.safetensors, or a run of `dcae train-diffusion`"
    )


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
    if entry is None or entry.hub_id is None:
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
        sha256=hub.declared_sha256(weights),
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
    network, inside = read_network(files, dtype)
    identity: str | None = None
    warnings: list[str] = []
    if autoencoder is None and inside:
        decoder = _released_autoencoder(files, inside, dtype).to(device)
    else:
        plain, identity, warnings = read_autoencoder_of(files, autoencoder)
        decoder = prepare_for_inference(plain.to(device, dtype))
    scaling_factor = files.scaling_factor or decoder.scaling_factor
    _require_fit(files, decoder, scaling_factor)
    assert scaling_factor is not None
    return DiffusionParts(
        network.to(device).eval(),
        decoder,
        files.prediction,
        scaling_factor,
        # A network of adaptive channels makes as many as the autoencoder has.
        files.config.replace(in_channels=decoder.latent_channels),
        autoencoder_fingerprint=identity,
        warnings=tuple(warnings),
        normalisation=files.normalisation,
        class_names=files.class_names,
        sampling=files.sampling,
    )


def read_network(files: DiffusionFiles, dtype: torch.dtype | None = None) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network of a located model, strictly loaded on the CPU, and what else lies in its files: an autoencoder's.

    Raises:
        CheckpointError: the weights are damaged or do not fit.
    """
    state = read_files(files.weights, files.sha256)
    inside = _take(state, _AUTOENCODER_PREFIX)
    with torch.device("meta"):
        network = build_denoiser(files.config)
    load_strictly(network, _take(state, _NETWORK_PREFIX) or state, files.where, dtype)
    return network, inside


def read_autoencoder_of(files: DiffusionFiles, asked: str | Path | None = None) -> tuple[Autoencoder, str, list[str]]:
    """The plain autoencoder that is asked for or else that the files name, its fingerprint, and warnings about it.

    Raises as `read_diffusion`.
    """
    network = _load_autoencoder(files, asked)
    identity = fingerprint(network)
    return network, identity, _compare_autoencoder(files, network, identity, asked)


def _load_autoencoder(files: DiffusionFiles, asked: str | Path | None) -> Autoencoder:
    place = asked or files.autoencoder
    if asked is None and place is not None and os.path.isabs(place) and not Path(place).exists():
        raise CheckpointError(f"{files.where}: its autoencoder {place} is not there; give its place with --autoencoder")
    return load_autoencoder(place, prepare=False)


def _compare_autoencoder(
    files: DiffusionFiles, network: Autoencoder, identity: str, asked: str | Path | None
) -> list[str]:
    """A warning where an autoencoder that is asked for is not the one that made the latents.

    Raises:
        CheckpointError: the autoencoder that the files name is another one now.
    """
    whole, encoder = files.made_by
    if whole in (None, identity) or (encoder is not None and encoder == encoder_fingerprint(network)):
        return []
    place = asked or files.autoencoder or EMBEDDED_AUTOENCODER
    line = f"{place} has other weights than the autoencoder on whose latents {files.where} was trained"
    if asked is None:
        raise CheckpointError(f"{line}; put the old ones back, or give their place with --autoencoder")
    return [f"{line}: what it makes of them may be nothing"]


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
    if not files.config.takes_channels(autoencoder.latent_channels):
        raise CheckpointError(
            f"this autoencoder has {autoencoder.latent_channels} latent channels, the diffusion network in "
            f"{files.where} makes {channels}; give the one it was trained on with --autoencoder"
        )
    if scaling_factor is None:
        raise CheckpointError(f"{files.where}: neither the diffusion network nor its autoencoder has a scaling factor")
