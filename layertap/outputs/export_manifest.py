"""The manifest of an output's export: everything of the original, another sink, perhaps fewer taps."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from layertap.config.model import PARTS, data_of
from layertap.errors import StoreError
from layertap.plugins import Plugins, Registered
from layertap.records import Column, RunInfo, TapInfo
from layertap.store.manifest import Manifest, TapFacts
from layertap.taps.grammar import Tap
from layertap.taps.patterns import matching

_VERSION = "version of "


def carried(source: Manifest, sink: Registered, path: Path, taps: Sequence[str], plugins: Plugins) -> Manifest:
    """The manifest with which the export of `taps` begins: what a run of the same configuration would write there."""
    facts = {name: source.taps[name].model_copy(update={"nonfinite": None}) for name in taps}
    config = {**source.config, "sink": {"type": sink.type_name, "path": str(path)}}
    fingerprint = {**source.fingerprint, "sink": sink.type_name}
    if len(taps) < len(source.taps):
        # By default the rows of a shard follow from the taps.
        config |= {"taps": _configured(source, facts), "shard_rows": source.shard_rows}
        columns = {name: [list(tap.shape), tap.dtype] for name, tap in facts.items()}
        fingerprint |= {"taps": config["taps"], "columns": columns}
    versions = _versions(source, config, sink, plugins)
    fingerprint = {key: value for key, value in fingerprint.items() if not key.startswith(_VERSION)}
    fingerprint |= {f"{_VERSION}{name}": version for name, version in versions.items()}
    begun = {"run": uuid.uuid4().hex, "status": "running", "finished": None, "owner": None, "replaces": None}
    open_ends: dict[str, Any] = {"counts": None, "failures": {}, "notes": {}, "seconds": None, "timing": {}}
    nothing_yet: dict[str, Any] = {"meta": {}, "merged": False, "files": {}, "shards": []}
    changed = {"config": config, "fingerprint": fingerprint, "versions": versions, "taps": facts}
    return source.model_copy(update={**begun, **open_ends, **nothing_yet, **changed})


def run_info(manifest: Manifest, path: Path, resumed: int) -> RunInfo:
    """The run as reported to a sink when it opens."""
    return RunInfo(
        id=manifest.run,
        planned=manifest.planned,
        columns={name: _column(name, tap, manifest.model) for name, tap in manifest.taps.items()},
        batch_size=manifest.batch_size,
        shard_rows=manifest.shard_rows,
        device=manifest.device,
        path=path,
        config=manifest.config,
        about=manifest.model,
        resumed=resumed,
    )


def _column(name: str, tap: TapFacts, about: Mapping[str, Any]) -> Column:
    raw, select, reduce = tap.raw, tuple(tap.select), tuple(tap.reduce)
    operation = (tap.op, tap.index, tap.derived, tap.batch_axis)
    facts = (tap.layer, tap.side, tap.call, select, tuple(raw.shape), raw.dtype, raw.axes, about, reduce, *operation)
    return Column(TapInfo(name, *facts), tuple(tap.shape), tap.dtype, tap.file)


def _configured(source: Manifest, chosen: Mapping[str, TapFacts]) -> list[Any]:
    """The configured taps that give just these values: one for each, where a pattern or `:all` gave several."""
    written = [Tap.model_validate(tap) for tap in source.config["taps"]]
    found = []
    for name, facts in chosen.items():
        tap = next((one for tap in written if (one := _narrowed(tap, name, facts))), None)
        if tap is None:
            raise StoreError(f"the manifest's configuration has no tap that gives {name!r}; export all taps")
        found.append(data_of(tap))
    return found


def _narrowed(tap: Tap, name: str, facts: TapFacts) -> Tap | None:
    """`tap` as it would be written to give the values `name` alone, None where it does not give them."""
    if tap.layer != facts.layer and not (tap.is_pattern and matching(tap.layer, [facts.layer])):
        return None
    one = tap.model_copy(update={"layer": facts.layer})
    if one.label == name:
        return one
    if tap.call == "all":
        label, _, call = name.rpartition(":")
        if one.name == label and call.isdecimal():
            return one.model_copy(update={"call": int(call), "name": name})
        if one.name is None and isinstance(facts.call, int):
            one = one.model_copy(update={"call": facts.call})
            return one if str(one) == name else None
    return None


def _versions(source: Manifest, config: Mapping[str, Any], sink: Registered, plugins: Plugins) -> dict[str, str]:
    """The versions recorded, without that of the old sink where nothing else needs it, and with the new one's."""
    used = [(kind, config[key]["type"]) for key, kind in PARTS.items() if key not in ("sink", "engine")]
    used += [("reducer", type_name) for tap in source.taps.values() for type_name in tap.reduce]
    parts = [plugins.get(kind, type_name) for kind, type_name in used]
    needed = {"layertap", *(part.distribution for part in parts if part)}
    replaced = plugins.find("sink", source.config["sink"]["type"]).distribution
    versions = {name: v for name, v in source.versions.items() if name != replaced or name in needed}
    return {**versions, sink.distribution: versions.get(sink.distribution, sink.version)}
