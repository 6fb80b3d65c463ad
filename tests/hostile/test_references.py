"""`.npz` references: their arrays are known by their headers before a byte of them is taken."""

import io
import struct
import zipfile

import numpy as np
import pytest

from dcae_core.errors import DataError
from dcae_core.metrics.reference import read_reference
from tests.hostile.child import MIB, run_in_child
from tests.hostile.material import write

SIGMA = np.eye(3)
MU = np.zeros(3)


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy_header(text: str) -> bytes:
    content = text.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def patched(content: bytes, *, flags: int = 0, method: int | None = None) -> bytes:
    """The archive with other flags or another method of compression in each of its headers."""
    changed = bytearray(content)
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = changed.find(signature)
        while start >= 0:
            old_flags, old_method = struct.unpack_from("<HH", changed, start + place)
            struct.pack_into("<HH", changed, start + place, old_flags | flags, old_method if method is None else method)
            start = changed.find(signature, start + 4)
    return bytes(changed)


GOOD = archive({"mu.npy": npy(MU), "sigma.npy": npy(SIGMA)}, zipfile.ZIP_DEFLATED)
HOSTILE = {
    "complex": npz(mu=MU.astype(complex), sigma=SIGMA),
    "dates": npz(mu=np.zeros(3, "datetime64[s]"), sigma=SIGMA),
    "durations": npz(mu=MU, sigma=np.zeros((3, 3), "timedelta64[s]")),
    "structured": npz(mu=np.zeros(3, [("a", float)]), sigma=SIGMA),
    "text": npz(mu=np.array(["1", "2", "3"]), sigma=SIGMA),
    "negative definite": npz(mu=MU, sigma=-SIGMA),
    "no covariance": npz(mu=MU, sigma=np.array([[1.0, 9, 0], [9, 1, 0], [0, 0, 1]])),
    "empty": npz(mu=np.zeros(0), sigma=np.zeros((0, 0))),
    "three sides": npz(mu=MU, sigma=np.zeros((3, 3, 1))),
    "encrypted": patched(GOOD, flags=1),
    "unknown compression": patched(GOOD, method=97),
    "damaged stream": GOOD.replace(GOOD[80:90], b"\xff" * 10),
    "cut off": GOOD[: len(GOOD) // 2],
    "nested header": archive({"mu.npy": npy_header("(" * 4000), "sigma.npy": npy(SIGMA)}),
    "header that is no dictionary": archive({"mu.npy": npy_header("[1]"), "sigma.npy": npy(SIGMA)}),
    "huge shape": archive(
        {
            "mu.npy": npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"),
            "sigma.npy": npy(SIGMA),
        }
    ),
    "shape of huge numbers": archive(
        {
            "mu.npy": npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}"),
            "sigma.npy": npy(SIGMA),
        }
    ),
    "negative shape": archive(
        {"mu.npy": npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (-3,)}"), "sigma.npy": npy(SIGMA)}
    ),
    "images of no pixels": archive(
        {"arr_0.npy": npy(np.zeros((2, 0, 4, 3), np.uint8)), "mu.npy": npy(MU), "sigma.npy": npy(SIGMA)}
    ),
    "images that are not there": archive(
        {
            "arr_0.npy": npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 256, 256, 3)}"),
            "mu.npy": npy(MU),
            "sigma.npy": npy(SIGMA),
        }
    ),
    "an unknown version of the header": archive({"mu.npy": b"\x93NUMPY\x09\x00\x01\x00\n", "sigma.npy": npy(SIGMA)}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_reference_that_is_none_is_refused(tmp_path, case) -> None:
    path = write(tmp_path / "ref.npz", HOSTILE[case])
    with pytest.raises(DataError, match=r"ref\.npz") as error:
        read_reference(path)
    assert "\n" not in str(error.value)


def test_the_good_one_is_read(tmp_path) -> None:
    assert read_reference(write(tmp_path / "ref.npz", GOOD)).gaussian.mean.shape == (3,)


@pytest.mark.parametrize("name", ["mu", "sigma", "extra", "arr_0"])
def test_a_small_file_that_unpacks_to_gigabytes_takes_no_memory(tmp_path, name) -> None:
    """268 MB of zeros under each of the names that are looked at."""
    path = tmp_path / "ref.npz"
    shape = {"mu": "(33554432,)", "sigma": "(4096, 8192)", "extra": "()", "arr_0": "(1, 16384, 16384, 1)"}[name]
    kind = "'|u1'" if name == "arr_0" else "'|S268435456'" if name == "extra" else "'<f8'"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open(f"{name}.npy", "w") as member:
            member.write(npy_header(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}"))
            for _ in range(16):
                member.write(bytes(1 << 24))
        for other, array in {"mu": MU, "sigma": SIGMA}.items():
            if other != name:
                file.writestr(f"{other}.npy", npy(array))

    def read() -> bool:
        try:
            read_reference(path)
        except DataError:
            return True
        return name == "extra"  # what is not needed is not read

    assert run_in_child(read, memory=150 * MIB)
