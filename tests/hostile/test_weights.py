"""Weights: nothing in a file makes more memory than the file has, and only real, finite, dense tensors are taken."""

import collections
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from dcae_core.errors import CheckpointError
from dcae_core.weights import read_weights
from tests.hostile.child import MIB, run_in_child
from tests.hostile.material import write


def saved(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def deep() -> bytes:
    """A pickle of lists in lists, as no pickler writes them."""
    return b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."


def in_zip(data: bytes) -> bytes:
    """A torch file whose pickle is `data`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", "3\n")
    return buffer.getvalue()


def squeezed(content: bytes) -> bytes:
    """The same archive, compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return buffer.getvalue()


def old_tar() -> bytes:
    """The layout of torch before 0.1.10."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as file:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            content = pickle.dumps({}, protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


HOSTILE = {
    "float8.safetensors": save({"a": torch.zeros(4).to(torch.float8_e4m3fn)}),
    "complex.safetensors": save({"a": torch.zeros(4, dtype=torch.complex64)}),
    "float8.pt": saved({"a": torch.zeros(4).to(torch.float8_e5m2)}),
    "float4.pt": saved({"a": torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}),
    "complex.pt": saved({"a": torch.zeros(4, dtype=torch.complex64)}),
    "sparse.pt": saved({"a": torch.eye(4).to_sparse()}),
    "meta.pt": saved({"a": torch.zeros(4, device="meta")}),
    "expanded.pt": saved({"a": torch.zeros(1).expand(10_000, 1_000_000)}),
    "overlapping.pt": saved({"a": torch.zeros(1000).as_strided((900, 100), (1, 1))}),
    "deep.pt": in_zip(deep()),
    "deep-bare.pt": deep(),
    "tar.pt": old_tar(),
    "no-tensors.pt": saved({"a": 1}),
    "keys.pt": saved({1: torch.zeros(1)}),
    "bomb.pt": squeezed(saved({"a": torch.zeros(50_000_000)})),
    "empty.pt": b"",
    "text.pt": b"weights",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_weights_that_are_none_are_refused_without_taking_memory(tmp_path, name) -> None:
    path = write(tmp_path / name, HOSTILE[name])

    def read() -> None:
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as error:
            read_weights(path)
        assert "\n" not in str(error.value)

    run_in_child(read, memory=150 * MIB)


@pytest.mark.parametrize("name", ["good.pt", "good.safetensors"])
def test_good_weights_are_read(tmp_path: Path, name: str) -> None:
    tensors = {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.float16), "n": torch.tensor(3)}
    content = save(tensors) if name.endswith("safetensors") else saved(collections.OrderedDict(tensors))
    assert read_weights(write(tmp_path / name, content)).keys() == tensors.keys()


def test_old_checkpoints_of_torch_are_still_read(tmp_path) -> None:
    content = saved({"state_dict": {"a": torch.ones(3)}}, _use_new_zipfile_serialization=False)
    assert read_weights(write(tmp_path / "a.pt", content))["a"].tolist() == [1, 1, 1]


def test_a_link_to_an_endless_device_is_no_weights_file(tmp_path) -> None:
    for suffix in (".pt", ".safetensors"):
        (tmp_path / f"a{suffix}").symlink_to("/dev/zero")
        with pytest.raises(CheckpointError):
            read_weights(tmp_path / f"a{suffix}")


def test_a_safetensors_header_of_gigabytes_is_refused(tmp_path) -> None:
    path = write(tmp_path / "a.safetensors", (1 << 33).to_bytes(8, "little"))
    os.truncate(path, 1 << 34)

    def read() -> None:
        with pytest.raises(CheckpointError):
            read_weights(path)

    run_in_child(read, memory=150 * MIB)
