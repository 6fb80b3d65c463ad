"""Deep Compression Autoencoders and the latent diffusion models on top of them.

The names below are the library's public face; each is imported when it is first used.
"""

import os
from importlib import import_module, metadata
from typing import Any

# Read by huggingface_hub when it is first imported: it sends statistics of its own unless told not to.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

_PUBLIC_NAMES = {
    "create_autoencoder": "dcae_core.zoo",
    "create_denoiser": "dcae_core.zoo",
    "list_models": "dcae_core.zoo",
    "load_autoencoder": "dcae_core.checkpoints",
    "load_diffusion": "dcae_core.pipelines.generate",
}

_PUBLIC_MODULES = ("diffusion",)

__all__ = sorted([*_PUBLIC_NAMES, *_PUBLIC_MODULES, "__version__"])


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
