"""A summary of an output folder, short enough for one screen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layertap.cli.format import causes_text, printable, weights_text
from layertap.store.commits import Commits
from layertap.store.dtypes import numpy_dtype
from layertap.store.manifest import Manifest
from layertap.store.tally import Tally


def summary_text(path: Path, manifest: Manifest) -> str:
    """The lines of `layertap info`."""
    tally = _tally(path, manifest)
    lines = [
        f"{path}: {_state(manifest, tally)}",
        f"  images      {tally.kept} kept, {tally.failed} failed, {manifest.planned} planned{_counted(tally.reasons)}",
        *causes_text(tally.causes.counted()),
        f"  model       {_named(manifest.config['model'])}",
    ]
    if digest := manifest.model.get("weights_sha256"):
        lines.append(f"  sha256      {digest}")
    if weights := weights_text(manifest.model):
        lines.append(f"  weights     {weights}")
    lines += [
        f"  source      {_named(manifest.config['source'])}",
        f"  preprocess  {_named(manifest.config['preprocess'])}",
        f"  sink        {_named(manifest.config['sink'])}",
        "  taps",
    ]
    width = max(len(name) for name in manifest.taps)
    for name, tap in manifest.taps.items():
        size = math.prod(tap.shape) * _bytes(tap.dtype) * tally.kept / 1e6
        made = f", {' then '.join(tap.reduce)} of {tuple(tap.raw.shape)}" if tap.reduce else ""
        odd = f", {tally.nonfinite[name]} values not finite" if tally.nonfinite[name] else ""
        lines.append(f"    {name:<{width}}  {tap.dtype} {(tally.kept, *tap.shape)}, {size:.1f} MB{made}{odd}")
    if tally.notes:
        lines.append(f"  noted{_counted(tally.notes).replace(':', '      ', 1)}")
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    lines += [
        f"  batch       {manifest.batch_size} images, {manifest.shard_rows} per shard, {tally.shards} shards",
        f"  made with   {manifest.device}, {manifest.threads} threads, Python {manifest.python}, {versions}",
    ]
    if manifest.timing:
        spent = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in manifest.timing.items())
        lines.append(f"  seconds     {manifest.seconds}: {spent} (stages overlap)")
    lines += [f"  remark      {remark}" for remark in manifest.remarks]
    return "\n".join(map(printable, lines))


def _tally(path: Path, manifest: Manifest) -> Tally:
    if manifest.counts:
        return manifest.tally()
    tally = Tally()
    for commit in Commits(path):
        commit.count_into(tally)
    return tally


def _state(manifest: Manifest, tally: Tally) -> str:
    if manifest.status == "complete":
        return f"complete, {manifest.finished}"
    by = f", last written by {manifest.owner}" if manifest.owner else ""
    return f"unfinished, {tally.planned} of {manifest.planned} images done{by}; run the same command again to resume"


def _named(part: Any) -> str:
    if not isinstance(part, Mapping):
        return str(part)
    rest = ", ".join(f"{key} {value}" for key, value in part.items() if key != "type")
    return f"{part.get('type')} ({rest})" if rest else str(part.get("type"))


def _counted(counts: Mapping[str, int]) -> str:
    return ": " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) if counts else ""


def _bytes(dtype: str) -> int:
    return numpy_dtype(dtype).itemsize
