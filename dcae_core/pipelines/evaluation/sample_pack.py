"""The two dozen photographs that come with the package."""

from importlib.resources import files
from pathlib import Path

from dcae_core.errors import DataError


def sample_pack_directory() -> Path:
    """The photographs: inside the installed package, or in `examples/` of a source checkout.

    Raises:
        DataError: this installation has none.
    """
    package = Path(str(files("dcae_core")))
    for candidate in (package / "shipped_photographs", package.parent / "examples" / "photographs"):
        if candidate.is_dir():
            return candidate
    raise DataError("the sample pack is not part of this installation; give pictures: dcae eval --images DIR")
