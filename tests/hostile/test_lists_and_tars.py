"""File lists and tar shards: what they say of themselves is proved before it is followed."""

import os
import tarfile

import pytest

from dcae_core.data.sources import find_images
from dcae_core.errors import DataError
from tests.hostile.child import MIB, run_dcae, run_in_child
from tests.hostile.material import image_bytes, padded, pax_member, tar, tar_header, write

IMAGE = image_bytes()
GOOD = tar_header("a.png", len(IMAGE)) + padded(IMAGE)
NEGATIVE = b"\xff" * 12  # as base 256: -1


@pytest.fixture
def encode(model, tmp_path):
    def run(images: object, **limits: int):
        return run_dcae(
            *("encode-dataset", "--images", images, "--model", model, "--resolution", 16),
            *("--out", tmp_path / "latents", "--device", "cpu"),
            **limits,
        )

    return run


BAD_TARS = {
    "negative size in the header": (tar_header("b.png", NEGATIVE) + padded(b"x"), "negative size"),
    "negative size in pax": (pax_member("b.png", b"x", size="-512"), "negative size"),
    "negative size of a long name": (tar_header("b", NEGATIVE, tarfile.GNUTYPE_LONGNAME), "negative size"),
    "a long name of a gigabyte": (tar_header("b", 1 << 30, tarfile.GNUTYPE_LONGNAME), "1,073,741,824"),
    "a size beyond the end": (tar_header("b.png", 1 << 20), "cut off"),
    "pax sizes that are no numbers": (pax_member("b.png", b"x", **{"GNU.sparse.size": "x"}), "not a whole"),
    "a link": (tar_header("b.png", 0, tarfile.SYMTYPE), "is a link"),
    "a pipe": (tar_header("b.png", 0, tarfile.FIFOTYPE), "is no file"),
    "stored sparsely": (tar_header("b.png", 0, tarfile.GNUTYPE_SPARSE), "is stored sparsely"),
    "a damaged header in the middle": (b"\x01" * 512, "header is damaged"),
    "a class of 20,000,000": (tar_header("a.cls", 8) + padded(b"20000000"), "limit of 100,000 classes"),
    "a class of 99,999,999,999": (tar_header("a.cls", 11) + padded(b"99999999999"), "limit of 100,000 classes"),
}


@pytest.mark.parametrize("case", BAD_TARS)
def test_a_tar_that_lies_is_refused(encode, tmp_path, case) -> None:
    content, words = BAD_TARS[case]
    path = write(tmp_path / "x.tar", GOOD + content + bytes(1024))
    run = encode(path)
    run.assert_fails(3, "x.tar", words)
    assert run.peak < 300 * MIB


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_member_of_a_terabyte_is_not_read(encode, tmp_path, kind) -> None:
    path = tmp_path / "x.tar"
    size = (1 << 40).to_bytes(12, "big")
    path.write_bytes(GOOD + tar_header("b.png", b"\x80" + size[1:], kind))
    os.truncate(path, (1 << 40) + (1 << 20))  # a hole: takes no room on the disk
    run = encode(path)
    run.assert_fails(3, "x.tar")
    assert run.peak < 300 * MIB


def test_member_names_with_escape_codes_are_shown_escaped(encode, tmp_path) -> None:
    path = write(tmp_path / "x.tar", tar({"a\x1b[2J\n.png": b"no image", "b.png": IMAGE}))
    run = encode(path)
    run.assert_clean()
    assert run.exit_code in (0, 3)


def test_a_list_with_a_byte_order_mark_is_read(tmp_path) -> None:
    write(tmp_path / "a.png", IMAGE)
    path = write(tmp_path / "list.txt", b"\xef\xbb\xbfa.png\n")
    assert [image.key for image in find_images([path])] == ["a.png"]


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_an_empty_list_says_so(encode, tmp_path, text) -> None:
    encode(write(tmp_path / "list.txt", text)).assert_fails(3, "list.txt", "names no image")


@pytest.mark.parametrize("name", ["list.txt", "shard.tar", "image.png"])
def test_a_link_to_an_endless_device_is_no_file(encode, tmp_path, name) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    run = encode(tmp_path / name)
    run.assert_fails(3, name)
    assert run.peak < 300 * MIB


@pytest.mark.parametrize("name", ["list.txt", "shard.tar", "image.png"])
def test_a_pipe_is_not_waited_for(encode, tmp_path, name) -> None:
    os.mkfifo(tmp_path / name)
    encode(tmp_path / name, seconds=30).assert_fails(3, name)


def test_a_list_of_a_terabyte_is_not_read(tmp_path) -> None:
    path = write(tmp_path / "list.txt", "a.png\n")
    os.truncate(path, 1 << 40)

    def find() -> None:
        with pytest.raises(DataError, match="larger than"):
            find_images([path])

    run_in_child(find)
