"""Latent datasets: fixed-size safetensors shards beside a manifest that says what made them."""

from dcae_core.data.latents.exchange import export_npy, export_webdataset, import_lightningdit, import_npy
from dcae_core.data.latents.loader import load_latents
from dcae_core.data.latents.manifest import Manifest, check_encoder
from dcae_core.data.latents.order import GlobalShuffle, Order, WindowShuffle
from dcae_core.data.latents.reader import LatentDataset, verify_dataset
from dcae_core.data.latents.writer import DatasetPlan, LatentDatasetWriter

__all__ = [
    "DatasetPlan",
    "GlobalShuffle",
    "LatentDataset",
    "LatentDatasetWriter",
    "Manifest",
    "Order",
    "WindowShuffle",
    "check_encoder",
    "export_npy",
    "export_webdataset",
    "import_lightningdit",
    "import_npy",
    "load_latents",
    "verify_dataset",
]
