"""The JSON Schema of a configuration, joined from the static keys and every installed plugin's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layertap.config import MODEL_PREPROCESSOR, PARTS, RunConfig
from layertap.grammar import Tap
from layertap.plugins import Plugins

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def config_schema(plugins: Plugins) -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) that editors check a YAML file against."""
    definitions: dict[str, Any] = {}
    specs = {kind: _specs(kind, plugins, definitions) for kind in plugins.tables}
    specs["preprocessor"]["anyOf"] += [_variant(MODEL_PREPROCESSOR, {"type": "object", "properties": {}})]
    base = RunConfig.model_json_schema()
    properties = base["properties"]
    for key, kind in PARTS.items():
        properties[key] = {**_about(properties[key]), **specs[kind]}
    properties["observers"] = {**_about(properties["observers"]), "type": "array", "items": specs["observer"]}
    properties["taps"] = {**_about(properties["taps"]), **_taps(specs["reducer"])}
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


def _specs(kind: str, plugins: Plugins, definitions: dict[str, Any]) -> dict[str, Any]:
    """A type's name alone, or a mapping with its parameters; for models also the short form TYPE/NAME."""
    variants: list[Any] = []
    for name, registered in sorted(plugins.tables[kind].items()):
        template = f"#/$defs/{kind}.{name}.{{model}}"
        schema = registered.cls.Params.model_json_schema(ref_template=template)
        definitions |= {f"{kind}.{name}.{inner}": body for inner, body in schema.pop("$defs", {}).items()}
        variants.append(_variant(name, schema))
    return {"anyOf": [{"type": "string"}, *variants]}


def _variant(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"type": {"const": name}, **schema["properties"]},
        "required": ["type", *schema.get("required", [])],
        "additionalProperties": False,
    }


def _taps(reducer: Mapping[str, Any]) -> dict[str, Any]:
    long = Tap.model_json_schema()
    one_or_more = {"anyOf": [reducer, {"type": "array", "items": reducer}]}
    long["properties"]["reduce"] = {**_about(long["properties"]["reduce"]), **one_or_more}
    long.pop("$defs", None)
    tap = {"anyOf": [{"type": "string"}, {"type": "object", **long}]}
    return {
        "anyOf": [{"type": "string"}, {"type": "array", "items": tap}, {"type": "object", "additionalProperties": tap}]
    }


def _about(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: schema[key] for key in ("description", "default") if key in schema}
