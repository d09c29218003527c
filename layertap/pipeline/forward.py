"""The forward pass: the probe before the first image, and batches -> activations."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from layertap.contracts import Preprocessor
from layertap.errors import ConfigError, LayertapError, PluginError, TapError, combined, within
from layertap.images.batches import Slot
from layertap.pipeline import randomness, sizes
from layertap.pipeline.randomness import Draws, Nondeterministic
from layertap.pipeline.transfer import Transfer, Values, transfer_for
from layertap.plugins import guard
from layertap.records import Activations, Batch, Column, dtype_name
from layertap.store.filenames import stems
from layertap.taps.batch_axes import move_batch_axes
from layertap.taps.tapped import TappedModel
from layertap.timing import Stopwatch

# A model that draws random numbers may give the same values a few times, such as one that rarely leaves out a block.
_REPEATS = 32


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """A tapped model on its device, and what makes its input.

    `nondeterministic` says how to treat a model that gives different values for the same images: refuse it, or every
    batch is seeded with its number in the plan.
    """

    tapped: TappedModel
    preprocessor: Preprocessor
    slot: Slot
    device: torch.device
    memory_format: torch.memory_format = torch.preserve_format
    autocast: torch.dtype | None = None
    nondeterministic: Nondeterministic = "refuse"

    def probe(self) -> dict[str, Column]:
        """Two forwards on zeros, of 2 and of 3 images: the columns that every later forward must give.

        A batch axis that is not axis 0 is moved to the front where it is unambiguous. Raises `TapError` for a tap whose
        values are not one row per image, and `PluginError` where the model raises.
        """
        try:
            return self._columns()
        except OutOfMemory:
            raise
        except (TapError, PluginError):
            # A reducer may refuse or raise because it receives another axis as the batch.
            if not move_batch_axes(self.tapped, self._look):
                raise
        return self._columns()

    def _columns(self) -> dict[str, Column]:
        (few, of_two), (more, of_three) = self._probed(2), self._probed(3)
        places = self.tapped.places
        faults: list[LayertapError] = []
        for name, value in more.items():
            what = ""
            if (of_two.get(name, ())[:1], of_three[name][:1]) != ((2,), (3,)):
                what = _not_the_batch(of_two.get(name, ()), of_three[name])
            elif value.shape[:1] != (3,):
                what = f"its reducers made {tuple(value.shape)} out of 3 images; axis 0 must stay the batch"
            elif value.shape[1:] != few[name].shape[1:] or value.dtype != few[name].dtype:
                what = "its values change shape or dtype with the number of images"
            # A glob often gives many: one fault per tap is enough.
            if what and all(fault.where != places[name] for fault in faults):
                faults.append(TapError(f"tap {name!r}: {what}", where=places[name]))
        if faults:
            raise combined(faults)
        infos, files = self.tapped.infos, stems(more)
        return {n: Column(infos[n], tuple(v.shape[1:]), dtype_name(v), files[n]) for n, v in more.items()}

    def _look(self, tapped: TappedModel, images: int) -> None:
        dataclasses.replace(self, tapped=tapped)._forward(self.slot.zeros(images))

    def refuse_random(self) -> None:
        """Two forwards on the same random images: raise `TapError` for taps whose values differ.

        With `nondeterministic: seed` both have the same seed, and differ only where that is not enough.
        """
        pixels, draws = randomness.noise(self.slot, 2), Draws(self.device)
        try:
            first = self._forward(pixels)
        except TapError:
            # A layer runs otherwise on noise. Real images may be like the black ones, which the probe has passed.
            pixels = self.slot.zeros(2)
            first = self._forward(pixels)
        often = self.nondeterministic == "refuse" and bool(draws)
        for _ in range(_REPEATS if often else 1):
            changed = randomness.different(first, self._forward(pixels), self.device)
            if changed:
                what = _not_repeatable(changed, helps=self._is_helped_by_seed(pixels))
                raise TapError(what, where=self.tapped.places.get(changed[0], ()))

    def activations(
        self,
        batches: Iterable[Batch],
        columns: Mapping[str, Column],
        stopwatch: Stopwatch | None = None,
        *,
        numbers: Iterable[int] | None = None,
    ) -> Generator[tuple[Batch, Activations], None, None]:
        """Each batch through the model: the rows of the records that are good, on the CPU.

        `numbers` are those of the batches in the plan, from 0 by default.
        """
        stopwatch = stopwatch or Stopwatch()
        transfer = transfer_for(self.device)
        launched: deque[tuple[int, Batch, Callable[[], Values]]] = deque()

        def arrived() -> tuple[Batch, Activations]:
            number, batch, wait = launched.popleft()
            with stopwatch.measure("forward"), model_guard(batch.pixels):
                values = wait()
            return batch, _kept(batch, self._as_probed(values, batch, columns, number))

        counted = itertools.count() if numbers is None else numbers
        # The batches come second: the numbers may be more.
        for batch, number in zip(stopwatch.waits("wait", batches), counted, strict=False):
            try:
                with stopwatch.measure("forward"):
                    if self.slot.other is not None:
                        batch, found = self._sized(batch, columns, number)
                        launched.append((number, batch, partial(dict, found)))
                    else:
                        launched.append((number, batch, self._launched(batch.pixels, transfer, number)))
            except TapError as error:
                what = f"batch {number}: {error.message}; in the probe, which runs on zeros, this was not so"
                raise TapError(what, where=error.where) from error
            if len(launched) > transfer.behind:
                yield arrived()
        while launched:
            yield arrived()

    def inputs(self, pixels: Tensor, transfer: Transfer | None = None) -> Tensor:
        """A prepared batch as the model takes it, on its device."""
        moved = (transfer or transfer_for(self.device)).send(pixels)
        with within("preprocess"), guard(self.preprocessor):
            finished = self.preprocessor.finish(moved)
        return finished.contiguous(memory_format=self.memory_format) if self._needs_format(finished) else finished

    def rehearse(self, images: int) -> None:
        """One forward of that many black images, for its cost. Raises `OutOfMemory`."""
        self._forward(self.slot.zeros(images))

    def _probed(self, images: int) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
        """The values of that many black images, and their shapes before reduction."""
        return self._forward(self.slot.zeros(images)), self.tapped.shapes

    def _forward(self, pixels: Tensor, number: int = 0) -> Values:
        with model_guard(pixels):
            return self._launched(pixels, transfer_for(self.device), number)()

    def _is_helped_by_seed(self, pixels: Tensor) -> bool:
        seeded = dataclasses.replace(self, nondeterministic="seed")
        return not randomness.different(seeded._forward(pixels), seeded._forward(pixels), self.device)

    def _launched(self, pixels: Tensor, transfer: Transfer, number: int = 0) -> Callable[[], Values]:
        """Start the forward of batch `number` of the plan; what is returned waits for its values."""
        seeded = randomness.seeded(number, self.device) if self.nondeterministic == "seed" else nullcontext()
        # A caller's inference mode would make values that cannot train a probe; leaving it turns gradients on.
        with torch.inference_mode(False), torch.no_grad(), model_guard(pixels), seeded:
            inputs = self.inputs(pixels, transfer)
            with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                values = self.tapped.run(inputs)
            return transfer.fetch(values)

    def _sized(self, batch: Batch, columns: Mapping[str, Column], number: int) -> tuple[Batch, Values]:
        """The values of a batch of images of different sizes, each row from the forward that its image was in.

        Images of a size that the model or a tap cannot take fail.
        """
        values: Values = {}
        for slots, pixels in sizes.inputs(batch, self.slot):
            try:
                # Waited for one by one: a batch of many sizes must not have that many batches in memory.
                found = self._as_probed(self._forward(pixels, number), batch, columns, number)
            except (PluginError, TapError) as error:
                if tuple(pixels.shape[1:]) == self.slot.shape:
                    raise
                batch = sizes.without(batch, slots, error)
                continue
            if not values:
                values = found
                continue
            with torch.inference_mode(False):
                for name, value in found.items():
                    values[name][slots] = value[slots]
        return batch, values or self._forward(self.slot.zeros(len(batch.records)))

    def _as_probed(self, values: Values, batch: Batch, columns: Mapping[str, Column], number: int) -> Values:
        """The values, if they have the shapes and dtypes that the probe found. Raises `TapError`."""
        images = len(batch.records)
        for name, column in columns.items():
            value = values.get(name)
            if value is None or tuple(value.shape) != (images, *column.shape) or dtype_name(value) != column.dtype:
                raise TapError(
                    f"tap {name!r} gave {_shown(value)} in batch {number}, and {column.shape} in the probe",
                    where=self.tapped.places.get(name, ("taps",)),
                )
        return values

    def _needs_format(self, inputs: Tensor) -> bool:
        return self.memory_format is torch.channels_last and inputs.ndim == 4


def _kept(batch: Batch, values: Mapping[str, Tensor]) -> Activations:
    """The rows of the records that are good."""
    if not batch.failures:
        return Activations(batch.records, values)
    kept = [index for index in range(len(batch.records)) if index not in batch.failures]
    with torch.inference_mode(False):
        return Activations([batch.records[index] for index in kept], {n: value[kept] for n, value in values.items()})


class OutOfMemory(ConfigError):
    """A batch was too large for the device."""


@contextmanager
def model_guard(inputs: Tensor) -> Iterator[None]:
    """Turn what a model raises into one clean `PluginError`, or `OutOfMemory`; layertap's own errors are left alone."""
    try:
        yield
    except Exception as error:
        if _is_out_of_memory(error) or _is_out_of_memory(error.__cause__):
            raise OutOfMemory(
                f"out of memory in a batch of {len(inputs)} images; {_smaller(len(inputs))}",
                where=("batch_size",),
            ) from error
        if isinstance(error, LayertapError):
            raise
        lines = str(error).strip().splitlines() or [""]
        raise PluginError(
            f"the model raised {type(error).__name__} on an input of shape {tuple(inputs.shape)}: {lines[0]}"
        ) from error


