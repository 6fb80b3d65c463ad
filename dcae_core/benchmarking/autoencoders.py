"""Encoding, decoding and whole reconstructions as benchmark subjects."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcae_core.benchmarking.measuring import Contestant, Subject
from dcae_core.benchmarking.memory import held_bytes
from dcae_core.benchmarking.networks import NamedAutoencoder, diffusers_peer, open_autoencoder
from dcae_core.benchmarking.settings import DIFFUSERS, PLAIN, BenchSettings
from dcae_core.data.pictures import tensor_to_uint8, uint8_to_tensor
from dcae_core.errors import UsageError
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.models.compilation import compile_autoencoder
from dcae_core.models.complexity import autoencoder_complexity
from dcae_core.models.preparation import prepare_for_inference
from dcae_core.pipelines.reconstruct import reconstruct

_OURS = "dcae"


@dataclass(frozen=True)
class _Way:
    """One implementation of an autoencoder, as three functions."""

    name: str
    network: nn.Module
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    reconstruct: Callable[[Tensor], Tensor]


def autoencoder_subjects(whats: list[str], settings: BenchSettings) -> tuple[list[Subject], list[str]]:
    """Subjects "encode", "decode" and "reconstruct", and notes for the reader.

    Every implementation is in memory at once: one more copy of the weights for each of `settings.against`.

    Raises:
        UsageError: no such model, a resolution that does not fit, or a peer that cannot express the network.
    """
    opened = open_autoencoder(settings.model, settings.device, settings.dtype)
    config, size = opened.network.config, settings.resolution
    ratio = config.spatial_compression_ratio
    if size % ratio:
        raise UsageError(f"--resolution {size} is not a multiple of {ratio}, as {opened.name} needs")
    ways = _ways(opened, settings)
    encoding, decoding = autoencoder_complexity(config, size)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (settings.batch, 3, size, size), dtype=torch.uint8, generator=generator)
    pictures = uint8_to_tensor(pixels).to(settings.device, settings.dtype)
    with torch.inference_mode():
        latents = ways[-1].encode(pictures).clone()
    moved = pictures.nbytes + latents.nbytes
    calls: dict[str, tuple[int, int, Callable[[_Way], Callable[[], Tensor]]]] = {
        "encode": (encoding.macs, moved, lambda way: lambda: way.encode(pictures)),
        "decode": (decoding.macs, moved, lambda way: lambda: way.decode(latents)),
        "reconstruct": (
            encoding.macs + decoding.macs,
            2 * pixels.nbytes,
            lambda way: lambda: torch.stack([way.reconstruct(picture) for picture in pixels]),
        ),
    }
    subjects = []
    for what in whats:
        macs, moved_bytes, call_of = calls[what]
        contestants = [Contestant(way.name, _inference(call_of(way)), _holder(way.network)) for way in ways]
        setting = f"{opened.name}, {size} px, batch {settings.batch}"
        subjects.append(Subject(what, setting, settings.batch, settings.batch * macs, moved_bytes, contestants))
    return subjects, [f"{opened.name}: random weights, as none are cached"] if opened.random_weights else []


def _ways(opened: NamedAutoencoder, settings: BenchSettings) -> list[_Way]:
    """Ours, then what it is compared with; the peer takes the weights before ours are prepared."""
    network = opened.network
    others = []
    for name in settings.against:
        if name == DIFFUSERS:
            others.append(_diffusers_way(diffusers_peer(network), settings))
        elif name == PLAIN:
            others.append(_our_way(f"{_OURS} plain", copy.deepcopy(network)))
    if settings.plain:
        return [_our_way(f"{_OURS} plain", network), *others]
    prepare_for_inference(network)
    if settings.compiles:
        compile_autoencoder(network)
        return [_our_way(f"{_OURS} compiled", network), *others]
    return [_our_way(_OURS, network), *others]


def _our_way(name: str, network: Autoencoder) -> _Way:
    return _Way(name, network, network.encode, network.decode, lambda pixels: reconstruct(network, pixels).pixels)


def _diffusers_way(peer: nn.Module, settings: BenchSettings) -> _Way:
    def encode(x: Tensor) -> Tensor:
        return peer.encode(x).latent  # type: ignore[operator]

    def decode(z: Tensor) -> Tensor:
        return peer.decode(z).sample  # type: ignore[operator]

    def whole(pixels: Tensor) -> Tensor:
        picture = uint8_to_tensor(pixels)[None].to(settings.device, settings.dtype)
        return tensor_to_uint8(decode(encode(picture))[0].float()).cpu()

    return _Way(DIFFUSERS, peer, encode, decode, whole)


def _inference(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            return call()

    return run


def _holder(network: nn.Module) -> Callable[[], int]:
    return lambda: held_bytes(network)
