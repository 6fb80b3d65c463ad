from pathlib import Path

import pytest

from dcae_core.checkpoints import save_autoencoder
from tests.small import small_autoencoder


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A small autoencoder, f4, in the diffusers layout."""
    directory = tmp_path_factory.mktemp("models") / "small"
    save_autoencoder(small_autoencoder(), directory, layout="diffusers")
    return directory
