"""Whether an output is what its manifest says: every file read again, and some rows computed again."""

from __future__ import annotations

import random
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layertap.config.loading import load_config
from layertap.config.model import RunConfig
from layertap.contracts import Source
from layertap.errors import FOREIGN, LayertapError, StoreError, UnsafeError
from layertap.images.plan import Plan
from layertap.outputs.features import Features, open_output
from layertap.outputs.stored import Damaged, StoredShards
from layertap.pipeline import fingerprint
from layertap.pipeline.prepare import Prepared, prepared
from layertap.pipeline.randomness import tolerance
from layertap.pipeline.shards import to_numpy
from layertap.plugins import Plugins, guard
from layertap.records import Planned
from layertap.store import safe_files
from layertap.store.commits import Commits
from layertap.store.manifest import FileFacts, Manifest, ShardFacts, read_output


@dataclass(slots=True)
class Verdict:
    """What was checked, and what is wrong; the output is sound if there are no `faults`.

    `rows` are the numbers of those computed again, `difference` the largest absolute difference found, `environment`
    what is not as it was when the output was written and may explain one.
    """

    path: Path
    complete: bool
    files: int = 0
    bytes: int = 0
    shards: int = 0
    rows: list[int] = field(default_factory=list)
    difference: float = 0.0
    environment: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def verify(
    path: Path,
    *,
    rows: int = 16,
    overrides: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    remote: Collection[str] = (),
) -> Verdict:
    """Read every file of an output against its digests, and compute `rows` random rows again.

    `overrides` give what has moved since, such as `source.path`. `remote` are the machines that images may be fetched
    from: an output may come from somebody else, and its manifest could name any. Raises `UnsafeError` (8) for a source
    on others; `StoreError` (6) for a folder that is not an output, or one whose rows cannot be computed again because
    its source or model is another one now.
    """
    manifest = read_output(path)
    verdict = Verdict(path, manifest.status == "complete")
    shards = manifest.shards if verdict.complete else [commit.facts() for commit in Commits(path)]
    _check_files(path, manifest, verdict)
    _check_rows(path, manifest, shards, plugins, verdict)
    kept = sum(facts.kept for facts in shards)
    if rows and kept and not verdict.faults:
        verdict.rows = sorted(random.sample(range(kept), min(rows, kept)))
        known = Plugins.load(plugins)
        as_then = {"batch_size": manifest.batch_size, "threads": manifest.threads, "observers": [], "engine": None}
        config = load_config(dict(manifest.config), {**(overrides or {}), **as_then}, known)
        _refuse_others(path, config, known, remote)
        _compute_again(manifest, shards, open_output(path, plugins=plugins), config, known, verdict)
    return verdict


def _refuse_others(path: Path, config: RunConfig, plugins: Plugins, remote: Collection[str]) -> None:
    source = config.build("source", plugins)
    assert isinstance(source, Source)
    with config.at("source"), guard(source):
        others = sorted(source.hosts.difference(remote))
    if others:
        options = " ".join(f"--remote {shlex.quote(host)}" for host in others)
        raise UnsafeError(
            f"{path}: its images are on {' and '.join(others)}; to fetch them from there, add {options}, or check the "
            "files alone with --rows 0"
        )


def _check_files(path: Path, manifest: Manifest, verdict: Verdict) -> None:
    for name, facts in manifest.files.items() if verdict.complete else _committed_files(path):
        verdict.files += 1
        verdict.bytes += facts.bytes
        try:
            found = FileFacts.of(safe_files.regular(path, name))
        except OSError as error:
            verdict.faults.append(f"{name}: {error.strerror or error}")
            continue
        if found.bytes != facts.bytes:
            verdict.faults.append(f"{name}: has {found.bytes} bytes, but was written with {facts.bytes}")
        elif found.sha256 != facts.sha256:
            verdict.faults.append(f"{name}: is damaged: its sha256 is not the one it was written with")


def _committed_files(path: Path) -> Iterator[tuple[str, FileFacts]]:
    for commit in Commits(path):
        yield from commit.placed_files().items()