def _smaller(images: int) -> str:
    return f"set batch_size={images // 2}" if images > 1 else "use a smaller model, smaller images or another device"


def _is_out_of_memory(error: BaseException | None) -> bool:
    # On a CPU and on MPS it is a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in str(error) or "can't allocate memory" in str(error))
    )


def _shown(value: Tensor | None) -> str:
    return "nothing" if value is None else f"{tuple(value.shape)} {dtype_name(value)}"


def _not_repeatable(taps: Sequence[str], *, helps: bool) -> str:
    named = ", ".join(map(repr, taps[:8])) + (f" and {len(taps) - 8} more" if len(taps) > 8 else "")
    values = (
        f"tap{'s' if len(taps) > 1 else ''} {named}: the model gives different values for the same images each time"
    )
    if helps:
        return f"{values}; set nondeterministic to `seed` to seed its random numbers with each batch's number"
    return (
        f"{values}, even with the same random seed: it keeps state between calls, or has a random generator of its "
        "own; tap layers before that"
    )


def _not_the_batch(of_two: tuple[int, ...], of_three: tuple[int, ...]) -> str:
    axes = [axis for axis, lengths in enumerate(zip(of_two, of_three, strict=False)) if lengths == (2, 3)]
    seen = f"; axis {axes[0]} is" if axes else ""
    return f"axis 0 of its value is not the image: 2 images gave {of_two}, and 3 gave {of_three}{seen}"
