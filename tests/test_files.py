"""What a kill leaves behind, and that the next run clears it away."""

from pathlib import Path

from dcae_core.files import remove_leftovers, replace_directory, replace_file


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
