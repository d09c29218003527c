"""run() and extract(): build the parts, then walk the line once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from layertap.config.loading import ConfigLike, load_config
from layertap.config.model import RunConfig
from layertap.contracts import FileSink
from layertap.errors import ConfigError
from layertap.images.batches import Decoding, Slot, batches, default_workers
from layertap.images.plan import Plan
from layertap.outputs.output import Output
from layertap.pipeline import fingerprint, first_images, inputs, limits
from layertap.pipeline.coordinator import Coordinated
from layertap.pipeline.device import find_device, ready
from layertap.pipeline.forward import ForwardPass, OutOfMemory
from layertap.pipeline.prepare import prepared
from layertap.pipeline.randomness import Nondeterministic
from layertap.pipeline.retry import Retry
from layertap.pipeline.tensors import AsTheyAre, ready_tensors
from layertap.pipeline.walk import WalkHere, report_of
from layertap.pipeline.work import WholePlan, Work
from layertap.pipeline.writer import FolderDestination, SinkDestination
from layertap.plugins import Plugins
from layertap.records import Activations, Planned, Report
from layertap.store import place
from layertap.store.commits import Commit, Commits
from layertap.store.store import beside, open_store
from layertap.taps.grammar import TapsLike
from layertap.taps.tapped import TappedModel
from layertap.timing import Stopwatch


def run(
    config: ConfigLike,
    *,
    overrides: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    retry_failed: bool = False,
) -> Report:
    """Extract what a configuration asks for, and say how it went.

    Args:
        config: the path of a YAML file, a mapping with the same keys, or a `RunConfig`.
        overrides: values that override it; keys may be dotted, as in `{"source.path": "photos/"}`.
        plugins: Python files or modules with plugins of your own.
        retry_failed: retry the images of a complete output that failed for a temporary reason, such as `timeout`.

    Returns:
        A report: `planned`, `kept`, `failed`, `path`, and `values` where the sink returns them. Every planned image is
        kept or failed. A complete output of the same configuration is left as it is; an unfinished one is finished.

    Raises:
        LayertapError: before the first image for everything that can be known then; nothing is written in that case.
    """
    known = Plugins.load(plugins)
    return run_loaded(load_config(config, overrides, known), known, retry_failed=retry_failed)


def run_loaded(config: RunConfig, plugins: Plugins, *, retry_failed: bool = False) -> Report:
    """`run`, for a configuration that is loaded and checked already."""
    started, stopwatch = time.monotonic(), Stopwatch()
    check = partial(_check_output, config, plugins, retry_failed)
    with _not_resumable(config), ExitStack() as stack:
        with stopwatch.measure("start"):
            this = stack.enter_context(prepared(config, plugins, check))
        sink, info = this.sink, this.info
        work: Work = WholePlan(this.plan, info.shard_rows)
        if retry_failed and this.engine is not None:
            raise ConfigError("--retry-failed computes in this process; add engine=null", where=("engine",))
        if not isinstance(sink, FileSink):
            if retry_failed:
                raise ConfigError(
                    f"the sink {config.sink.type} keeps no output folder, so nothing in it can be retried"
                )
            return WalkHere(this, SinkDestination(sink), started, stopwatch, work).walk()
        path, manifest = Path(sink.params.path), fingerprint.manifest(this)
        holds = partial(_is_planned, this.plan)
        store = stack.enter_context(open_store(path, sink, manifest, mode=config.mode, retry=retry_failed, holds=holds))
        if store.is_complete and retry_failed:
            retry = Retry(Output(store.path, store.manifest, sink), store.manifest.shards, this.plan)
            if retry:
                work = retry
                store = stack.enter_context(beside(store.path, sink, manifest, store.manifest.run, holds))
        if config.processors == "any":
            store.processor = fingerprint.computed_by(this)
        output = FolderDestination(store, this.plan, store.manifest.unknown(manifest))
        if store.is_complete:
            return report_of(this, info, output.tally(), output, 0.0, already=True)
        if this.engine is not None:
            return Coordinated(this, output, started, stopwatch, store, this.engine, holds).walk()
        return WalkHere(this, output, started, stopwatch, work).walk()


def extract(
    model: inputs.ModelLike,
    images: inputs.ImagesLike,
    taps: TapsLike = ("classifier.5",),
    *,
    batch_size: int = 64,
    device: str = "auto",
    preprocess: inputs.PreprocessLike = None,
    workers: int | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    nondeterministic: Nondeterministic = "refuse",
    plugins: Sequence[str] = (),
) -> Iterator[Activations]:
    """Features in memory, batch by batch: `for batch in extract(model, images, taps=[...]): batch.values["..."]`.

    Args:
        model: a module, or `TYPE/NAME` such as `torchvision/alexnet`, or a mapping as in a configuration.
        images: a folder, an image, a source, a torch or Hugging Face Dataset of images or (image, label), or an
            iterable of paths, bytes, PIL images and uint8 arrays or tensors. Float tensors are model input and taken as
            they are: a list of them, one of shape (N, C, H, W), a Dataset, the batches of a DataLoader.
        taps: what to listen to.
        batch_size: images in one forward; a DataLoader's float batches stay as they are.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`. The model is moved back afterwards.
        preprocess: a preprocessor, its type, or a function of one RGB image; by default the model's own, and none for
            float tensors.
        workers: decoding threads; one per core by default.
        on_error: `skip` leaves bad images out.
        nondeterministic: `seed` seeds every batch with its number, for a model that gives different values for the same
            images each time; such a model is refused by default.
        plugins: Python files or modules with plugins of your own.

    Yields:
        `records` and `values`: CPU tensors with one row per record, in the order of `images`.

    Raises:
        ImageError: an image cannot be used, unless `on_error` is `skip`.
        LayertapError: the model, a tap or the device cannot serve the request.
    """
    for name, number in (("batch_size", batch_size), ("workers", 1 if workers is None else workers)):
        if not isinstance(number, int) or number < 1:
            raise ConfigError(f"extract: {name} must be a whole number, at least 1, not {number!r}")
    if nondeterministic not in get_args(Nondeterministic):
        raise ConfigError(f"extract: nondeterministic must be `refuse` or `seed`, not {nondeterministic!r}")
    known = Plugins.load(plugins)
    where = find_device(device)
    loaded = inputs.given_model(model, known)
    ready_made, images = ready_tensors(images, batch_size)
    if ready_made and preprocess is not None:
        raise ConfigError("extract: float tensors are taken as they are, without `preprocess`; leave it out")
    preprocessor = AsTheyAre() if ready_made else inputs.given_preprocessor(preprocess, loaded, known)
    slot = Slot(ready_made.shape, ready_made.dtype) if ready_made else Slot.of(preprocessor, where)
    count = workers or default_workers()
    if not ready_made:
        planned: Iterator[Planned] = (Planned(record) for record in inputs.given_records(images, known))
        if slot.other is not None:
            first: list[Planned]
            first, planned = first_images.with_first(planned, first_images.LOOK)
            slot = first_images.looked(slot, first, preprocessor, Decoding(), count)
    with ready(loaded.module, where), TappedModel(loaded.module, taps, about=loaded.about, plugins=known) as tapped:
        forward = ForwardPass(tapped, preprocessor, slot, where, nondeterministic=nondeterministic)
        columns = forward.probe()
        forward = first_images.settled(forward, columns)
        forward.refuse_random()
        if ready_made:
            stream = ready_made.batches
        else:
            stream = batches(planned, preprocessor, forward.slot, batch_size=batch_size, workers=count)
        with closing(stream), closing(forward.activations(stream, columns)) as computed:
            for batch, activations in computed:
                if on_error == "fail":
                    for failure in batch.failures.values():
                        raise limits.refused(failure)
                if activations.records:
                    yield activations


def _check_output(
    config: RunConfig, plugins: Plugins, retry: bool, path: Path, plan: Plan, device: torch.device
) -> None:
    """Raise what opening the store would raise, as far as it is known before the model is loaded."""
    known = fingerprint.before_the_model(config, plugins, plan, device)
    place.check(path, {"nondeterministic": None, **known}, mode=config.mode, retry=retry)


@contextmanager
def _not_resumable(config: RunConfig) -> Iterator[None]:
    """Say of memory that is too small for a batch that a smaller batch cannot resume what is committed."""
    try:
        yield
    except OutOfMemory as error:
        path = config.sink.params.get("path")
        if config.mode == "resume" and isinstance(path, str) and (committed := len(Commits(Path(path)))):
            error.args = (
                f"{error.message}, together with mode=new, which starts over: {committed} shards are committed here "
                "with another batch_size, and one output keeps to one",
            )
        raise


def _is_planned(plan: Plan, record: Commit) -> bool:
    """Whether a commit record accounts for the images that the plan has in its place, with the same metadata keys.

    An older version of a source may have left out metadata that this version keeps.
    """
    keys = list(record.kept[0].meta) if record.kept else plan.keys
    return keys == plan.keys and record.accounts_for(plan.ids(record.first, record.planned))
