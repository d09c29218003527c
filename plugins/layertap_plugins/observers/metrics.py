"""The progress of a run in a Prometheus text file, for a node exporter's textfile collector or any other reader."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import Field

import layertap

if TYPE_CHECKING:
    from layertap import Report, RunInfo, WorkerReport


class Metrics(layertap.Observer):
    """Writes the whole file at the start, at regular intervals and at the end.

    `kept` and `failed` are those of the whole output after the run has finished; until then the images of an earlier
    run count as kept.
    """

    extra = "metrics"

    class Params(layertap.Params):
        path: str = Field(
            min_length=1, description="the file to write; its folder must exist, and its name should end in .prom"
        )
        every: float = Field(15.0, gt=0, le=86_400, description="seconds between writes")

    params: Params
    _gauges: _Gauges | None = None

    def run_started(self, run: RunInfo) -> None:
        self._failed: Counter[str] = Counter()
        self._done = run.resumed
        self._shards = -(-run.resumed // run.shard_rows)
        self._started = self._written = time.monotonic()
        self._gauges = _Gauges(run)
        try:
            self._write(run)
        except OSError as error:
            raise layertap.ConfigError(
                f"cannot write {self.params.path!r}: {error.strerror or error}", where=("path",)
            ) from error

    def image_failed(self, run: RunInfo, record: layertap.ImageRecord, reason: str) -> None:
        self._failed[reason] += 1

    def batch_done(self, run: RunInfo, count: int) -> None:
        self._done += count
        if time.monotonic() - self._written >= self.params.every:
            self._write_again(run)

    def shard_committed(self, run: RunInfo, number: int) -> None:
        self._shards += 1

    def worker_reported(self, run: RunInfo, worker: WorkerReport) -> None:
        if self._gauges is not None:
            self._gauges.set_worker(worker)
            if time.monotonic() - self._written >= self.params.every:
                self._write_again(run)

    def run_finished(self, run: RunInfo, report: Report | None, error: BaseException | None) -> None:
        if self._gauges is None:  # another observer may have raised before this one started
            return
        if report is not None:
            self._failed, self._done, self._shards = Counter(report.reasons), report.planned, report.shards
        self._gauges.state.state("failed" if report is None else "finished")
        self._write_again(run)

    def _write_again(self, run: RunInfo) -> None:
        # The run matters more than its metrics, and the next write may succeed.
        with suppress(OSError):
            self._write(run)

    def _write(self, run: RunInfo) -> None:
        from prometheus_client import write_to_textfile

        assert self._gauges is not None
        self._written = time.monotonic()
        seconds = self._written - self._started
        self._gauges.set(
            kept=self._done - self._failed.total(),
            failed=self._failed,
            shards=self._shards,
            rate=(self._done - run.resumed) / seconds if seconds else 0.0,
        )
        # This writes a file next to it and renames it, so that a reader never sees half a file.
        write_to_textfile(self.params.path, self._gauges.registry)


class _Gauges:
    """The metrics of one run, in their own registry."""

    def __init__(self, run: RunInfo) -> None:
        from prometheus_client import CollectorRegistry, Enum, Gauge, Info

        self.registry = CollectorRegistry()

        def gauge(name: str, says: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"layertap_{name}", says, labels, registry=self.registry)

        gauge("images_planned", "Images in the plan.").set(run.planned)
        self._kept = gauge("images_kept", "Images that have a row.")
        self._failed = gauge("images_failed", "Images that have no row, by reason.", ("reason",))
        self._rate = gauge("images_per_second", "Images of this run per second, since its start.")
        self._shards = gauge("shards_committed", "Shards that are durable.")
        labels = ("worker", "host", "device")
        self._worker_images = gauge("worker_images", "Images that a worker of an engine has computed.", labels)
        self._worker_rate = gauge("worker_images_per_second", "Images per second of a worker of an engine.", labels)
        states = ["running", "finished", "failed"]
        self.state = Enum("layertap_run_state", "State of the run.", states=states, registry=self.registry)
        facts = {"run": run.id, "model": _model(run.config), "taps": ",".join(run.columns), "device": run.device}
        Info("layertap_run", "Facts about the run.", registry=self.registry).info(facts)

    def set(self, *, kept: int, failed: Counter[str], shards: int, rate: float) -> None:
        self._kept.set(kept)
        self._shards.set(shards)
        self._rate.set(rate)
        for reason, count in failed.items():
            self._failed.labels(reason).set(count)

    def set_worker(self, worker: WorkerReport) -> None:
        labels = (worker.worker, worker.host, worker.device)
        self._worker_images.labels(*labels).set(worker.images)
        self._worker_rate.labels(*labels).set(worker.rate if worker.state == "computing" else 0.0)


def _model(config: Mapping[str, Any]) -> str:
    """The model in the short form of a configuration."""
    model = config["model"]
    return f"{model['type']}/{model['name']}" if model.get("name") else str(model["type"])


@layertap.hookimpl
def register_observers(register: Callable[[str, type[layertap.Observer]], None]) -> None:
    register("metrics", Metrics)
