"""Deep Compression Autoencoders and the latent diffusion models on top of them.

The names below are the library's public face; each is imported when it is first used.
"""

import os
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

# Read by huggingface_hub when it is first imported: it sends statistics of its own unless told not to.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:  # what editors and type checkers see; `_PUBLIC_NAMES` below is what happens
    from dcae_core import diffusion as diffusion
    from dcae_core.checkpoints import load_autoencoder as load_autoencoder
    from dcae_core.data.latents import LatentDataset as LatentDataset
    from dcae_core.pipelines.generate import load_diffusion as load_diffusion
    from dcae_core.pipelines.sampling import sample as sample
    from dcae_core.pipelines.single_image import decode_image as decode_image
    from dcae_core.pipelines.single_image import encode_image as encode_image
    from dcae_core.pipelines.single_image import reconstruct_image as reconstruct_image
    from dcae_core.zoo import create_autoencoder as create_autoencoder
    from dcae_core.zoo import create_denoiser as create_denoiser
    from dcae_core.zoo import list_models as list_models

    __version__: str

_PUBLIC_NAMES = {
    "LatentDataset": "dcae_core.data.latents",
    "create_autoencoder": "dcae_core.zoo",
    "create_denoiser": "dcae_core.zoo",
    "decode_image": "dcae_core.pipelines.single_image",
    "encode_image": "dcae_core.pipelines.single_image",
    "list_models": "dcae_core.zoo",
    "load_autoencoder": "dcae_core.checkpoints",
    "load_diffusion": "dcae_core.pipelines.generate",
    "reconstruct_image": "dcae_core.pipelines.single_image",
    "sample": "dcae_core.pipelines.sampling",
}

_PUBLIC_MODULES = ("diffusion",)

__all__ = sorted([*_PUBLIC_NAMES, *_PUBLIC_MODULES, "__version__"])


if not TYPE_CHECKING:  # a type checker that saw it would take every name for right

    def __getattr__(name: str) -> Any:
        if name in _PUBLIC_NAMES:
            return getattr(import_module(_PUBLIC_NAMES[name]), name)
        if name in _PUBLIC_MODULES:
            return import_module(f"dcae_core.{name}")
        if name == "__version__":
            return metadata.version("dcae")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
