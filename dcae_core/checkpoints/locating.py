"""From what a user calls a model to the files that hold it, and what those files say they are."""

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from dcae_core.checkpoints import diffusers_layout, hub
from dcae_core.checkpoints.original_layout import WEIGHTS_STEM
from dcae_core.checkpoints.reading import WEIGHT_SUFFIXES, read_json, require_scaling_factor
from dcae_core.errors import CheckpointError, DownloadError, UsageError
from dcae_core.models.autoencoder_config import AutoencoderConfig
from dcae_core.zoo import AUTOENCODERS, EMBEDDED_AUTOENCODER, AutoencoderEntry, find_autoencoder, unknown_model

OWN_CONFIG_NAME = "dcae.json"
CONFIG_NAME = "config.json"
ORIGINAL, DIFFUSERS, OWN = "original", "diffusers", "dcae"


@dataclass(frozen=True)
class AutoencoderFiles:
    """An autoencoder on the disk.

    Attributes:
        where: the directory or file, for messages.
        layout: whose key names the weights have: "original", "diffusers" or "dcae".
        config: the network; None for a lone weights file, whose keys must tell.
        name: a zoo name where one is known.
        scaling_factor: of its latents, where known.
        weights: the files; together they hold every tensor.
        sha256: what a file's bytes must hash to, for those files where it is known.
    """

    where: Path
    layout: str
    config: AutoencoderConfig | None
    name: str | None
    scaling_factor: float | None
    weights: list[Path]
    sha256: dict[Path, str] = field(default_factory=dict)


def locate_autoencoder(model: str | Path | None = None, revision: str | None = None) -> AutoencoderFiles:
    """Find the files of an autoencoder, downloading them where they are in no cache.

    Args:
        model: a zoo name (with or without its organisation), a hub id, a directory in the original, the diffusers
            (also a pipeline with a `vae/` folder) or our own layout, or a weights file; None is the embedded model.
        revision: of a hub repository.

    Raises:
        UsageError: nothing is called that.
        CheckpointError: the directory is no autoencoder.
        DownloadError: the files are not cached and cannot be downloaded.
    """
    if model is None or find_autoencoder(str(model)) is AUTOENCODERS[EMBEDDED_AUTOENCODER]:
        return open_directory(embedded_directory())
    path = Path(model)
    if path.is_dir():
        return open_directory(path)
    if path.is_file():
        return _lone_file(path)
    name = str(model)
    if entry := find_autoencoder(name):
        return _from_zoo(entry, name, revision)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_hub(name, revision)
    if "/" in name or path.suffix in WEIGHT_SUFFIXES:
        raise CheckpointError(f"no directory or file {name}")
    raise unknown_model(name, list(AUTOENCODERS))


def embedded_directory() -> Path:
    """Where the embedded model lies inside this package."""
    return Path(str(resources.files("dcae_core") / "weights" / EMBEDDED_AUTOENCODER))


def is_cached(entry: AutoencoderEntry) -> bool:
    """Whether a zoo model can be loaded without a network."""
    return any(hub.is_cached(repository, files) for repository, files in _repositories(entry))


