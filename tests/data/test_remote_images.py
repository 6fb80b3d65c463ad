"""Images behind fsspec URLs are found and encoded as those on this machine are."""

import contextlib
import http.server
import io
import tarfile
import threading
from functools import partial
from pathlib import Path

import fsspec
import pytest
import torch
from PIL import Image

from dcae_core.data import remote
from dcae_core.data.latents.manifest import EncoderRecord
from dcae_core.data.remote import read_whole
from dcae_core.data.sources import find_images
from dcae_core.errors import DataError, DcaeError
from dcae_core.pipelines.encode import encode_dataset
from dcae_core.recipes.encode_dataset import EncodeDatasetRecipe

from ..small import small_autoencoder


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five images in two classes, a hidden one, and a file that is no image."""
    names = ("a/1.png", "a/2.png", "b/deep/3.png", "b/x y.png", "b/ü.png", ".hidden/4.png", "a/readme.txt")
    for number, name in enumerate(names):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.effect_noise((20, 16), 50 + number).save(path)
        else:
            path.write_text("no image")
    return tmp_path / "images"


def put_in_memory(directory: Path, url: str) -> str:
    for path in directory.rglob("*"):
        if path.is_file():
            with fsspec.open(f"{url}/{path.relative_to(directory).as_posix()}", "wb") as file:
                file.write(path.read_bytes())
    return url


def test_a_folder_behind_a_url_is_the_folder(folder):
    local = find_images([folder])
    remote = find_images([put_in_memory(folder, "memory://images/folder")])
    assert [image.key for image in remote] == [image.key for image in local]
    assert len(remote) == 5
    assert remote.classes == local.classes == ["a", "b"]
    for here, there in zip(local, remote, strict=True):
        assert here.label == there.label
        assert here.open().tobytes() == there.open().tobytes()


def test_encoding_from_a_url_gives_the_same_bytes(folder, tmp_path):
    settings = EncodeDatasetRecipe(resolution=16, batch_size=2, shard_size=2, num_workers=2)
    encoder = EncoderRecord(name="small", scaling_factor=1.0)
    url = put_in_memory(folder, "memory://images/encoded")
    for place, name in ((folder, "local"), (url, "remote")):
        out = tmp_path / name
        arguments = (small_autoencoder(), encoder, out, settings)
        encode_dataset(find_images([place]), *arguments, device=torch.device("cpu"))
    local, remote = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("local", "remote")
    )
    assert local == remote


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for number in range(3):
            image = io.BytesIO()
            Image.effect_noise((9, 9), 50 + number).save(image, "PNG")
            for suffix, content in ((".png", image.getvalue()), (".cls", str(2 * number).encode())):
                member = tarfile.TarInfo(f"{number}{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_a_tar_shard_in_memory_or_on_a_server_is_the_shard(tmp_path):
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "0.tar")
    local = find_images([tmp_path / "shards" / "0.tar"])
    put_in_memory(tmp_path / "shards", "memory://images/shards")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        web = f"http://127.0.0.1:{server.server_port}/shards/0.tar"
        for url in ("memory://images/shards", "memory://images/shards/0.tar", web):
            remote = find_images([url])
            assert [image.label for image in remote] == [0, 2, 4]
            for here, there in zip(local, remote, strict=True):
                assert here.open().tobytes() == there.open().tobytes()
        server.shutdown()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://images/nowhere", "no image and no tar shard"),
        ("memory://images/nowhere/a.tar", "no such file"),
        ("unheard://of/it", "cannot be opened"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(url, words):
    with pytest.raises(DataError, match=words) as caught:
        find_images([url])
    assert "\n" not in str(caught.value)


def test_a_server_that_does_not_answer_is_told_in_one_line():
    with pytest.raises(DcaeError, match=r"127\.0\.0\.1:9") as caught:
        find_images(["http://127.0.0.1:9/a.tar"])
    assert "\n" not in str(caught.value)


def test_a_remote_file_beyond_the_limit_is_not_taken_into_memory(monkeypatch):
    """Neither one whose size is told, nor one that goes on although it was to end."""
    files = fsspec.filesystem("memory")
    with files.open("/images/large.png", "wb") as file:
        file.write(bytes(1000))
    assert len(read_whole("memory://images/large.png", 1000)) == 1000
    with pytest.raises(DataError, match=r"large\.png has 1,000 bytes; files of its kind are read up to 999"):
        read_whole("memory://images/large.png", 999)

    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return bytes(size)

    monkeypatch.setattr(remote, "open_remote", lambda url: contextlib.nullcontext(Endless()))
    with pytest.raises(DataError, match="more than 40,000,000 bytes"):
        read_whole("memory://images/endless.png", 40_000_000)
