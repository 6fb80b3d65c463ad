"""A torchvision that does not go with torch stops the commands that need it, with one line, and no others."""

import sys
from pathlib import Path

import pytest
from PIL import Image

# What the registry's torchvision says beside a torch without CUDA.
FAULT = "operator torchvision::nms does not exist"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(path)
    return path


@pytest.fixture(autouse=True)
def mismatched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "planted" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"raise RuntimeError({FAULT!r})\n")
    monkeypatch.syspath_prepend(package.parent)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "dcae_core.metrics.inception_network", raising=False)


@pytest.mark.parametrize("metric", ["--fid", "--lpips"])
def test_a_metric_that_needs_it_says_what_to_install(dcae, image: Path, metric: str) -> None:
    run = dcae("eval", "--images", image, "--resolution", 64, metric)
    run.assert_fails(4, "torchvision", FAULT, "install both from one index")


def test_info_shows_it(dcae) -> None:
    run = dcae("info", "--json")
    run.assert_succeeds()
    assert FAULT in run.stdout


def test_what_needs_no_network_of_torchvision_goes_on(dcae, image: Path, tmp_path: Path) -> None:
    dcae("reconstruct", image, "-o", tmp_path / "out").assert_succeeds()
    dcae("encode-dataset", "--images", image, "--resolution", 64, "--out", tmp_path / "latents").assert_succeeds()
    dcae("eval", "--images", image, "--resolution", 64, "--psnr").assert_succeeds()
