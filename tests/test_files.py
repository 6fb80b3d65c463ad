"""What a kill leaves behind, and that the next run clears it away."""

from pathlib import Path

import pytest

from dcae_core.errors import ResourceError
from dcae_core.files import near_paths, prove_writable, remove_leftovers, replace_directory, replace_file


def test_leftovers_of_killed_writers_go_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "latest").write_text("step_1\n")
    (tmp_path / ".lock").touch()
    with replace_file(tmp_path / "latest") as file, replace_directory(tmp_path / "step_2") as directory:
        (directory / "weights").write_text("half")
        partials = [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")]
        assert len(partials) == 2
        for name in partials:  # a killed process leaves what the end of these contexts would rename
            twin = tmp_path / name.replace(".partial", "9.partial")
            twin.mkdir() if (tmp_path / name).is_dir() else twin.write_text("half")
        (tmp_path / ".step_0.replaced").mkdir()
        file.write(b"step_2\n")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "kept", "latest", "step_2"]


def test_what_was_moved_aside_for_a_successor_that_never_came_gets_its_name_back(tmp_path: Path) -> None:
    (tmp_path / ".model.123.replaced").mkdir()
    (tmp_path / ".model.123.replaced" / "weights").write_text("whole")
    (tmp_path / ".model.123.partial").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / ".other.123.replaced").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]
    assert (tmp_path / "model" / "weights").read_text() == "whole"


def test_files_of_one_kind_are_not_near_for_their_suffix(tmp_path: Path) -> None:
    for name in ("coffee.png", "rocket.png", "chelsea.png", "photo.jpg"):
        (tmp_path / name).touch()
    assert near_paths(tmp_path / "cofee.png") == [tmp_path / "coffee.png"]
    assert near_paths(tmp_path / "photo.png") == [tmp_path / "photo.jpg"]


def test_a_place_that_cannot_be_written_is_known_at_once(tmp_path: Path) -> None:
    prove_writable(tmp_path / "new" / "file")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    for place in (tmp_path / "new", tmp_path / "file" / "below", Path("/proc/file")):
        with pytest.raises(ResourceError, match=r"could not write|no permission"):
            prove_writable(place)
