"""What of a model goes to the hub: its weights, their description, a grid of images, and a card that explains them."""

from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
import yaml

from dcae_core.checkpoints.autoencoders import DIFFUSERS, locate_autoencoder, read_autoencoder
from dcae_core.checkpoints.denoisers import is_diffusion_model, locate_diffusion
from dcae_core.checkpoints.layouts import note_on_diffusers
from dcae_core.checkpoints.saving import best_layout, save_autoencoder, save_diffusion
from dcae_core.checkpoints.training_runs import RunRecord, record_of
from dcae_core.errors import CheckpointError
from dcae_core.files import write_text
from dcae_core.models import build_denoiser
from dcae_core.models.configs import AutoencoderConfig, DenoiserConfig
from dcae_core.pipelines.pages import render
from dcae_core.recipes.yaml_reader import read_yaml
from dcae_core.zoo import EMBEDDED_AUTOENCODER

CARD_NAME, GRID_NAME = "README.md", "samples.png"
_OURS = "<!-- dcae push writes this card anew until this line is removed -->"
_NOT_TOLD = ("command", "run_dir", "checkpoints", "logging")


@dataclass(frozen=True)
class _Described:
    """What a card says of a model.

    Attributes:
        kind: "autoencoder" or "diffusion model".
        architecture: rows of a table.
        tags: that the hub finds it by.
        opens_in_diffusers: whether AutoencoderDC can express it.
        note: on who can open it.
        facts: for the template, what only this kind has.
    """

    kind: str
    architecture: dict[str, Any]
    tags: list[str]
    opens_in_diffusers: bool = False
    note: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def stage(source: Path, repository: str, directory: Path, licence: str | None = None) -> None:
    """Fill a new directory with what belongs on the hub, and nothing else: no optimiser, no logs, no data.

    A card that lies in `source` and was written by hand is taken as it is.

    Args:
        source: a directory with an autoencoder or a diffusion model, or a run of a training or a checkpoint of one.
        repository: what the card calls it, ORGANISATION/NAME.
        directory: to be made.
        licence: as the hub calls it, such as "apache-2.0"; None says that none was chosen.

    Raises:
        CheckpointError: there is no model in `source`, or it is damaged.
        UsageError: it is of a kind that is not written.
        ResourceError: the disk is full.
    """
    if not source.is_dir():
        raise CheckpointError(f"{source} is no directory; give that of a model, or of a training")
    described = (
        _save_diffusion(source, directory) if is_diffusion_model(source) else _save_autoencoder(source, directory)
    )
    record = record_of(source)
    if record is not None and record.grid is not None:
        copyfile(record.grid, directory / GRID_NAME)
    by_hand = source / CARD_NAME
    if is_written_by_hand(by_hand):
        copyfile(by_hand, directory / CARD_NAME)
    else:
        write_text(directory / CARD_NAME, _card(repository, described, record, licence))


def is_written_by_hand(card: Path) -> bool:
    """Whether there is a card that is not to be replaced."""
    return card.is_file() and _OURS not in card.read_text(encoding="utf-8", errors="replace")


def _save_autoencoder(source: Path, directory: Path) -> _Described:
    files = locate_autoencoder(source)
    network = read_autoencoder(files)
    save_autoencoder(network, directory, name=files.name)
    config, opens_in_diffusers = network.config, best_layout(network) == DIFFUSERS
    ratio, channels = config.spatial_compression_ratio, config.latent_channels
    architecture: dict[str, Any] = {
        "latent": f"{channels} channels, each side {ratio} times smaller than the image's",
        "scaling factor": network.scaling_factor,
        "parameters": f"{sum(parameter.numel() for parameter in network.parameters()):,}",
    }
    return _Described(
        "autoencoder",
        architecture | _stages(config),
        ["autoencoder", "dc-ae"],
        opens_in_diffusers=opens_in_diffusers,
        note=note_on_diffusers(config) if opens_in_diffusers else None,
        facts={"ratio": ratio, "channels": channels},
    )


def _stages(config: AutoencoderConfig) -> dict[str, str]:
    return {
        f"{side} {what}": ", ".join(map(str, getattr(config, f"{side}_{what}")))
        for what in ("widths", "depths", "blocks")
        for side in ("encoder", "decoder")
    }


def _save_diffusion(source: Path, directory: Path) -> _Described:
    files = locate_diffusion(source)
    save_diffusion(files, directory)
    config = files.config
    autoencoder = locate_diffusion(directory).autoencoder or EMBEDDED_AUTOENCODER
    comes_along = Path(autoencoder).is_relative_to(directory.resolve())
    return _Described(
        "diffusion model",
        {
            "network": config.architecture,
            "predicts": files.prediction,
            "latent": f"{config.in_channels} channels, {' x '.join(map(str, config.latent_size))}",
            "classes": config.num_classes or "none",
            "parameters": f"{_count(config):,}",
            "patch size": config.patch_size,
            "hidden size": config.hidden_size,
            "depth": config.depth,
            "heads": config.num_heads,
            "autoencoder": "in the folder `autoencoder`" if comes_along else f"`{autoencoder}`",
        },
        ["diffusion", "image-generation", config.architecture],
        facts={"num_classes": config.num_classes},
    )


def _count(config: DenoiserConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_denoiser(config).parameters())


def _card(repository: str, described: _Described, record: RunRecord | None, licence: str | None) -> str:
    front: dict[str, Any] = {"license": licence} if licence else {}
    front |= {"library_name": "dcae", "tags": described.tags}
    settings = None if record is None else _settings(record.recipe)
    return render(
        "model_card.md",
        front=yaml.safe_dump(front, sort_keys=False).strip(),
        ours=_OURS,
        repository=repository,
        name=repository.split("/")[-1],
        model=described,
        record=record,
        settings=settings,
        has_grid=record is not None and record.grid is not None,
        grid=GRID_NAME,
        licence=licence,
        **described.facts,
    )


def _settings(recipe: Path) -> str:
    """Of a training, as YAML, without what is about the machine that it ran on."""
    document, _ = read_yaml(recipe.read_text(encoding="utf-8"), str(recipe))
    settings = _told({key: value for key, value in document.items() if key not in _NOT_TOLD})
    text: str = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)
    return text.strip()


def _told(value: Any) -> Any:
    """What was set, and of every place, local or remote, the last name alone."""
    if isinstance(value, dict):
        return {key: _told(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_told(item) for item in value]
    return value.rstrip("/").split("/")[-1] if isinstance(value, str) else value
