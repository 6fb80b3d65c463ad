"""Autoencoders on disk and on the hub: where their files are, loading them, saving them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from dcae_core.checkpoints import hub, layouts
from dcae_core.checkpoints.kl_autoencoder import find_kl_autoencoder, read_kl_autoencoder
from dcae_core.checkpoints.layouts import WEIGHTS_STEM, from_diffusers, from_original, to_original
from dcae_core.devices import select_device
from dcae_core.errors import CheckpointError, DownloadError, UsageError
from dcae_core.files import replace_directory, sha256_of_file
from dcae_core.models.autoencoder import Autoencoder, AutoencoderConfig, build_on_meta
from dcae_core.models.inference import prepare_for_inference
from dcae_core.weights import WEIGHT_SUFFIXES, load_strictly, read_json, read_weights, require_scaling_factor
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
    return Path(str(resources.files("dcae_core") / "embedded" / EMBEDDED_AUTOENCODER))


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
        if values.get("_class_name") == layouts.DIFFUSERS_CLASS_NAME:
            return _diffusers(directory, values)
        raise CheckpointError(
            f"{directory / CONFIG_NAME} describes no deep-compression autoencoder: it has neither a model_name "
            f"nor the class {layouts.DIFFUSERS_CLASS_NAME}"
        )
    if (directory / "vae" / CONFIG_NAME).is_file():
        return open_directory(directory / "vae")
    raise CheckpointError(
        f"{directory} holds no model: expected {CONFIG_NAME} beside model.safetensors or "
        f"{layouts.DIFFUSERS_WEIGHTS_NAME}, a vae/ folder, or {OWN_CONFIG_NAME}"
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
    config = layouts.from_diffusers_config(values)
    scaling_factor = require_scaling_factor(values.get("scaling_factor"), directory / CONFIG_NAME)
    checksums = {path: digest for part in weights for path, digest in _declared(part).items()}
    return AutoencoderFiles(directory, DIFFUSERS, config, None, scaling_factor, weights, checksums)


def _diffusers_weights(directory: Path) -> list[Path]:
    """The one file, or the parts that `save_pretrained(max_shard_size=...)` names in an index."""
    whole = directory / layouts.DIFFUSERS_WEIGHTS_NAME
    if whole.is_file():
        return [whole]
    index = directory / layouts.DIFFUSERS_INDEX_NAME
    if not index.is_file():
        raise CheckpointError(f"{directory} has a {CONFIG_NAME} but no {layouts.DIFFUSERS_WEIGHTS_NAME}")
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
    found = (
        (entry.hub_id, [CONFIG_NAME, f"{WEIGHTS_STEM}.safetensors"]),
        (entry.diffusers_hub_id, [CONFIG_NAME, layouts.DIFFUSERS_WEIGHTS_NAME]),
    )
    return [(repository, files) for repository, files in found if repository]


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
    is_diffusers = values.get("_class_name") == layouts.DIFFUSERS_CLASS_NAME
    weights = layouts.DIFFUSERS_WEIGHTS_NAME if is_diffusers else f"{WEIGHTS_STEM}.safetensors"
    return open_directory(hub.fetch(repository, [CONFIG_NAME, weights], revision))


def load_autoencoder(
    model: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    prepare: bool = True,
    revision: str | None = None,
) -> Autoencoder:
    """Load an autoencoder, strictly.

    Costs one copy of the weights in memory (f32c32: 1.3 GB in float32).

    Args:
        model: a zoo name, a hub id, a directory in any known layout, or a weights file; None is the embedded model.
            A hub id or directory of diffusers' AutoencoderKL (SD's and FLUX's VAE) gives a `KLAutoencoder`.
        device: where it goes.
        dtype: of its weights; float32 if None, whatever the file holds.
        prepare: ready for fast inference, frozen; False gives the plain network, for training and export.
        revision: of a hub repository: branch, tag or commit.

    Returns:
        The network in evaluation mode, with `.scaling_factor`.

    Raises:
        UsageError: nothing is called that.
        CheckpointError: the weights are damaged or do not fit.
        DownloadError: the files are not cached and cannot be downloaded.
        ResourceError: this machine has no such device.
    """
    device = select_device(str(device))
    network: Autoencoder
    if (baseline := find_kl_autoencoder(model, revision)) is not None:
        network = cast(Autoencoder, read_kl_autoencoder(baseline, dtype).to(device))  # it has the same methods
    else:
        network = read_autoencoder(locate_autoencoder(model, revision), dtype).to(device)
    return prepare_for_inference(network) if prepare else network


def read_autoencoder(files: AutoencoderFiles, dtype: torch.dtype | None = None) -> Autoencoder:
    """The plain network that located files hold, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: the weights are damaged or do not fit.
    """
    state: dict[str, Tensor] = {}
    for path in files.weights:
        state |= read_weights(path, files.sha256.get(path))
    config = files.config or _recognise(state, files.where)
    if files.layout == ORIGINAL:
        state = from_original(config, state)
    elif files.layout == DIFFUSERS:
        state = from_diffusers(config, state)
    network = build_on_meta(config)
    load_strictly(network, state, files.where, dtype)
    network.scaling_factor = files.scaling_factor
    return network.eval()


def _recognise(state: dict[str, Tensor], where: Path) -> AutoencoderConfig:
    """The released configuration whose keys and shapes a lone weights file has."""
    shapes = {key: tensor.shape for key, tensor in state.items()}
    for entry in AUTOENCODERS.values():
        expected = to_original(entry.config, build_on_meta(entry.config).state_dict())
        if shapes == {key: tensor.shape for key, tensor in expected.items()}:
            return entry.config
    raise CheckpointError(
        f"{where}: its tensors are those of no released autoencoder; put it beside a config.json that says what it is"
    )


LAYOUTS = (ORIGINAL, DIFFUSERS, OWN)
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
    layout = layout or best_layout(network)
    state = {key: _stored(tensor, dtype) for key, tensor in network.state_dict().items()}
    with replace_directory(directory) as partial:
        if layout == ORIGINAL:
            if name not in AUTOENCODERS or AUTOENCODERS[name].config != network.config:
                raise UsageError(
                    "the original layout only names released networks, and this one is none of them; "
                    "use the diffusers or the dcae layout"
                )
            save_file(to_original(network.config, state), partial / f"{WEIGHTS_STEM}.safetensors")
            _write_json(partial / CONFIG_NAME, {"model_name": name})
            return
        if layout == DIFFUSERS:
            config = layouts.to_diffusers_config(network.config, network.scaling_factor)
            _write_json(partial / CONFIG_NAME, config)
            converted = layouts.to_diffusers(network.config, state)
            # diffusers refuses weights whose metadata does not name the framework.
            save_file(converted, partial / layouts.DIFFUSERS_WEIGHTS_NAME, metadata={"format": "pt"})
        else:
            for number, tensors in enumerate(_split(state), start=1):
                save_file(tensors, partial / f"weights-{number}.safetensors")
        _write_json(
            partial / OWN_CONFIG_NAME,
            {
                "layout": layout,
                "name": name,
                "scaling_factor": network.scaling_factor,
                "config": network.config.to_dict(),
                "weights": {file.name: sha256_of_file(file) for file in sorted(partial.glob("*.safetensors"))},
                "metadata": metadata or {},
            },
        )


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
