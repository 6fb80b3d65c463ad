import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from dcae_core.data.sources import find_images
from dcae_core.errors import DataError

SAMPLE_PACK = Path(__file__).parents[2] / "examples" / "photographs"


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def make_folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png("red"))
    return root


def keys(*inputs: str | Path) -> list[str]:
    return [reference.key for reference in find_images(inputs)]


def test_the_sample_pack_has_six_classes_and_opens() -> None:
    found = find_images([SAMPLE_PACK])
    assert found.classes == ["animals", "buildings", "landscapes", "objects", "people", "plants"]
    assert len(found) == 24
    assert all(reference.open().width >= 256 for reference in found)
    assert sorted({reference.label for reference in found}) == list(range(6))


def test_folders_are_searched_in_the_order_of_their_names_without_hidden_files(tmp_path: Path) -> None:
    names = ["b/2.png", "b/10.JPG", "a/x/deep.webp", "top.jpeg"]
    make_folder(tmp_path, *names, ".hidden.png", ".git/x.png", "a/._x.png", "notes.md", "c/readme.svg")
    found = find_images([tmp_path])
    assert [reference.key for reference in found] == ["a/x/deep.webp", "b/10.JPG", "b/2.png", "top.jpeg"]
    assert found.classes == ["a", "b"]
    assert [reference.label for reference in found] == [0, 1, 1, None]
    assert found.labels.tolist() == [0, 1, 1, -1]
    assert found[-1].path == str(tmp_path / "top.jpeg")
    assert [reference.key for reference in found[1:3]] == ["b/10.JPG", "b/2.png"]
    with pytest.raises(IndexError):
        found[4]


def test_links_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    make_folder(tmp_path / "elsewhere", "one.png")
    make_folder(tmp_path / "root", "a/two.png")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "a" / "again").symlink_to(tmp_path / "root")
    assert keys(tmp_path / "root") == ["a/two.png", "b/one.png"]


def test_names_that_are_not_text_and_names_with_spaces_are_read(tmp_path: Path) -> None:
    names = ["ünï cödé 写真.png", "with space.png"]
    make_folder(tmp_path, *names)
    (tmp_path / "bytes\udcff.png").write_bytes(png("red"))
    found = find_images([tmp_path])
    assert len(found) == 3
    assert all(reference.open().size == (4, 4) for reference in found)


def test_globs_and_named_files_of_any_suffix(tmp_path: Path) -> None:
    make_folder(tmp_path, "a/1.png", "a/2.png", "b/3.png", "image.dat", "[odd] name.png")
    assert keys(f"{tmp_path}/*/[12].png", tmp_path / "image.dat") == ["1.png", "2.png", "image.dat"]
    assert keys(f"{tmp_path}/**/3.png") == ["3.png"]
    assert keys(tmp_path / "[odd] name.png") == ["[odd] name.png"]


def test_file_lists_are_relative_to_themselves_and_may_name_classes(tmp_path: Path) -> None:
    make_folder(tmp_path, "cats/1.png", "2.png")
    list_file = tmp_path / "list.txt"
    list_file.write_text("# two images\n\ncats/1.png\tcat\n2.png\n")
    found = find_images([list_file])
    assert [(reference.key, reference.label) for reference in found] == [("cats/1.png", 0), ("2.png", None)]
    assert found.classes == ["cat"]
    assert found[0].open().size == (4, 4)


def test_shards_are_read_in_place_with_their_class_numbers(tmp_path: Path) -> None:
    long_name = "x" * 150 + ".png"  # needs a further header in front of the image's own
    members = {
        "0.png": png("red"), "0.cls": b"3", "0.json": b"{}",
        "1.png": png("lime"), "1.cls": b"1\n",
        long_name: png("blue"), "._2.png": b"?",
    }  # fmt: skip
    shard = write_shard(tmp_path / "000.tar", members)
    for given in (shard, tmp_path):
        found = find_images([given])
        assert [reference.key for reference in found] == ["0.png", "1.png", long_name]
        assert [reference.label for reference in found] == [3, 1, None]
        assert found.classes == ["0", "1", "2", "3"]
        colours = [reference.open().getpixel((0, 0)) for reference in reversed(found)]
        assert colours == [(0, 0, 255), (0, 255, 0), (255, 0, 0)]
    assert found[0].name == f"{shard}/0.png"


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    whole = write_shard(tmp_path / "whole.tar", {f"{i}.png": png("red") * 20 for i in range(9)}).read_bytes()
    for length in (0, 700, len(whole) // 2):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.tar is not a whole"):
            find_images([tmp_path / "cut.tar"])
    write_shard(tmp_path / "zipped.tar", {"0.png": png("red")}, "w:gz")
    with pytest.raises(DataError, match="uncompressed"):
        find_images([tmp_path / "zipped.tar"])
    with pytest.raises(DataError, match="no image in this shard"):
        find_images([write_shard(tmp_path / "empty.tar", {"a.txt": b""})])
    with pytest.raises(DataError, match=r"0\.cls: a class must be a number"):
        find_images([write_shard(tmp_path / "bad.tar", {"0.png": png("red"), "0.cls": b"cat"})])


def test_what_does_not_exist_or_holds_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing here")
    with pytest.raises(DataError, match="no image in this folder"):
        find_images([tmp_path])
    with pytest.raises(DataError, match=r"absent\.png: no such file"):
        find_images([tmp_path / "absent.png"])
    with pytest.raises(DataError, match="no file matches"):
        find_images([f"{tmp_path}/*.png"])
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"photoes: no such file or folder; did you mean .*/photos\?"):
        find_images([tmp_path / "photoes"])


def test_a_shard_that_vanished_after_it_was_found_is_named(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "000.tar", {"0.png": png("red")})
    found = find_images([shard])
    shard.unlink()
    with pytest.raises(DataError, match=r"000\.tar/0\.png cannot be read"):
        found[0].open()


def test_running_out_of_files_is_no_damage(tmp_path, monkeypatch) -> None:
    import errno

    from dcae_core.data import sources
    from dcae_core.errors import DataError, ResourceError

    def refuse(*_, **__):
        raise DataError("x.png cannot be read: Too many open files") from OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(sources, "open_image", refuse)
    with pytest.raises(ResourceError, match="ulimit -n"):
        sources.ImageReference(str(tmp_path / "x.png"), "x.png").open()
