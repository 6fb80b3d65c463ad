"""A training run's directory: one run at a time, checkpoints that are whole or absent, and a pointer to the newest.

Layout: `recipe.yaml`, `metrics.jsonl`, `damaged.txt`, `samples/`, `phases/NAME/`, `checkpoints/step_N/`,
`checkpoints/latest` (the name of the newest complete one).
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcae_core.checkpoints.training_runs import (
    GRIDS_NAME,
    METRICS_NAME,
    STATE_NAME,
    VALIDATION_PREFIX,
    checkpoint_before,
    complete_checkpoints,
    read_metrics,
)
from dcae_core.errors import CheckpointError
from dcae_core.files import (
    explain_write_errors,
    lock,
    make_directory,
    remove_directory,
    remove_leftovers,
    replace_directory,
    write_text,
)

_LATEST = "latest"


class RunDirectory:
    """The files of one run. Only the main process writes.

    The `keep` newest checkpoints stay, and for good those whose step is a multiple of `keep_every`.
    """

    def __init__(self, path: Path, keep: int = 2, keep_every: int | None = None) -> None:
        self.path = make_directory(path)
        self.checkpoints = make_directory(path / "checkpoints")
        self._keep, self._keep_every = keep, keep_every

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory against a second run; the lock goes with the process, however that ends.

        Raises:
            UsageError: another run is using it.
        """
        in_use = f"{self.path} is in use by another run; wait for it, stop it, or choose another run_dir"
        with lock(self.path / ".lock", in_use):
            for directory in (self.path, self.checkpoints, self.path / "phases", self.path / GRIDS_NAME):
                remove_leftovers(directory)
            self._finish_last_save()
            yield

    def grid(self, step: int) -> Path:
        """Where validation draws the images of a step."""
        return self.path / GRIDS_NAME / f"step_{step}.png"

    @property
    def curves(self) -> Path:
        """The image of how the figures went."""
        return self.path / "metrics.png"

    def complete_checkpoints(self) -> list[Path]:
        """Every complete checkpoint, oldest first."""
        return complete_checkpoints(self.checkpoints)

    def latest(self) -> Path | None:
        """The checkpoint to go on from, or None where there is none."""
        # Not what the pointer names: a kill after the renaming of a checkpoint leaves a newer one.
        return next(reversed(self.complete_checkpoints()), None)

    def _finish_last_save(self) -> None:
        """What a kill between the renaming of a checkpoint and that of the pointer left undone."""
        latest = self.latest()
        if latest is not None:
            write_text(self.checkpoints / _LATEST, latest.name + "\n")
            self._remove_old()

    def save(self, step: int, fill: Callable[[Path], None]) -> Path:
        """Write the checkpoint of a step, point `latest` at it, and remove those that are no longer kept.

        ResourceError where the disk is full or cannot be written to; the checkpoints before are untouched.
        """
        path = self.checkpoints / f"step_{step}"
        if not (path / STATE_NAME).is_file():
            with replace_directory(path) as partial:
                fill(partial)
        self._finish_last_save()
        return path

    def forget_checkpoints_after(self, step: int) -> None:
        """Remove those of later steps: the run goes back, and what it did after this step is to be done again."""
        for path in self.complete_checkpoints():
            if _step_of(path) > step:
                remove_directory(path)

    def _remove_old(self) -> None:
        for path in self.complete_checkpoints()[: -self._keep]:
            if self._keep_every is None or _step_of(path) % self._keep_every:
                remove_directory(path)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add a line to `metrics.jsonl`."""
        path = self.path / METRICS_NAME
        with explain_write_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every line of `metrics.jsonl` that is a record; a last line that a kill cut short is none."""
        return read_metrics(self.path)

    def forget_metrics_after(self, step: int, *, validation_due: bool = False) -> None:
        """Drop the lines that a continued run makes again: of later steps, and of this step's validation if due."""

        def stays(record: dict[str, Any]) -> bool:
            repeated = validation_due and any(name.startswith(VALIDATION_PREFIX) for name in record)
            return record["step"] < step or (record["step"] == step and not repeated)

        kept = [record for record in self.read_metrics() if stays(record)]
        write_text(self.path / METRICS_NAME, "".join(json.dumps(record) + "\n" for record in kept))

    def append_damaged(self, lines: list[str]) -> None:
        """Add lines to `damaged.txt` that it does not have yet."""
        path = self.path / "damaged.txt"
        known = set(_read_lines(path))
        lines = [line for line in dict.fromkeys(lines) if line not in known]
        if not lines:
            return
        with explain_write_errors(path), open(path, "a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `state.json` of a checkpoint says; CheckpointError if it is missing or damaged."""
    try:
        state: dict[str, Any] = dict(json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise refuse_checkpoint(checkpoint, f"{STATE_NAME} is missing or damaged") from error
    return state


def refuse_checkpoint(path: Path, why: str) -> CheckpointError:
    """The failure to continue from a checkpoint, or from a file in it, with the checkpoint before as a way out."""
    checkpoint = path if path.is_dir() else path.parent
    before = checkpoint_before(checkpoint)
    way_out = f"--resume {before} goes on from the one before" if before else "choose another run_dir to begin anew"
    return CheckpointError(f"{path} cannot be continued from: {why}; {way_out}")