def open_directory(directory: Path) -> AutoencoderFiles:
    """Read what a local directory says it holds.

    Raises:
        CheckpointError: it holds no autoencoder in a known layout.
    """
    if (directory / OWN_CONFIG_NAME).is_file():
        return _own(directory)
    if (directory / CONFIG_NAME).is_file():
        values = read_json(directory / CONFIG_NAME)
        if "model_name" in values:
            return _original(directory, str(values["model_name"]))
        if values.get("_class_name") == diffusers_layout.CLASS_NAME:
            return _diffusers(directory, values)
        raise CheckpointError(
            f"{directory / CONFIG_NAME} describes no deep-compression autoencoder: it has neither a model_name "
            f"nor the class {diffusers_layout.CLASS_NAME}"
        )
    if (directory / "vae" / CONFIG_NAME).is_file():
        return open_directory(directory / "vae")
    raise CheckpointError(
        f"{directory} holds no model: expected {CONFIG_NAME} beside model.safetensors or "
        f"{diffusers_layout.WEIGHTS_NAME}, a vae/ folder, or {OWN_CONFIG_NAME}"
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
    weights = _weights_file(directory, WEIGHTS_STEM)
    return AutoencoderFiles(
        directory, ORIGINAL, entry.config, entry.name, entry.scaling_factor, [weights], _declared(weights)
    )


def _diffusers(directory: Path, values: dict) -> AutoencoderFiles:
    weights = _diffusers_weights(directory)
    config = diffusers_layout.from_diffusers_config(values)
    scaling_factor = require_scaling_factor(values.get("scaling_factor"), directory / CONFIG_NAME)
    checksums = {path: digest for part in weights for path, digest in _declared(part).items()}
    return AutoencoderFiles(directory, DIFFUSERS, config, None, scaling_factor, weights, checksums)


def _diffusers_weights(directory: Path) -> list[Path]:
    """The one file, or the parts that `save_pretrained(max_shard_size=...)` names in an index."""
    whole = directory / diffusers_layout.WEIGHTS_NAME
    if whole.is_file():
        return [whole]
    index = directory / diffusers_layout.INDEX_NAME
    if not index.is_file():
        raise CheckpointError(f"{directory} has a {CONFIG_NAME} but no {diffusers_layout.WEIGHTS_NAME}")
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
    if entry is None and (path.parent / CONFIG_NAME).is_file():
        entry = find_autoencoder(str(read_json(path.parent / CONFIG_NAME).get("model_name")))
    config, name, scaling_factor = (entry.config, entry.name, entry.scaling_factor) if entry else (None, None, None)
    return AutoencoderFiles(path, ORIGINAL, config, name, scaling_factor, [path])


def _weights_file(directory: Path, stem: str) -> Path:
    for suffix in WEIGHT_SUFFIXES:
        if (directory / f"{stem}{suffix}").is_file():
            return directory / f"{stem}{suffix}"
    raise CheckpointError(f"{directory} has a {CONFIG_NAME} but no {stem}.safetensors")


def _declared(weights: Path) -> dict[Path, str]:
    digest = hub.cached_sha256(weights)
    return {weights: digest} if digest else {}


def _repositories(entry: AutoencoderEntry) -> list[tuple[str, list[str]]]:
    layouts = (
        (entry.hub_id, [CONFIG_NAME, f"{WEIGHTS_STEM}.safetensors"]),
        (entry.diffusers_hub_id, [CONFIG_NAME, diffusers_layout.WEIGHTS_NAME]),
    )
    return [(repository, files) for repository, files in layouts if repository]


def _from_zoo(entry: AutoencoderEntry, asked: str, revision: str | None) -> AutoencoderFiles:
    """The layout that was asked for by its hub id, else whichever is cached, else a download of the original one."""
    repositories = _repositories(entry)
    if not repositories:
        raise DownloadError(
            f"{entry.name} is not on the hub; get its checkpoint from its authors and pass it as "
            f"--model path/to/{entry.name}.pt"
        )
    asked_for = [(repository, files) for repository, files in repositories if repository == asked]
    candidates = asked_for or repositories
    cached = [pair for pair in candidates if revision is None and hub.is_cached(*pair)]
    repository, files = (cached or candidates)[0]
    found = open_directory(hub.fetch(repository, files, revision, offline=bool(cached)))
    return AutoencoderFiles(
        found.where, found.layout, entry.config, entry.name, entry.scaling_factor, found.weights, found.sha256
    )


def _from_hub(repository: str, revision: str | None) -> AutoencoderFiles:
    """Any repository on the hub: its config.json says which weights file to ask for."""
    directory = hub.fetch(repository, [CONFIG_NAME], revision)
    values = read_json(directory / CONFIG_NAME)
    is_diffusers = values.get("_class_name") == diffusers_layout.CLASS_NAME
    weights = diffusers_layout.WEIGHTS_NAME if is_diffusers else f"{WEIGHTS_STEM}.safetensors"
    return open_directory(hub.fetch(repository, [CONFIG_NAME, weights], revision))
