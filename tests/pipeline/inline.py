"""A plugin file with an engine that computes in this very process, and with what engines may do to receipts."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

import layertap


class Inline(layertap.Engine):
    class Params(layertap.Params):
        order: Literal["plan", "reverse", "twice", "lost"] = Field("plan", description="what it does with the numbers")
        change: dict[str, Any] = Field({}, description="what the run's fingerprint says instead")
        spoil: Literal["", "run", "shard", "size", "record", "kind"] = Field(
            "", description="what is wrong with receipts"
        )
        stop: int | None = Field(None, description="the number of receipts after which it fails")
        damage: Literal["", "folder", "link", "path"] = Field(
            "", description="what is wrong with the shards it is given"
        )

    params: Params

    def run(self, job: layertap.Job, numbers: Iterator[int]) -> Iterator[layertap.Receipt]:
        assert pickle.loads(pickle.dumps(job)) == job == layertap.Job.of(json.loads(json.dumps(job.data())))
        for key, value in self.params.change.items():
            manifest = copy.deepcopy(dict(job.manifest))
            manifest["fingerprint"][key] = value
            job = dataclasses.replace(job, manifest=manifest)
        posted = Path(job.folder, "work", "open")
        if self.params.damage == "folder":
            posted.rmdir()
        elif self.params.damage:
            numbers = self._damaged(posted, numbers)
        with layertap.Worker(job, "inline") as worker:
            for count, receipt in enumerate(self._computed(worker, numbers)):
                if count == self.params.stop:
                    raise RuntimeError("out of order")
                yield self._spoilt(job, receipt) if self.params.spoil and count == 1 else receipt

    def _computed(self, worker: layertap.Worker, numbers: Iterator[int]) -> Iterator[layertap.Receipt]:
        if self.params.order == "plan":
            yield from worker.compute(numbers)
        elif self.params.order == "reverse":
            for number in reversed(list(numbers)):
                yield from worker.compute([number])
        elif self.params.order == "twice":
            for number in numbers:
                found = list(worker.compute([number, number]))
                yield from [*found, *found]
        else:
            yield from worker.compute(number for number in numbers if number != 1)

    def _damaged(self, posted: Path, numbers: Iterator[int]) -> Iterator[int]:
        for number in numbers:
            file, other = posted / f"{number:05d}.json", posted / "other"
            file.rename(other)
            if self.params.damage == "link":
                file.symlink_to(other)
            else:
                file.write_text(other.read_text("utf-8").replace('.png", {', '\u20ac.png", {'), "utf-8")
            yield number

    def _spoilt(self, job: layertap.Job, receipt: layertap.Receipt) -> layertap.Receipt:
        if self.params.spoil == "run":
            return dataclasses.replace(receipt, run="0" * 32)
        if self.params.spoil == "shard":
            return dataclasses.replace(receipt, shard=10_000)
        if self.params.spoil == "record":
            return dataclasses.replace(receipt, record={**receipt.record, "source": "0" * 64})
        if self.params.spoil == "kind":
            return dataclasses.replace(receipt, processor={**receipt.processor, "vendor": "Another"})
        file = next(path for path in Path(job.folder, "attempts", receipt.attempt).iterdir())
        file.write_bytes(file.read_bytes()[:-1])
        return receipt


@layertap.hookimpl
def register_engines(register: Callable[[str, type[layertap.Engine]], None]) -> None:
    register("inline", Inline)
