"""Reference files: the published layout in and out, ADM's batches, and files that are none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dcae_core.errors import DataError
from dcae_core.metrics.frechet import Gaussian, frechet_distance
from dcae_core.metrics.reference import read_reference, write_reference


@pytest.fixture
def gaussian() -> Gaussian:
    rows = np.random.default_rng(0).standard_normal((40, 12))
    return Gaussian(rows.mean(axis=0), np.cov(rows, rowvar=False))


def test_written_files_are_what_the_published_code_reads(tmp_path: Path, gaussian: Gaussian) -> None:
    description = {"num_images": 40, "resolution": 512, "transform": "ADM centre crop"}
    write_reference(tmp_path / "a.npz", gaussian, description)
    write_reference(tmp_path / "b.npz", gaussian, description)
    published = np.load(tmp_path / "a.npz")  # as efficientvit apps/metrics/fid/fid.py does
    np.testing.assert_array_equal(published["mu"], gaussian.mean)
    np.testing.assert_array_equal(published["sigma"], gaussian.covariance)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    reference = read_reference(tmp_path / "a.npz")
    assert reference.description == description
    assert reference.num_images == 0
    assert frechet_distance(reference.gaussian, gaussian) == pytest.approx(0, abs=1e-12)


def test_published_files_are_read(tmp_path: Path, gaussian: Gaussian) -> None:
    np.savez(tmp_path / "published.npz", mu=gaussian.mean, sigma=gaussian.covariance)
    assert frechet_distance(read_reference(tmp_path / "published.npz").gaussian, gaussian) == pytest.approx(
        0, abs=1e-12
    )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_adm_batches_give_their_images_one_batch_at_a_time(tmp_path: Path, gaussian: Gaussian, save) -> None:
    images = np.random.default_rng(1).integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)
    spatial = {"mu_s": np.zeros(3), "sigma_s": np.zeros((3, 3))}
    save(tmp_path / "adm.npz", images, mu=gaussian.mean[None], sigma=gaussian.covariance, **spatial)
    reference = read_reference(tmp_path / "adm.npz")
    assert reference.num_images == 7
    batches = list(reference.images([range(1, 4), range(6, 7), range(2)]))
    assert [len(batch) for batch in batches] == [3, 1, 2]
    np.testing.assert_array_equal(torch.cat(batches).permute(0, 2, 3, 1).numpy(), images[[1, 2, 3, 6, 0, 1]])


def test_files_that_are_no_reference_get_one_line(tmp_path: Path, gaussian: Gaussian) -> None:
    path = tmp_path / "ref.npz"
    with pytest.raises(DataError, match="no such reference file, nor a folder of images; make one: dcae fid-ref"):
        read_reference(path)
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DataError, match=r"cannot be read as an \.npz"):
        read_reference(path)
    np.savez(path, features=np.zeros(3))
    with pytest.raises(DataError, match="no `mu` and `sigma`"):
        read_reference(path)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(DataError, match="do not belong together"):
        read_reference(path)
    np.savez(path, mu=np.full(3, np.nan), sigma=np.eye(3))
    with pytest.raises(DataError, match="not finite"):
        read_reference(path)
    np.savez(path, mu=np.zeros(3), sigma=np.triu(np.ones((3, 3))))
    with pytest.raises(DataError, match="not symmetric"):
        read_reference(path)
    np.savez(path, mu=np.array([None, object()], dtype=object), sigma=np.eye(2))
    with pytest.raises(DataError, match="cannot be read"):
        read_reference(path)
