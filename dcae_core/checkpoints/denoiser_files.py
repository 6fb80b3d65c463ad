"""What `dcae.json` says of a diffusion model of ours, read and written, and the files that lie beside it."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcae_core.checkpoints.hub import WEIGHTS_STEM
from dcae_core.checkpoints.training_runs import model_name, recorded_checksums
from dcae_core.errors import CheckpointError, UsageError
from dcae_core.files import sha256_of_file
from dcae_core.models.configs import DenoiserConfig, denoiser_config
from dcae_core.models.normalisation import ChannelNormalisation
from dcae_core.weights import require_scaling_factor
from dcae_core.zoo import USUAL_SAMPLING, SamplingDefaults

DESCRIPTION_KEY = "diffusion"
EMA, RAW = "ema", "raw"
SINGLE_WEIGHTS_NAME = f"{WEIGHTS_STEM}.safetensors"


@dataclass(frozen=True)
class DiffusionFiles:
    """A diffusion model on the disk.

    Attributes:
        name: a zoo name, or what the place where it lies is called.
        where: the directory or file, for messages.
        config: the network.
        prediction: "epsilon", "epsilon_variance" or "velocity".
        autoencoder: what to load where the weights hold no autoencoder; None where nothing says.
        made_by: fingerprints of the autoencoder that made its latents, whole and of the encoder, where they are known.
        scaling_factor: what the network's latents were multiplied by; None is the autoencoder's own.
        weights: the files; later ones take the place of tensors of the same names in earlier ones.
        sha256: what a file's bytes must hash to, for those files where it is known.
        class_names: one for each class, where the files say.
        normalisation: per channel, in the place of the scaling factor; None where that is all.
        sampling: what it draws, and how, where nobody says otherwise.
    """

    name: str
    where: Path
    config: DenoiserConfig
    prediction: str
    autoencoder: str | None
    scaling_factor: float | None
    weights: tuple[Path, ...]
    sha256: dict[Path, str] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    made_by: tuple[str | None, str | None] = (None, None)
    normalisation: ChannelNormalisation | None = None
    sampling: SamplingDefaults = USUAL_SAMPLING

    def fingerprint(self) -> str:
        """SHA-256 that tells these weights from others; costs a pass over the files where no hash of them is known."""
        digests = [self.sha256.get(file) or sha256_of_file(file) for file in self.weights]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def read_description(directory: Path, description_file: Path, values: dict[str, Any], weights: str) -> DiffusionFiles:
    """A model whose weights lie in `directory`, from `values` of its `dcae.json`.

    Args:
        directory: of the model, or of a checkpoint of a run.
        description_file: where `values` are from: in `directory`, or in the run.
        values: of the file.
        weights: "ema" or "raw", where there are both.

    Raises:
        CheckpointError: weights are missing, or it describes no diffusion model.
    """
    try:
        recorded = {directory / name: digest for name, digest in recorded_weights(values).items()}
        raw, average = [*recorded] or [directory / SINGLE_WEIGHTS_NAME], directory / f"{EMA}.safetensors"
        if missing := next((file for file in raw if not file.is_file()), None):
            raise CheckpointError(f"{directory} holds no {missing.name}")
        description = values[DESCRIPTION_KEY]
        # Earlier files also say how the network was trained, which does not belong to its configuration.
        settings = {key: value for key, value in description["config"].items() if key != "activation_checkpointing"}
        config = denoiser_config(settings)
        if not isinstance(description["autoencoder"], str | None):
            raise UsageError(f"autoencoder is no name or place: {description['autoencoder']!r}")
        return DiffusionFiles(
            name=model_name(directory),
            where=directory,
            config=config,
            prediction=description["prediction"],
            autoencoder=_place_of_autoencoder(description, description_file.parent),
            scaling_factor=require_scaling_factor(description["scaling_factor"], description_file),
            weights=(*raw, average) if weights == EMA and average.is_file() else (*raw,),
            sha256=recorded or recorded_checksums(directory),
            class_names=_class_names(description.get("class_names"), config.num_classes),
            made_by=(description.get("autoencoder_fingerprint"), description.get("encoder_fingerprint")),
            normalisation=_read_normalisation(description.get("normalisation"), config),
        )
    except (AttributeError, KeyError, TypeError, ValueError, UsageError) as error:
        raise CheckpointError(f"{description_file} describes no diffusion model: {error}") from error


def recorded_weights(values: dict[str, Any]) -> dict[str, str]:
    """Names and SHA-256 of the files of weights that a `dcae.json` lists; none where it does not say.

    Raises:
        UsageError: it lists something else.
    """
    listed = values.get("weights", {})
    if not isinstance(listed, dict) or not all(isinstance(digest, str) for digest in listed.values()):
        raise UsageError("weights must be names of files with their SHA-256")
    return {Path(name).name: digest for name, digest in listed.items()}


def _place_of_autoencoder(description: dict[str, Any], directory: Path) -> str | None:
    """Where it is now: beside the run as when it was trained, else where it was then; what had no place has a name."""
    given, relative = description["autoencoder"], description.get("autoencoder_path")
    if relative is None:
        return given
    place = (directory.resolve() / str(relative)).resolve()
    return str(place if place.exists() or not os.path.isabs(given) else given)


def _class_names(names: object, num_classes: int) -> tuple[str, ...] | None:
    if not names:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError("class_names must be a list of texts")
    if len(names) != num_classes:
        raise UsageError(f"{len(names)} class_names, and the network has {num_classes} classes")
    return tuple(names)


def _read_normalisation(values: Any, config: DenoiserConfig) -> ChannelNormalisation | None:
    if values is None:
        return None
    normalisation = ChannelNormalisation.of(values["mean"], values["std"])
    if len(normalisation.mean) != config.in_channels:
        raise UsageError(f"it normalises {len(normalisation.mean)} channels of latents with {config.in_channels}")
    return normalisation


def describe_denoiser(
    config: DenoiserConfig,
    prediction: str,
    autoencoder: str | None,
    scaling_factor: float,
    class_names: Sequence[str] | None = None,
    *,
    normalisation: ChannelNormalisation | None = None,
    where: Path | None = None,
    made_by: tuple[str | None, str | None] = (None, None),
) -> dict[str, Any]:
    """What `dcae.json` keeps under "diffusion", so that the weights beside it or in `checkpoints/` can be read back.

    `autoencoder` is what `load_autoencoder` takes to get that of its latents, None the embedded one; latents were
    multiplied by `scaling_factor`, or where there is one normalised by channel.
    One on this disk is found again from `where`, the directory of `dcae.json`.
    `made_by` are fingerprints of the autoencoder that made the latents: of all of it, and of its encoder alone.
    """
    path = None
    if where is not None and autoencoder is not None and Path(autoencoder).exists():
        path = os.path.relpath(Path(autoencoder).resolve(), where.resolve())
    return {
        "config": config.to_dict(),
        "prediction": prediction,
        "autoencoder": autoencoder,
        "autoencoder_path": path,
        "autoencoder_fingerprint": made_by[0],
        "encoder_fingerprint": made_by[1],
        "scaling_factor": scaling_factor,
        "normalisation": normalisation.to_dict() if normalisation is not None else None,
        "class_names": list(class_names) if class_names else None,
    }
