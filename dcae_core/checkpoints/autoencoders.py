"""Autoencoders on disk and on the hub: where their files are, and loading them."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from dcae_core.checkpoints import hub, layouts
from dcae_core.checkpoints.hub import CONFIG_NAME, DIFFUSERS_WEIGHTS_NAME, WEIGHTS_STEM, repositories_of
from dcae_core.checkpoints.kl_autoencoder import KL_CLASS_NAME, read_kl_autoencoder
from dcae_core.checkpoints.layouts import DIFFUSERS_CLASS_NAME, OWN_CONFIG_NAME
from dcae_core.checkpoints.training_runs import (
    is_checkpoint,
    is_training_run,
    read_files,
    read_trained,
    recorded_checksums,
    trained_in,
)
from dcae_core.devices import parse_dtype, select_device
from dcae_core.errors import CheckpointError, DcaeError, DownloadError, UsageError, did_you_mean
from dcae_core.files import near_paths
from dcae_core.models.autoencoder import Autoencoder, build_on_meta
from dcae_core.models.configs import AutoencoderConfig
from dcae_core.models.inference import prepare_for_inference
from dcae_core.weights import WEIGHT_SUFFIXES, load_strictly, read_json, require_scaling_factor
from dcae_core.zoo import (
    AUTOENCODERS,
    EMBEDDED_AUTOENCODER,
    AutoencoderEntry,
    embedded_directory,
    find_autoencoder,
    unknown_model,
)

ORIGINAL, DIFFUSERS, OWN = LAYOUTS = ("original", "diffusers", "dcae")
KL = "kl"  # diffusers' AutoencoderKL, which is read and not written


@dataclass(frozen=True)
class AutoencoderFiles:
    """An autoencoder on the disk.

    Attributes:
        where: the directory or file, for messages.
        layout: whose key names the weights have: "original", "diffusers" or "dcae"; "kl" is a KL autoencoder.
        config: the network; None for a lone weights file, whose keys must tell, and for a KL autoencoder.
        name: a zoo name where one is known.
        scaling_factor: of its latents, where known.
        weights: the files; together they hold every tensor.
        sha256: what a file's bytes must hash to, for those files where it is known.
        leading_channels: of the latent, to be used instead of all.
    """

    where: Path
    layout: str
    config: AutoencoderConfig | None
    name: str | None
    scaling_factor: float | None
    weights: list[Path]
    sha256: dict[Path, str] = field(default_factory=dict)
    leading_channels: int | None = None


def locate_autoencoder(model: str | Path | None = None, revision: str | None = None) -> AutoencoderFiles:
    """Find the files of an autoencoder, downloading them where they are in no cache.

    Args:
        model: a zoo name (with or without its organisation), a hub id, a directory in the original, the diffusers
            (also a pipeline with a `vae/` folder) or our own layout, a run of `dcae train-ae` or one of its
            checkpoints, or a weights file; None is the embedded model.
            Behind a local one or a zoo name `-c32` asks for the 32 leading channels of its latent.
        revision: of a hub repository.

    Raises:
        UsageError: nothing is called that.
        CheckpointError: the directory is no autoencoder.
        DownloadError: the files are not cached and cannot be downloaded.
    """
    if model is None or find_autoencoder(str(model)) is AUTOENCODERS[EMBEDDED_AUTOENCODER]:
        return open_directory(embedded_directory(EMBEDDED_AUTOENCODER))
    path, name = Path(model), str(model)
    if path.is_dir():
        return open_directory(path)
    if path.is_file():
        return _lone_file(path)
    if entry := find_autoencoder(name):
        return _from_zoo(entry, name, revision)
    if (leading := layouts.local_leading(path)) is not None:
        return replace(locate_autoencoder(leading[0]), leading_channels=leading[1])
    if hub.is_hub_id(name):
        return _from_hub(name, revision)
    raise not_found(name, AUTOENCODERS)


def not_found(name: str, known: Iterable[str]) -> DcaeError:
    """The error for what is no place on this disk, no name of the zoo and no hub id."""
    if "/" in name or Path(name).suffix in WEIGHT_SUFFIXES:
        folder = Path(name).parent
        what_is_there = f"{folder} is there" if folder.is_dir() else f"nor is there a directory {folder}"
        hint = did_you_mean(near_paths(Path(name)), what_is_there)
        return CheckpointError(f"no directory or file {name}; {hint}")
    return unknown_model(name, list(known))


def find_without_asking(model: str) -> str | None:
    """What `locate_autoencoder` takes for a model that somebody else names, without a question to the hub about it.

    Known releases may be downloaded. Of any other hub id what lies in the cache is taken; None where nothing does.
    """
    if not model or find_autoencoder(model) is not None or Path(model).exists():
        return model
    if hub.is_hub_id(model):
        for description in (CONFIG_NAME, OWN_CONFIG_NAME):
            if hub.is_cached(model, [description]):
                return str(hub.fetch_files(model, [description], offline=True))
    return None


def open_directory(directory: Path) -> AutoencoderFiles:
    """Read what a local directory says it holds.

    Raises:
        CheckpointError: it holds no autoencoder in a known layout.
    """
    if is_training_run(directory):
        return open_directory(trained_in(directory))
    if is_checkpoint(directory):
        trained = read_trained(directory)
        checksums = recorded_checksums(directory)
        return AutoencoderFiles(
            directory, OWN, trained.config, None, trained.scaling_factor, trained.weights, checksums
        )
    if (directory / OWN_CONFIG_NAME).is_file():
        return _own(directory)
    if (directory / CONFIG_NAME).is_file():
        values = read_json(directory / CONFIG_NAME)
        if "model_name" in values:
            return _original(directory, str(values["model_name"]))
        if values.get("_class_name") == DIFFUSERS_CLASS_NAME:
            return _diffusers(directory, values)
        if values.get("_class_name") == KL_CLASS_NAME:
            return AutoencoderFiles(directory, KL, None, None, None, [directory / DIFFUSERS_WEIGHTS_NAME])
        raise CheckpointError(
            f"{directory / CONFIG_NAME} describes no deep-compression autoencoder: it has neither a model_name "
            f"nor the class {DIFFUSERS_CLASS_NAME}"
        )
    if (directory / "vae" / CONFIG_NAME).is_file():
        return open_directory(directory / "vae")
    raise CheckpointError(
        f"{directory} holds no model: expected {CONFIG_NAME} beside model.safetensors or "
        f"{DIFFUSERS_WEIGHTS_NAME}, a vae/ folder, or {OWN_CONFIG_NAME}"
    )


def _own(directory: Path) -> AutoencoderFiles:
    values = read_json(directory / OWN_CONFIG_NAME)
    try:
        if values["layout"] not in (DIFFUSERS, OWN):
            raise UsageError(f"unknown layout {values['layout']!r}")
        if not isinstance(values.get("name"), str | None):
            raise UsageError(f"no name: {values['name']!r}")
        checksums = {directory / Path(name).name: str(digest) for name, digest in values["weights"].items()}
        return AutoencoderFiles(
            where=directory,
            layout=values["layout"],
            config=AutoencoderConfig.from_dict(values["config"]),
            name=values.get("name"),
            scaling_factor=require_scaling_factor(values.get("scaling_factor"), directory / OWN_CONFIG_NAME),
            weights=list(checksums),
            sha256=checksums,
        )
    except (KeyError, TypeError, AttributeError, UsageError) as error:
        raise CheckpointError(f"{directory / OWN_CONFIG_NAME} describes no autoencoder: {error}") from error


def _original(directory: Path, name: str) -> AutoencoderFiles:
    entry = find_autoencoder(name)
    if entry is None:
        raise CheckpointError(f"{directory / CONFIG_NAME} names {name!r}, which is no released autoencoder")
    weights = original_weights(directory)
    return AutoencoderFiles(
        directory, ORIGINAL, entry.config, entry.name, entry.scaling_factor, [weights], hub.declared_sha256(weights)
    )


def _diffusers(directory: Path, values: dict) -> AutoencoderFiles:
    weights = _diffusers_weights(directory)
    try:
        config = layouts.from_diffusers_config(values)
    except CheckpointError as error:
        raise CheckpointError(f"{directory / CONFIG_NAME}: {error}") from error
    scaling_factor = require_scaling_factor(values.get("scaling_factor"), directory / CONFIG_NAME)
    checksums = {path: digest for part in weights for path, digest in hub.declared_sha256(part).items()}
    return AutoencoderFiles(directory, DIFFUSERS, config, None, scaling_factor, weights, checksums)


def _diffusers_weights(directory: Path) -> list[Path]:
    """The one file, or the parts that `save_pretrained(max_shard_size=...)` names in an index."""
    whole = directory / DIFFUSERS_WEIGHTS_NAME
    if whole.is_file():
        return [whole]
    index = directory / layouts.DIFFUSERS_INDEX_NAME
    if not index.is_file():
        raise CheckpointError(f"{directory} has a {CONFIG_NAME} but no {DIFFUSERS_WEIGHTS_NAME}")
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index} does not say which file holds which tensor")
    parts = [directory / Path(name).name for name in sorted(set(names.values()))]
    for part in parts:
        if not part.is_file():
            raise CheckpointError(f"{directory} has no {part.name}, which its index names")
    return parts


def _lone_file(path: Path) -> AutoencoderFiles:
    """A weights file: its directory's configuration if that is about it, else a zoo name in its own name, else none."""
    if path.suffix not in WEIGHT_SUFFIXES:
        raise CheckpointError(f"{path} is no model: weights are read from {', '.join(WEIGHT_SUFFIXES)} files")
    entry = find_autoencoder(path.stem)
    if entry is not None and entry.whole is not None:
        whole = AUTOENCODERS[entry.whole].config
        files = AutoencoderFiles(path, ORIGINAL, whole, entry.name, entry.scaling_factor, [path])
        return replace(files, leading_channels=entry.config.latent_channels)
    if entry is None and (path.parent / CONFIG_NAME).is_file():
        entry = find_autoencoder(str(read_json(path.parent / CONFIG_NAME).get("model_name")))
    config, name, scaling_factor = (entry.config, entry.name, entry.scaling_factor) if entry else (None, None, None)
    return AutoencoderFiles(path, ORIGINAL, config, name, scaling_factor, [path])


