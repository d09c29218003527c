"""The JSON Schema of a configuration, joined from the static keys and every installed plugin's parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from layertap.config.model import MODEL_PREPROCESSOR, PARTS, RunConfig
from layertap.errors import PluginError
from layertap.plugins import Plugins, guard
from layertap.records import PROFILES, Profile
from layertap.taps.grammar import Tap

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def config_schema(plugins: Plugins) -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) that editors check a YAML file against."""
    definitions: dict[str, Any] = {}
    for kind in plugins.tables:
        definitions[kind] = _kind(kind, plugins, definitions)
    definitions["tap"] = _tap()
    base = RunConfig.model_json_schema()
    defaults = RunConfig(source="-", sink="-").plain()
    properties = {key: {**_about(about), **_static(about)} for key, about in base["properties"].items()}
    for key, kind in PARTS.items():
        optional = RunConfig.model_fields[key].default is None
        found = {"anyOf": [_ref(kind), {"type": "null"}]} if optional else _ref(kind)
        properties[key] = {**_about(base["properties"][key]), **found}
    properties["observers"] = {**_about(base["properties"]["observers"]), **_one_or_more("observer")}
    properties["profile"] = {**_about(base["properties"]["profile"]), **_profile()}
    properties["taps"] = {**_about(base["properties"]["taps"]), **_taps()}
    for key in properties.keys() - set(base["required"]):
        properties[key]["default"] = defaults[key]
    return {
        "$schema": DIALECT,
        "title": "layertap configuration",
        "description": base["description"],
        "type": "object",
        "properties": properties,
        "required": base["required"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _kind(kind: str, plugins: Plugins, definitions: dict[str, Any]) -> dict[str, Any]:
    """A mapping with `type` and parameters, or the type alone where no parameter is required; TYPE/NAME for models."""
    names = [MODEL_PREPROCESSOR] if kind == "preprocessor" else []
    variants = [_variant(name, {"properties": {}}) for name in names]
    for name, registered in sorted(plugins.tables[kind].items()):
        try:
            with guard(registered.cls):
                schema = registered.cls.Params.model_json_schema(ref_template=f"#/$defs/{kind}.{name}.{{model}}")
        except PluginError as error:  # it must not cost the schema of the others
            names.append(name)
            variants.append({"description": str(error), "properties": {"type": {"const": name}}, "required": ["type"]})
            continue
        definitions |= {f"{kind}.{name}.{inner}": body for inner, body in schema.pop("$defs", {}).items()}
        variants.append(_variant(name, schema))
        names += [] if schema.get("required") else [name]
    short: list[Any] = [{"enum": names}] if names else []
    if kind == "model" and plugins.tables[kind]:
        short.append({"type": "string", "pattern": f"^({'|'.join(map(re.escape, sorted(plugins.tables[kind])))})/."})
    return {"anyOf": [*short, *variants]} if variants else {"not": {}}


def _variant(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"type": {"const": name}, **schema["properties"]},
        "required": ["type", *schema.get("required", [])],
        "additionalProperties": False,
    }


def _tap() -> dict[str, Any]:
    """A tap's string, or its long form."""
    long = Tap.model_json_schema()
    long.pop("$defs", None)
    fields = long["properties"]
    fields["reduce"] = {**_about(fields["reduce"]), **_one_or_more("reducer")}
    items = fields["select"].pop("items")
    fields["select"] = {**_about(fields["select"]), "anyOf": [items, {"type": "array", "items": items}]}
    long["description"] = long["description"].partition("\n")[0]
    return {"anyOf": [{"type": "string", "minLength": 1}, long]}


def _taps() -> dict[str, Any]:
    tap = _ref("tap")
    listed = {"type": "array", "items": tap, "minItems": 1}
    named = {"type": "object", "additionalProperties": tap, "minProperties": 1}
    return {"anyOf": [{"type": "string", "minLength": 1}, listed, named]}


def _profile() -> dict[str, Any]:
    return {"anyOf": [{"enum": list(PROFILES)}, Profile.model_json_schema()]}


def _one_or_more(kind: str) -> dict[str, Any]:
    return {"anyOf": [_ref(kind), {"type": "array", "items": _ref(kind)}]}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def _about(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": schema["description"]} if "description" in schema else {}


def _static(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in ("title", "default")}
