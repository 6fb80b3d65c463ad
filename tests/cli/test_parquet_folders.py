"""Folders of parquet files wherever a folder of images is taken."""

import json
from pathlib import Path

import pytest

from dcae_core.data.latents import LatentDataset
from tests.parquet_files import encoded, write
from tests.training.small_runs import phase, recipe_for, train

LABELS = [0, 0, 1, 1, 1, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same six images as files in class folders, and as rows of two parquet files."""
    folder = tmp_path_factory.mktemp("sets")
    for number, label in enumerate(LABELS):
        (folder / "files" / str(label)).mkdir(parents=True, exist_ok=True)
        (folder / "files" / str(label) / f"{number}.png").write_bytes(encoded(number, 32))
    table = [{"image": {"bytes": encoded(n, 32), "path": f"{n}.png"}, "label": label} for n, label in enumerate(LABELS)]
    for name, part in (("train-0", table[:4]), ("train-1", table[4:])):
        write(folder / "table" / "data" / f"{name}.parquet", part)
    return folder


def test_eval_gives_what_it_gives_for_files(dcae, folder: Path, tmp_path: Path) -> None:
    found = []
    for name in ("files", "table"):
        command = ("--images", folder / name, "--resolution", 32, "--psnr", "--json", "--work", tmp_path / name)
        run = dcae("eval", *command, "--device", "cpu")
        run.assert_succeeds()
        found.append(json.loads(run.stdout)["per_image"])
    assert found[0] == found[1]


def test_encode_dataset_gives_what_it_gives_for_files(dcae, folder: Path, tmp_path: Path) -> None:
    for name in ("files", "table"):
        command = ("--images", folder / name, "--resolution", 32, "--out", tmp_path / name, "--device", "cpu")
        dcae("encode-dataset", *command).assert_succeeds()
    files, table = (LatentDataset(tmp_path / name) for name in ("files", "table"))
    assert table.manifest.classes == files.manifest.classes == ["0", "1", "2"]
    assert [table[n][1] for n in range(6)] == LABELS
    assert all((table[n][0] == files[n][0]).all() for n in range(6))


def test_train_ae_crops_from_rows_in_workers(folder: Path, tmp_path: Path) -> None:
    data = {"sources": [{"path": str(folder / "table")}], "num_workers": 2}
    run = train(recipe_for(tmp_path, phase(steps=2), data=data)).parent
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
