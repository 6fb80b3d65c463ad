"""Parquet files as the Hugging Face hub keeps image datasets."""

import sys
from pathlib import Path
from typing import Any

import pytest

from dcae_core.data import parquet
from dcae_core.data.content import digest_of_images
from dcae_core.data.sources import describe_unread, find_images
from dcae_core.errors import DataError
from tests.parquet_files import encoded, rows, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images in two files, row groups of three, four classes of which the last is absent."""
    for number, (first, count) in enumerate(((0, 4), (4, 3))):
        table = rows(count, first, label=lambda n, first=first: (first + n) % 3, caption=lambda n: "x" * n)
        write(tmp_path / "set" / "data" / f"train-{number:05}-of-00002.parquet", table)
    return tmp_path / "set"


def test_rows_are_images_in_their_order_with_their_classes(folder: Path) -> None:
    found = find_images([folder])
    assert [reference.key for reference in found] == [f"{n}.png" for n in range(7)]
    assert [reference.label for reference in found] == [0, 1, 2, 0, 1, 2, 0]
    assert found.classes == ["0", "1", "2"]
    assert found[5].name == f"{folder}/data/train-00001-of-00002.parquet/5.png"
    for number, reference in enumerate(found):
        assert reference.open().getpixel((0, 0)) == (20 * number, 10, 200)
    assert [reference.key for reference in find_images([f"{folder}/data/*1-of*.parquet"])] == [
        "4.png",
        "5.png",
        "6.png",
    ]


def test_a_row_group_is_decoded_once_and_no_file_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow.parquet import ParquetFile

    read: list[tuple[int, list[str]]] = []
    read_row_group = ParquetFile.read_row_group

    def note(self: Any, group: int, columns: list[str], **options: Any) -> Any:
        read.append((group, columns))
        return read_row_group(self, group, columns=columns, **options)

    monkeypatch.setattr(ParquetFile, "read_row_group", note)
    monkeypatch.setattr(ParquetFile, "read", None)
    parquet._images.cache_clear()
    found = find_images([folder])
    assert read == [(group, ["image.path", "label"]) for group in (0, 1, 0)]
    read.clear()
    for reference in found:
        reference.open()
    assert read == [(group, ["image.bytes"]) for group in (0, 1, 0)]


def test_names_and_classes_may_be_missing_or_be_words(tmp_path: Path) -> None:
    table = rows(3, label=lambda n: ["cat", None, "ant"][n])
    table[1]["image"]["path"] = None
    found = find_images([write(tmp_path / "pets.parquet", table)])
    assert [reference.key for reference in found] == ["0.png", "pets-000001", "2.png"]
    assert (found.classes, [reference.label for reference in found]) == (["ant", "cat"], [1, None, 0])
    unknown = find_images([write(tmp_path / "test.parquet", rows(2, label=lambda n: -1))])
    assert (unknown.classes, unknown[0].label) == ([], None)


def test_a_table_of_something_else_beside_images_is_passed_over(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(encoded(0))
    write(tmp_path / "images" / "metadata.parquet", [{"file_name": "a.png", "caption": "a cat"}])
    assert [reference.key for reference in find_images([tmp_path / "images"])] == ["a.png"]
    with pytest.raises(DataError, match=r"has no column of images.*it has file_name, caption"):
        find_images([tmp_path / "images" / "metadata.parquet"])


def test_what_is_damaged_or_not_embedded_is_told(tmp_path: Path, folder: Path) -> None:
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes((folder / "data" / "train-00000-of-00002.parquet").read_bytes()[:-100])
    with pytest.raises(DataError, match=r"damaged.parquet is not a whole parquet file"):
        find_images([damaged])
    table = rows(2)
    table[1]["image"]["bytes"] = None
    found = find_images([write(tmp_path / "named.parquet", table)])
    assert found[0].open().size == (24, 24)
    with pytest.raises(DataError, match="row 1 names an image and holds none"):
        found[1].open()
    with pytest.raises(DataError, match="several columns of images, image_a, image_b"):
        find_images([write(tmp_path / "two.parquet", [{"image_a": table[0]["image"], "image_b": table[0]["image"]}])])
    with pytest.raises(DataError, match="row 0 has the class 100000"):
        find_images([write(tmp_path / "many.parquet", rows(1, label=lambda n: 100_000))])
    write(tmp_path / "named.parquet", rows(1))
    with pytest.raises(DataError, match="has no row 1: it has changed"):
        found[1].open()


def test_a_copy_has_the_digest_of_the_original_and_a_changed_one_another(tmp_path: Path, folder: Path) -> None:
    copy, changed = tmp_path / "copy.parquet", tmp_path / "changed.parquet"
    original = folder / "data" / "train-00000-of-00002.parquet"
    copy.write_bytes(original.read_bytes())
    write(changed, rows(4, 100, label=lambda n: n % 3))
    digests = [digest_of_images(find_images([file])) for file in (original, copy, changed)]
    assert digests[0] == digests[1] != digests[2]


def test_without_pyarrow_a_file_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setattr("dcae_core.data.sources.is_parquet_read", lambda: False)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "b.png").write_bytes(encoded(0))
    with pytest.raises(DataError, match=r"pip install 'dcae\[parquet\]'"):
        find_images([tmp_path / "a.parquet"])
    found = find_images([tmp_path])
    assert [reference.key for reference in found] == ["b.png"]
    assert describe_unread(found.unread) == [
        "left out 1 .parquet: kinds of images that are not read; pip install pyarrow, or convert them to JPEG or PNG"
    ]
