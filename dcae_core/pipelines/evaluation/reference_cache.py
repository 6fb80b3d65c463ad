"""What was measured on the images of a reference, kept in the user's cache for the evaluations that follow."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dcae_core.errors import ResourceError
from dcae_core.files import cache_directory, make_directory, write_bytes
from dcae_core.metrics.frechet import Gaussian
from dcae_core.pipelines.evaluation.parts import evaluation_key
from dcae_core.pipelines.evaluation.scores import Comparison

_MEAN, _COVARIANCE = ".mean", ".covariance"
_WHOLE = ("features", "embeddings")


class ReferenceCache:
    """One reference, measured by one set of rules: a file that says of which images it is.

    Where these have changed since, or the file is damaged, it counts as absent and is written over.
    """

    def __init__(self, place: str, images: Any, **rules: Any) -> None:
        name = evaluation_key(reference=place, **rules)
        self._path = cache_directory("references") / f"{name}.safetensors"
        self._images = evaluation_key(images=images)

    def load(self) -> Comparison | None:
        """What was measured, without a name; None where it has to be measured."""
        try:
            with safe_open(self._path, framework="np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dictionary
                description = file.metadata()
        except (OSError, SafetensorError):
            return None
        if description != self._describe(arrays):
            return None
        kinds = [name.removesuffix(_MEAN) for name in arrays if name.endswith(_MEAN)]
        gaussians = {kind: Gaussian(arrays[kind + _MEAN], arrays[kind + _COVARIANCE]) for kind in kinds}
        features, embeddings = (torch.from_numpy(arrays[name]) if name in arrays else None for name in _WHOLE)
        return Comparison("", gaussians, features, embeddings, num_images=int(arrays["num_images"]))

    def save(self, measured: Comparison) -> None:
        """Keep it; without a place to write, the next evaluation measures again."""
        arrays = {"num_images": np.array(measured.num_images)}
        for kind, gaussian in measured.gaussians.items():
            arrays |= {kind + _MEAN: gaussian.mean, kind + _COVARIANCE: gaussian.covariance}
        for name in _WHOLE:
            if (rows := getattr(measured, name)) is not None:
                arrays[name] = rows.numpy()
        with suppress(ResourceError):
            make_directory(self._path.parent)
            write_bytes(self._path, save(arrays, self._describe(arrays)))

    def _describe(self, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
        digest = hashlib.sha256()
        for name in sorted(arrays):
            digest.update(name.encode() + arrays[name].tobytes())
        return {"images": self._images, "sha256": digest.hexdigest()}
