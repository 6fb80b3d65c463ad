"""Reading, converting, writing and downloading weights: the only room that knows file layouts and key names."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcae_core.checkpoints.autoencoders import load_autoencoder
    from dcae_core.checkpoints.saving import save_autoencoder

__all__ = ["load_autoencoder", "save_autoencoder"]

_FILES = {"load_autoencoder": "autoencoders", "save_autoencoder": "saving"}


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:  # imported when it is first used: `hub` alone needs no torch
        if name in _FILES:
            return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
