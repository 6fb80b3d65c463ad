"""The training loop: steps, signals, checkpoints, validation."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor

from dcae_core.distributed import all_reduce_sum, any_process, is_lost_process, is_main, world_size
from dcae_core.errors import DataError, DcaeError, LostProcessError
from dcae_core.training.checkpointing import collect_checkpoint
from dcae_core.training.parallel import whole
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.task import Batch, Progress, RunLogger, Task
from dcae_core.training.trackers import plot_metrics
from dcae_core.training.verdict import Verdict, keep_unless_good, spoil_if, step_unless


class StoppedError(DcaeError):
    """The run was asked to stop, has saved, and can be continued. Its exit code is 128 + the signal's number."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopSignals:
    """While entered, the first SIGTERM, SIGINT or SIGHUP is only remembered; a second one acts as it would without.

    Attributes:
        received: the signal's number, or None so far.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopSignals":
        # Python hands signals to the main thread alone; a training in another thread is not stopped by them.
        mine = _stops() if threading.current_thread() is threading.main_thread() else []
        self._before = {number: signal.signal(number, self._remember) for number in mine}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, RuntimeError) and self.received is not None and is_lost_process(error):
            # It reached all processes, and one of them left before this loop: only what is saved counts.
            raise StoppedError(
                self.received,
                f"stopped by {signal.Signals(self.received).name}; the same command continues from what is saved",
            ) from error

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        for known, handler in self._before.items():
            signal.signal(known, handler)


def _stops() -> list[int]:
    stops: list[int] = [signal.SIGTERM, signal.SIGINT]
    hangup = getattr(signal, "SIGHUP", None)  # not on every system; ignored under nohup
    return stops if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN else [*stops, hangup]


class DivergedError(DataError):
    """A loss or gradient is not finite."""


@dataclass(frozen=True)
class LoopSettings:
    """How a phase is gone through; `..._every` counts steps.

    `batch_size` is per optimiser step, over all processes and the `accumulation` parts of a step; `total_steps` are
    those of the whole run. `validate_every` is None for no validation. Checkpoints also say what `data` says.
    With `on_nonfinite` "skip" a step whose loss or gradient is not finite changes nothing but a count; more than
    `max_skips` in a row end the run, as the first does with "stop".
    """

    phase: str
    steps: int
    total_steps: int
    batch_size: int
    accumulation: int
    checkpoint_every: int
    validate_every: int | None
    log_every: int
    data: dict[str, Any] | None = None
    on_nonfinite: str = "stop"
    max_skips: int = 10


@dataclass
class _Meter:
    """What a step measured, summed over its parts; the `verdict` tells whether it counted."""

    step: int
    verdict: Verdict | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    waited: float = 0.0
    worker_seconds: float = 0.0

    def add(self, terms: dict[str, Tensor], share: float) -> None:
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value.detach().float() * share


class Loop:
    """Goes through one phase of a run; `signals` are entered by the caller, `progress` is kept up to date.

    A step whose loss or gradients are not finite never reaches the weights: the device itself leaves it out. The loop
    hears of it when it has given the device the gradients of the next step to compute, so that the device always has
    work; before anything is measured, logged or saved it waits for the answer.

    `scaler` is of losses, for float16; `num_workers` are the loader's, to tell its rate.
    """

    def __init__(
        self,
        task: Task,
        settings: LoopSettings,
        run: RunDirectory,
        progress: Progress,
        scaler: torch.amp.GradScaler,
        signals: StopSignals,
        logger: RunLogger,
        num_workers: int,
    ) -> None:
        self.task, self.settings, self.run = task, settings, run
        self.progress, self.scaler = progress, scaler
        self.signals, self.logger = signals, logger
        self._num_workers = max(1, num_workers)
        self._damaged: set[str] = set()
        self._first_step = progress.step
        self._unsettled: _Meter | None = None
        self._steps_timed, self._seconds_per_step = 0, 0.0

    def train(self, batches: Iterator[Batch]) -> None:
        """Do the steps that are left, and save at the end of them.

        StoppedError where a signal asked for it (everything is saved), DivergedError at a loss or gradient not finite.
        """
        if self.settings.validate_every is not None and self.progress.validation_due:
            self._validate()
        self._show()
        while self.progress.phase_step < self.settings.steps:
            start = time.perf_counter()
            meter, stop = self.step(batches)
            seconds = time.perf_counter() - start
            self._smooth(seconds)
            self._show()
            if self._is_due(self.settings.log_every):
                self._log(meter, seconds)
            if self.settings.validate_every is not None and self._is_due(self.settings.validate_every):
                self._validate()
            if stop:
                self._save_and_stop()
            if self._is_due(self.settings.checkpoint_every):
                self.save()

    def _show(self) -> None:
        self.logger.advance(self.settings.phase, self.progress.step, self.settings.total_steps)

    def _smooth(self, seconds: float) -> None:
        """A mean of about the last 50 steps, for the time left; the first one, which warms up, is soon forgotten."""
        self._steps_timed += 1
        share = 1.0 if self._steps_timed <= 2 else max(1 / (self._steps_timed - 1), 0.02)
        self._seconds_per_step += share * (seconds - self._seconds_per_step)

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        self._settle()
        checkpoint = collect_checkpoint(self.task, self.progress, self.scaler, self.settings.data)
        if is_main():
            self.run.save(self.progress.step, checkpoint.write)
            plot_metrics(self.run.read_metrics(), self.run.curves)

    def _is_due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.phase_step == self.settings.steps

    def step(self, batches: Iterator[Batch]) -> tuple[_Meter, bool]:
        """One optimiser step; what it measured, and whether to stop after it."""
        meter = _Meter(self.progress.step)
        bad_losses: Tensor | float = 0.0
        stop = False
        keeps_buffers = self.settings.accumulation > 1 or self.settings.on_nonfinite == "skip"
        before = self._buffers() if keeps_buffers else []
        for trained in self.task.networks.values():
            trained.optimiser.zero_grad(set_to_none=True)
        for part in range(self.settings.accumulation):
            start = time.perf_counter()
            batch = self._next(batches, before)
            meter.waited += time.perf_counter() - start
            last = part + 1 == self.settings.accumulation
            with nullcontext() if last else self.task.without_synchronisation():
                bad_losses = bad_losses + self._accumulate(batch, meter)
            stop = any_process(self.signals.received is not None)
            if stop and not last:
                # Gradients are not saved: the step is done again from its beginning.
                _restore(before)
                self._save_and_stop()
        self._settle()
        assert isinstance(bad_losses, Tensor)
        meter.verdict = self._move(meter, bad_losses)
        if self.settings.on_nonfinite == "skip":
            keep_unless_good(meter.verdict.is_bad, before)
        self.progress.step += 1
        self.progress.phase_step += 1
        self._unsettled = meter
        if not meter.verdict.is_pending:
            self._settle()
        return meter, stop

    def _next(self, batches: Iterator[Batch], before: list[tuple[Tensor, Tensor]]) -> Batch:
        """The next part of a step; where any process has none, all save the steps that are done before they fail."""
        failure: DcaeError | None = None
        try:
            batch = next(batches)
        except DcaeError as error:
            failure = error
        if not any_process(failure is not None):
            return batch
        if self.progress.step > self._first_step:
            _restore(before)
            self.save()
        raise failure or LostProcessError("another process could not read its data, and says why")

    def _accumulate(self, batch: Batch, meter: _Meter) -> Tensor:
        """Go backward from the losses of one part; how many of them are not finite, on their device."""
        share = len(batch.names) * world_size() / self.settings.batch_size  # processes are averaged, parts added up
        bad: list[Tensor] = []
        for loss in self.task.losses(batch, self.progress.phase_step):
            bad.append(~torch.isfinite(loss.value.detach()))
            self.scaler.scale(loss.value * share).backward()
            meter.add(loss.terms, share)
        meter.names += batch.names
        meter.worker_seconds += batch.worker_seconds
        self._note_damaged(batch.damaged)
        return torch.stack(bad).float().sum()

    def _move(self, meter: _Meter, bad_losses: Tensor) -> Verdict:
        """Let every optimiser take its step, which changes nothing where a loss or a gradient is not finite."""
        bad_losses = all_reduce_sum(bad_losses)
        bad = [bad_losses]
        for name, trained in self.task.networks.items():
            rate = trained.learning_rate(self.progress.phase_step)
            for group in trained.optimiser.param_groups:
                group["lr"] = rate
            parameters = [parameter for group in trained.optimiser.param_groups for parameter in group["params"]]
            if self.scaler.is_enabled():
                spoil_if(bad_losses, next(each.grad for each in parameters if each.grad is not None))
                self.scaler.unscale_(trained.optimiser)
            limit = trained.clip_gradient_norm if trained.clip_gradient_norm is not None else math.inf
            norm = whole(torch.nn.utils.clip_grad_norm_(parameters, limit))
            # In float16 the scaler leaves out a step whose gradients overflowed, and scales less from then on.
            bad.append(torch.zeros_like(norm) if self.scaler.is_enabled() else ~torch.isfinite(norm))
            meter.terms[f"{name}.gradient_norm"] = norm
            meter.terms[f"{name}.learning_rate"] = torch.tensor(rate, dtype=torch.float64)
        verdict = Verdict(torch.stack([count.float() for count in bad]))
        for trained in self.task.networks.values():
            if self.scaler.is_enabled():
                self.scaler.step(trained.optimiser)
            else:
                step_unless(verdict.is_bad, trained.optimiser)
        self.scaler.update()
        return verdict

    def _settle(self) -> None:
        """Hear whether the last step counted: its weights go into the average, or it is told, or it ends the run."""
        meter, self._unsettled = self._unsettled, None
        if meter is None:
            return
        assert meter.verdict is not None
        bad_losses, *bad_gradients = meter.verdict.read()
        if bad_losses:
            bad = [name for name, value in meter.terms.items() if not bool(torch.isfinite(value)) and "." not in name]
            self._skip(f"the loss ({', '.join(bad) or 'of another process'}) is not finite", meter)
        elif any(bad_gradients):
            name = next(name for name, count in zip(self.task.networks, bad_gradients, strict=True) if count)
            self._skip(f"the gradient of the {name} is not finite", meter)
        else:
            self.progress.skipped_in_a_row = 0
            if self.task.ema is not None:
                self.task.ema.update()

    def _skip(self, what: str, meter: _Meter) -> None:
        """Count a step that changed nothing, and say so; its figures are left out, for some are not finite."""
        shown = ", ".join(meter.names[:8]) + (", ..." if len(meter.names) > 8 else "")
        fault = f"step {meter.step} (phase {self.settings.phase}): {what}, in the batch of {shown}"
        if self.settings.on_nonfinite == "stop":
            self._diverge(fault)
        progress, limit = self.progress, self.settings.max_skips
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        meter.terms = {}
        if progress.skipped_in_a_row > limit:
            self._diverge(f"{fault}; {limit} steps in a row were skipped before it")
        self.logger.note(f"skipped {fault}; {progress.skipped} so far, {progress.skipped_in_a_row} in a row")

    def _diverge(self, fault: str) -> None:
        latest = self.run.latest()
        raise DivergedError(
            f"{fault}; "
            + (f"the last good checkpoint is {latest}; " if latest else "nothing was saved yet; ")
            + "look at these images, lower the learning rate or clip gradients"
        )

    def _buffers(self) -> list[tuple[Tensor, Tensor]]:
        return [
            (buffer, buffer.clone()) for trained in self.task.networks.values() for buffer in trained.network.buffers()
        ]

    def _validate(self) -> None:
        self._settle()
        self.logger.advance("validation", 0, 0)
        figures = self.task.validate(self.progress.step, lambda: self.signals.received is not None)
        self.progress.validation_due = figures is None
        if figures is None:
            self._save_and_stop()
        grid = self.run.grid(self.progress.step)
        if is_main() and grid.is_file():
            self.logger.show(grid, self.progress.step)
        if figures:
            self._write({f"validation.{name}": value for name, value in figures.items()})

    def _log(self, meter: _Meter, seconds: float) -> None:
        self._settle()
        if self.progress.skipped:
            meter.terms["skipped_steps"] = torch.tensor(self.progress.skipped, dtype=torch.float64)
        names = sorted(meter.terms)
        values = torch.stack([meter.terms[name].detach().double().cpu() for name in names])
        means = (all_reduce_sum(values) / world_size()).tolist()
        rate = self.settings.batch_size / seconds
        left = self.settings.total_steps - self.progress.step
        local = len(meter.names)
        self._write(
            dict(zip(names, means, strict=True))
            | {
                "images_per_second": rate,
                "loader_images_per_second": world_size() * self._num_workers * local / max(meter.worker_seconds, 1e-9),
                "loader_wait": meter.waited / seconds,
                "seconds_left": left * self._seconds_per_step,
            }
        )

    def _write(self, values: dict[str, Any]) -> None:
        record = {"step": self.progress.step, "phase": self.settings.phase} | values
        if is_main():
            self.run.append_metrics(record)
            self.logger.record(record, self.settings.total_steps)

    def _note_damaged(self, lines: tuple[str, ...]) -> None:
        new = [line for line in dict.fromkeys(lines) if line not in self._damaged]
        if new:
            self._damaged.update(new)
            self.run.append_damaged(new)
            self.logger.note(f"skipped {len(new)} damaged image(s), listed in damaged.txt: {new[0]}")

    def _save_and_stop(self) -> NoReturn:
        self.save()
        number = self.signals.received or signal.SIGTERM
        raise StoppedError(
            number,
            f"stopped by {signal.Signals(number).name} after step {self.progress.step}, "
            f"saved in {self.run.path}; the same command continues",
        )


def _restore(buffers: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in buffers:
        buffer.copy_(value)


def loss_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Scales losses so that float16 gradients do not vanish; does nothing for the other number types."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
