"""The whole state of a training run on disk: weights as safetensors, everything else as plain tensors and JSON.

Nothing in a checkpoint is ever unpickled freely: optimiser and random states are read with `weights_only=True`.
"""

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dcae_core.errors import CheckpointError
from dcae_core.training.run_directory import STATE_NAME, read_state
from dcae_core.training.task import Progress, Task


def write_checkpoint(directory: Path, task: Task, progress: Progress, scaler: torch.amp.GradScaler) -> None:
    """Fill a directory with the state of a run. `state.json` is written last: where it is, everything is."""
    for name, player in task.players.items():
        _write_tensors(directory / f"{name}.safetensors", player.network.state_dict())
        torch.save(player.optimiser.state_dict(), directory / f"{name}.optimiser.pt")
    if task.ema is not None:
        _write_tensors(directory / "ema.safetensors", task.ema.state_dict())
    torch.save(_random_states(), directory / "random.pt")
    state = {
        "progress": asdict(progress),
        "ema_updates": task.ema.num_updates if task.ema is not None else None,
        "loss_scale": scaler.state_dict(),
        "torch": torch.__version__,
    }
    (directory / STATE_NAME).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def read_checkpoint(directory: Path, task: Task, scaler: torch.amp.GradScaler) -> None:
    """Bring a task to the state that a checkpoint holds.

    Raises:
        CheckpointError: files are missing or damaged, or belong to another network.
    """
    state = read_state(directory)
    try:
        for name, player in task.players.items():
            load_weights(player.network, directory / f"{name}.safetensors")
            saved = torch.load(directory / f"{name}.optimiser.pt", map_location="cpu", weights_only=True)
            player.optimiser.load_state_dict(saved)
        if task.ema is not None:
            task.ema.load_state_dict(load_file(directory / "ema.safetensors"), state["ema_updates"])
        _restore_random_states(torch.load(directory / "random.pt", map_location="cpu", weights_only=True))
        scaler.load_state_dict(state["loss_scale"])
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, KeyError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{directory} cannot be continued from: {text}; remove it to go on from the one before"
        ) from error


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a network's weights and buffers, strictly."""
    network.load_state_dict(load_file(path), strict=True)


def read_progress(directory: Path) -> Progress:
    """How far the run was.

    Raises:
        CheckpointError: `state.json` is damaged.
    """
    try:
        return Progress(**read_state(directory)["progress"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{directory / STATE_NAME} does not say how far the run was") from error


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _random_states() -> dict[str, Any]:
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
