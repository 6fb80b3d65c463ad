"""The names that users build on exist, take what they promise, and cost nothing until they are used."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import dcae_core

SIGNATURES = {
    "list_models": ["pattern"],
    "create_autoencoder": ["name", "overrides"],
    "create_denoiser": ["name", "overrides"],
    "load_autoencoder": ["model", "device", "dtype", "prepare"],
    "load_diffusion": ["model", "device", "dtype"],
    "encode_image": ["autoencoder", "image", "tile"],
    "decode_image": ["autoencoder", "latent", "size", "tile"],
    "reconstruct_image": ["autoencoder", "image", "tile"],
    "LatentDataset": ["url"],
    "sample": ["model", "classes", "num", "guidance_scale", "seed", "num_steps"],
}
SAMPLERS = {
    "sample_dpm_solver": ["model", "noise", "num_steps", "progress"],
    "sample_dopri5": ["velocity", "noise", "rtol", "atol", "progress"],
    "sample_heun": ["velocity", "noise", "num_steps", "progress"],
    "sample_ddpm": ["model", "noise", "num_steps", "step_noise", "progress"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_public_functions_take_what_they_promise(name) -> None:
    function = getattr(dcae_core, name)
    parameters = inspect.signature(function).parameters
    assert set(SIGNATURES[name]) <= set(parameters)
    assert name in dcae_core.__all__
    assert name in dir(dcae_core)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_take_what_they_promise(name) -> None:
    function = getattr(dcae_core.diffusion, name)
    assert set(SAMPLERS[name]) <= set(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", [*SIGNATURES, *SAMPLERS])
def test_public_functions_say_what_they_do(name) -> None:
    function = getattr(dcae_core, name, None) or getattr(dcae_core.diffusion, name)
    text = inspect.getdoc(function)
    assert text
    assert name in ("list_models", "reconstruct_image") or "Args:" in text


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="load_autoencodr"):
        dcae_core.load_autoencodr  # noqa: B018


USER_SCRIPT = """
import torch

import dcae_core

autoencoder = dcae_core.load_autoencoder(device="cpu")
latent = autoencoder.encode(torch.zeros(1, 3, 64, 64))
reveal_type(autoencoder)
reveal_type(latent)
reveal_type(dcae_core.diffusion.sample_heun)
dcae_core.load_autoencodr()
"""


def test_type_checkers_and_editors_see_what_the_public_names_are(tmp_path) -> None:
    (tmp_path / "script.py").write_text(USER_SCRIPT)
    root = Path(__file__).parent.parent
    # With the project's own settings, so that what `make test` has checked before is not checked again.
    command = [sys.executable, "-m", "mypy", "--config-file", root / "pyproject.toml", tmp_path / "script.py"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    notes = [line.partition(": note: ")[2] for line in run.stdout.splitlines() if ": note: " in line]
    assert 'Revealed type is "dcae_core.models.autoencoder.Autoencoder"' in notes, run.stdout
    assert any(line.startswith('Revealed type is "torch.') and line.endswith('Tensor"') for line in notes), run.stdout
    assert not [line for line in notes if '"Any"' in line]
    assert 'Module has no attribute "load_autoencodr"' in run.stdout


def test_type_checkers_see_exactly_the_public_names() -> None:
    tree = ast.parse(Path(dcae_core.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    shown = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    shown |= {ast.unparse(node.target) for node in block.body if isinstance(node, ast.AnnAssign)}
    assert shown == set(dcae_core.__all__)


def test_importing_the_library_imports_no_torch_until_a_name_is_used() -> None:
    script = (
        "import dcae_core, sys; print('torch' in sys.modules);"
        "print(dcae_core.diffusion.sample_heun.__name__, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout == "False\nsample_heun True\n", run.stderr


def test_a_device_that_is_not_there_is_told_like_on_the_command_line() -> None:
    import torch

    from dcae_core import load_autoencoder
    from dcae_core.errors import ResourceError, UsageError

    with pytest.raises(ResourceError, match="cuda"):
        load_autoencoder(device=f"cuda:{torch.cuda.device_count()}")
    with pytest.raises(UsageError, match="gpu"):
        load_autoencoder(device="gpu")
    assert load_autoencoder(device=torch.device("cpu")).scaling_factor


def test_the_version_is_there() -> None:
    from importlib.metadata import version

    assert dcae_core.__version__ == version("dcae")
    assert "__version__" in dir(dcae_core)


def test_number_types_are_named_as_on_the_command_line() -> None:
    import torch

    from dcae_core.errors import UsageError

    autoencoder = dcae_core.load_autoencoder(dtype="bf16")
    assert next(autoencoder.parameters()).dtype == torch.bfloat16
    with pytest.raises(UsageError, match="fp17"):
        dcae_core.load_autoencoder(dtype="fp17")


def test_images_as_files_hold_them_are_refused_with_the_way_out() -> None:
    import torch

    from dcae_core.errors import DataError

    autoencoder = dcae_core.load_autoencoder()
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with pytest.raises(DataError, match=r"not torch\.uint8; .* / 127\.5 - 1"):
        autoencoder.encode(image)
    with pytest.raises(DataError, match=r"in \[-1, 1\], not 0 to 25\d; .* / 127\.5 - 1"):
        autoencoder.encode(image.float())
    autoencoder.encode(image / 127.5 - 1)