def _check_rows(
    path: Path, manifest: Manifest, shards: Sequence[ShardFacts], plugins: Sequence[str], verdict: Verdict
) -> None:
    """Every shard's rows, tap by tap, and that index and failures account for every planned image once."""
    try:
        features = open_output(path, plugins=plugins)
        ids = [row["id"] for row in features.rows()]
        kept, failed = len(ids), [failure["id"] for failure in features.failures]
        planned = sum(facts.planned for facts in shards)
        if kept != sum(facts.kept for facts in shards) or kept + len(failed) != planned:
            verdict.faults.append(f"{kept} images kept and {len(failed)} failed do not add up to the {planned} planned")
        if len({*ids, *failed}) != kept + len(failed):
            verdict.faults.append("an id occurs more than once in index.csv and failures.csv")
        if verdict.complete and planned != manifest.planned:
            verdict.faults.append(f"the manifest accounts for {planned} of {manifest.planned} planned images")
        stored = StoredShards(features, shards, features.taps)
        for tap in features.taps:
            if len(stored.rows(tap)) != kept:
                verdict.faults.append(f"{tap}: has {len(stored.rows(tap))} rows, and the index {kept}")
                continue
            for shard in stored:
                try:
                    stored.values(shard, tap)
                except Damaged:
                    rows = f"the rows {shard.start} to {shard.stop - 1} (shard {shard.number})"
                    verdict.faults.append(f"{tap}: {rows} are damaged")
        verdict.shards = len(shards)
    except LayertapError as error:
        verdict.faults.append(str(error))


def _compute_again(
    manifest: Manifest,
    shards: Sequence[ShardFacts],
    features: Features,
    config: RunConfig,
    plugins: Plugins,
    verdict: Verdict,
) -> None:
    with prepared(config, plugins) as this:
        now = fingerprint.manifest(this)
        verdict.environment = manifest.different(now, besides=_hard(manifest))
        verdict.environment += [f"{key} was not recorded" for key in manifest.unknown(now)]
        if changed := manifest.different(now, besides=fingerprint.soft(manifest)):
            raise StoreError(
                f"{verdict.path}: cannot be computed again: {'; '.join(changed)}; pass what has moved as KEY=VALUE, or "
                "check the files alone with --rows 0",
                code=FOREIGN,
            )
        stored = StoredShards(features, shards, features.taps)
        wanted = dict(_places(verdict.rows, stored, features, this.plan))
        for row in set(verdict.rows) - set(wanted.values()):
            verdict.faults.append(
                f"row {row} ({_id(features, row)!r}): its source no longer has this image at that place"
            )
        if not wanted:
            return
        numbers = sorted({place // this.info.batch_size for place in wanted})
        for place, values in _computed(this, numbers):
            if place in wanted:
                made_by = shards[place // manifest.shard_rows].processor
                is_exact = this.forward.device.type == "cpu" and made_by in (None, fingerprint.computed_by(this))
                _compare(wanted.pop(place), values, features, manifest, verdict, is_exact=is_exact)
        for row in wanted.values():
            verdict.faults.append(f"row {row} ({_id(features, row)!r}): its image can no longer be used")


def _places(rows: Sequence[int], stored: StoredShards, features: Features, plan: Plan) -> Iterator[tuple[int, int]]:
    """The places in the plan of the images of `rows`, and the rows."""
    for row in rows:
        shard = next(shard for shard in stored if row < shard.stop)
        record_id = _id(features, row)
        for place, (planned, _) in enumerate(plan.entries(shard.first, shard.end), shard.first):
            if planned == record_id:
                yield place, row


def _computed(this: Prepared, numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    """The rows of whole batches, each with its place in the plan: a row's last bits depend on the batch it is in."""
    size = this.info.batch_size
    chosen = set(numbers)
    every = enumerate(this.plan.records(0, (numbers[-1] + 1) * size))
    records = (Planned(planned.record) for place, planned in every if place // size in chosen)
    stream = this.batches(records)
    with closing(stream):
        for number, (batch, activations) in zip(
            numbers, this.forward.activations(stream, this.info.columns, numbers=numbers), strict=True
        ):
            good = [number * size + slot for slot in range(len(batch.records)) if slot not in batch.failures]
            for index, place in enumerate(good):
                yield place, {name: to_numpy(values[index]) for name, values in activations.values.items()}


def _compare(
    row: int,
    values: Mapping[str, NDArray[Any]],
    features: Features,
    manifest: Manifest,
    verdict: Verdict,
    *,
    is_exact: bool,
) -> None:
    """Compare a row computed again; `is_exact` says that this kind of processor computed it, and repeats its bits."""
    for tap, computed in values.items():
        stored = np.asarray(features[tap][row])
        if stored.tobytes() == computed.tobytes():
            continue
        difference = float(np.abs(stored.astype(np.float64) - computed.astype(np.float64)).max())
        verdict.difference = max(verdict.difference, difference)
        share = tolerance(manifest.taps[tap].dtype)
        same = is_exact and not verdict.environment
        if same or not difference <= share * float(np.abs(stored.astype(np.float64)).max()):
            verdict.faults.append(
                f"row {row} ({_id(features, row)!r}): {tap} computed again differs by {difference:.3g}"
            )


def _id(features: Features, row: int) -> str:
    return str(features.index[row]["id"])


def _hard(manifest: Manifest) -> tuple[str, ...]:
    soft = fingerprint.soft(manifest)
    return tuple(key for key in manifest.fingerprint if key not in soft)
