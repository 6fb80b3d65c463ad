"""`dcae info`: what this installation and this machine offer."""

from pathlib import Path
from typing import Any

from dcae_cli.options import Debug, Json

_PACKAGES = ("dcae", "torch", "torchvision", "numpy", "pillow", "safetensors", "huggingface_hub", "diffusers")


def info(json: Json = False, debug: Debug = False) -> None:
    """Print versions, devices, threads, the places and sizes of caches, and the embedded models.

    \b
    Examples:
      dcae info
      dcae info --json
    """
    from dcae_cli.output import print_json, print_table

    facts = gather_facts()
    if json:
        print_json(facts)
        return
    rows = [(name, version or "not installed") for name, version in facts["versions"].items()]
    rows += [("device", device["text"]) for device in facts["devices"]]
    rows.append(("threads", f"{facts['threads']} of {facts['cpus']} processors"))
    convolutions = facts["convolutions"]
    rows.append(("3x3 convolutions", f"{convolutions['processor']} processor: {convolutions['rule']}"))
    for name, what in (("cache", "cache of models"), ("own_cache", "cache of dcae"), ("torch_cache", "cache of torch")):
        rows.append((what, f"{facts[name]['path']} ({facts[name]['bytes'] / 1e6:.1f} MB)"))
    for name, what in (("embedded_model", "embedded model"), ("embedded_diffusion_model", "embedded diffusion model")):
        if embedded := facts[name]:
            rows.append((what, f"{embedded['name']} ({embedded['bytes'] / 1e6:.1f} MB)"))
    print_table("", ("what", "value"), rows)


def gather_facts() -> dict[str, Any]:
    """Everything `dcae info` says, as plain values; walks the cache directory to add up its size."""
    import os
    import platform

    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from dcae_core.devices import processor_family
    from dcae_core.files import cache_directory
    from dcae_core.models.winograd import rule_for
    from dcae_core.zoo import EMBEDDED_AUTOENCODER, EMBEDDED_DENOISER

    return {
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES}
        | {"torch": torch.__version__, "torchvision": _torchvision_version()},  # with its build, with what is wrong
        "platform": platform.platform(),
        "devices": list(_devices()),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "convolutions": {"processor": str(processor_family()), "rule": str(rule_for(processor_family()))},
        "cache": _cache(Path(HF_HUB_CACHE)),  # HF_HOME moves it
        "own_cache": _cache(cache_directory()),  # DCAE_CACHE moves it
        "torch_cache": _cache(Path(torch.hub.get_dir())),  # TORCH_HOME moves it; networks that metrics need
        "embedded_model": _embedded(EMBEDDED_AUTOENCODER),
        "embedded_diffusion_model": _embedded(EMBEDDED_DENOISER),
    }


def _embedded(name: str) -> dict[str, Any] | None:
    from dcae_core.zoo import embedded_directory

    directory = embedded_directory(name)
    return {"name": name, "bytes": _size_of(directory)} if directory.is_dir() else None


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torchvision_version() -> str | None:
    """Its version, followed by what keeps it from working beside this torch."""
    from dcae_core.errors import ResourceError
    from dcae_core.metrics.torchvision_networks import require_torchvision

    installed = _version("torchvision")
    if installed is None:
        return None
    try:
        require_torchvision()
    except ResourceError as error:
        return f"{installed}: {error}"
    return installed


def _devices() -> list[dict[str, Any]]:
    import torch

    devices: list[dict[str, Any]] = [{"name": "cpu", "text": "cpu"}]
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "text": "mps: Apple GPU"})
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        text = f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        devices.append({"name": f"cuda:{index}", "text": text, "bytes": properties.total_memory})
    return devices


def _cache(directory: Path) -> dict[str, Any]:
    return {"path": str(directory), "bytes": _size_of(directory)}


def _size_of(directory: Path) -> int:
    """Bytes of all files below `directory`; the cache's links to its own files are not counted twice."""
    return sum(file.lstat().st_size for file in directory.rglob("*") if file.is_file() and not file.is_symlink())
