"""What is known of the run that wrote an output, as the page's first section says it."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from layertap.outputs.output import Output
from layertap.store.dtypes import numpy_dtype

_MOST_IDS = 1_000


@dataclass(frozen=True, slots=True)
class Failed:
    """The images that failed for one reason: how many, and the ids of the first ones."""

    reason: str
    count: int
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of a run: pairs of a word and a text, a table of the taps, and lists."""

    title: str
    run: list[tuple[str, str]]
    taps: list[dict[str, str]]
    failures: list[Failed]
    notes: list[tuple[str, int]]
    causes: list[str]
    remarks: list[str]
    seconds: list[tuple[str, float]]
    total_seconds: float | None
    config: str


def facts_of(features: Output, rows: int) -> Facts:
    """The facts of the run that wrote `features`, which holds so many rows."""
    manifest = features.manifest
    failures = _failures(features)
    failed = sum(one.count for one in failures)
    model, state = manifest["model"], "complete" if features.is_complete else "unfinished: what is committed is shown"
    untrained = " (untrained)" if model.get("untrained") else ""
    lines = [
        ("output", f"{features.path}, {state}"),
        ("images", f"{rows:,} kept, {failed:,} failed, {manifest['planned']:,} planned"),
        ("model", _named(manifest["config"]["model"]) + untrained),
        ("weights", str(model.get("weights_sha256") or model.get("weights") or "")),
        ("source", _named(manifest["config"]["source"])),
        ("preprocess", _named(manifest["config"].get("preprocess"))),
        ("sink", _named(manifest["config"]["sink"])),
        ("batches", f"of {manifest['batch_size']} images, {manifest['shard_rows']} per shard"),
        ("run", f"{manifest['run']}, {manifest['started']} to {manifest['finished'] or 'now'}"),
        ("made with", f"{manifest['device']}, {manifest['threads']} threads, Python {manifest['python']}, "
                      + ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())),
    ]  # fmt: skip
    return Facts(
        title=features.path.name,
        run=[(word, text) for word, text in lines if text],
        taps=[_tap(name, facts, rows) for name, facts in manifest["taps"].items()],
        failures=failures,
        notes=sorted(manifest["notes"].items()),
        causes=[_cause(one) for one in manifest["causes"]],
        remarks=list(manifest["remarks"]),
        seconds=sorted(manifest["timing"].items(), key=lambda item: -item[1]),
        total_seconds=manifest["seconds"],
        config=json.dumps(manifest["config"], indent=2, ensure_ascii=False),
    )


def _cause(found: Mapping[str, Any]) -> str:
    return f"{found['type']}: {found['message']} ({found['count']} times, first {found['first']})"


def _failures(features: Output) -> list[Failed]:
    ids: dict[str, list[str]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for failure in features.failures:
        reason = failure["reason"]
        counts[reason] += 1
        if len(ids[reason]) < _MOST_IDS:
            ids[reason].append(failure["id"])
    return [Failed(reason, counts[reason], tuple(ids[reason])) for reason in sorted(counts)]


def _tap(name: str, facts: Mapping[str, Any], rows: int) -> dict[str, str]:
    size = math.prod(facts["shape"]) * numpy_dtype(facts["dtype"]).itemsize * rows
    nonfinite = facts["nonfinite"]
    return {
        "name": name,
        "layer": ("input of " if facts["side"] == "input" else "") + facts["layer"],
        "raw": f"{tuple(facts['raw']['shape'])} {facts['raw']['axes']}".strip(),
        "reduce": ", ".join(facts["reduce"]) or "none",
        "stored": f"{facts['dtype']} {(rows, *facts['shape'])}",
        "size": f"{size / 1e6:,.1f} MB",
        "nonfinite": "not counted yet" if nonfinite is None else f"{nonfinite:,}",
    }


def _named(part: Any) -> str:
    if not isinstance(part, Mapping):
        return "" if part is None else str(part)
    rest = ", ".join(f"{key} {value}" for key, value in part.items() if key != "type")
    return f"{part.get('type')} ({rest})" if rest else str(part.get("type"))