def original_weights(directory: Path) -> Path:
    """The weights file of a directory in the original layout, whichever format it has; CheckpointError without one."""
    for suffix in WEIGHT_SUFFIXES:
        if (file := directory / f"{WEIGHTS_STEM}{suffix}").is_file():
            return file
    raise CheckpointError(f"{directory} has a {CONFIG_NAME} but no {WEIGHTS_STEM}.safetensors")


def _from_zoo(entry: AutoencoderEntry, asked: str, revision: str | None) -> AutoencoderFiles:
    """The layout that was asked for by its hub id, else whichever is cached, else a download of the original one."""
    if entry.whole is not None:
        whole = _from_zoo(AUTOENCODERS[entry.whole], asked, revision)
        return replace(whole, name=entry.name, leading_channels=entry.config.latent_channels)
    repositories = repositories_of(entry)
    if not repositories:
        raise DownloadError(
            f"{entry.name} is not on the hub; get its checkpoint from its authors and pass it as "
            f"--model path/to/{entry.name}.pt"
        )
    asked_for = [(repository, files) for repository, files in repositories if repository == asked]
    candidates = asked_for or repositories
    cached = [pair for pair in candidates if revision is None and hub.is_cached(*pair)]
    repository, files = (cached or candidates)[0]
    found = open_directory(hub.fetch_files(repository, files, revision, offline=bool(cached)))
    return AutoencoderFiles(
        found.where, found.layout, entry.config, entry.name, entry.scaling_factor, found.weights, found.sha256
    )


def _from_hub(repository: str, revision: str | None) -> AutoencoderFiles:
    """Any repository on the hub, of an autoencoder or of a pipeline: its description says which weights to ask for."""
    refusals: list[DcaeError] = []
    for folder in ("", "vae/"):
        try:
            directory = hub.fetch_files(repository, [folder + CONFIG_NAME], revision)
        except (UsageError, DownloadError) as error:
            refusals.append(error)
            continue
        is_original = "model_name" in read_json(directory / folder / CONFIG_NAME)
        weights = folder + (f"{WEIGHTS_STEM}.safetensors" if is_original else DIFFUSERS_WEIGHTS_NAME)
        return open_directory(hub.fetch_files(repository, [folder + CONFIG_NAME, weights], revision) / folder)
    try:
        return fetch_own(repository, revision)
    except (UsageError, DownloadError) as error:
        raise hub.neither_here_nor_there(repository, refusals[0]) from error


def fetch_own(repository: str, revision: str | None, folder: str = "") -> AutoencoderFiles:
    """An autoencoder that `save_autoencoder` wrote, in a repository or in a folder of it, whose name ends in a slash.

    Raises:
        DownloadError: a file is not cached and cannot be downloaded.
        UsageError: the hub has no such repository or revision, or no such file in it.
        CheckpointError: its description is none of an autoencoder.
    """
    directory = hub.fetch_files(repository, [folder + OWN_CONFIG_NAME], revision) / folder
    files = open_directory(directory)
    hub.fetch_files(repository, [folder + path.name for path in files.weights], revision)
    return files


def load_autoencoder(
    model: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    prepare: bool = True,
    revision: str | None = None,
) -> Autoencoder:
    """Load an autoencoder, strictly.

    Costs one copy of the weights in memory (f32c32: 1.3 GB in float32).

    Args:
        model: a zoo name, a hub id, a directory in any known layout, or a weights file; None is the embedded model.
            A hub id or directory of diffusers' AutoencoderKL (SD's and FLUX's VAE) gives a `KLAutoencoder`.
        device: where it goes.
        dtype: of its weights, such as `torch.bfloat16` or "bf16"; float32 if None, whatever the file holds.
        prepare: ready for fast inference, frozen; False gives the plain network, for training and export.
        revision: of a hub repository: branch, tag or commit.

    Returns:
        The network in evaluation mode, with `.scaling_factor`.

    Raises:
        UsageError: nothing is called that, or no such dtype.
        CheckpointError: the weights are damaged or do not fit.
        DownloadError: the files are not cached and cannot be downloaded.
        ResourceError: this machine has no such device.
    """
    device = select_device(str(device))
    files = locate_autoencoder(model, revision)
    network = read_autoencoder(files, parse_dtype(dtype) if isinstance(dtype, str) else dtype).to(device)
    return prepare_for_inference(network) if prepare else network


def read_autoencoder(files: AutoencoderFiles, dtype: torch.dtype | None = None) -> Autoencoder:
    """The plain network that located files hold, in evaluation mode, on the CPU.

    Raises:
        UsageError: a KL autoencoder, and diffusers is not installed.
        CheckpointError: the weights are damaged or do not fit.
    """
    if files.layout == KL:
        if files.leading_channels is not None:
            raise UsageError(f"{files.where} is a KL autoencoder; its leading channels cannot stand alone")
        return cast(Autoencoder, read_kl_autoencoder(files.weights[0], dtype))  # it has the same methods
    state = read_files(files.weights, files.sha256)
    config = files.config or _recognise(state, files.where)
    if files.layout == ORIGINAL:
        state = layouts.from_original(config, state)
    elif files.layout == DIFFUSERS:
        state = layouts.from_diffusers(config, state)
    if files.leading_channels is not None:
        config, state = layouts.keep_leading(config, state, files.leading_channels, files.where)
    network = build_on_meta(config)
    load_strictly(network, state, files.where, dtype)
    network.scaling_factor = files.scaling_factor
    return network.eval()


def _recognise(state: dict[str, Tensor], where: Path) -> AutoencoderConfig:
    """The released configuration whose keys and shapes a lone weights file has."""
    shapes = {key: tensor.shape for key, tensor in state.items()}
    for entry in AUTOENCODERS.values():
        expected = layouts.to_original(entry.config, build_on_meta(entry.config).state_dict())
        if shapes == {key: tensor.shape for key, tensor in expected.items()}:
            return entry.config
    raise CheckpointError(
        f"{where}: its tensors are those of no released autoencoder; put it beside a config.json that says what it is"
    )
