"""The part of JSON Schema that a suite's uses; `jsonschema` is no dependency. An unknown word is an error."""

from __future__ import annotations

import re
from typing import Any

KINDS = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
SAID = frozenset(
    {"$schema", "$comment", "$defs", "title", "description", "default", "examples", "deprecated"}
)  # and checks nothing
CHECKED = frozenset(
    {"$ref", "anyOf", "type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "pattern"}
    | {"minLength", "maxLength", "properties", "additionalProperties", "required", "items", "prefixItems", "contains"}
    | {"minItems", "maxItems", "uniqueItems", "patternProperties", "propertyNames"}
)


def refusal(root: dict[str, Any], value: Any, schema: dict[str, Any] | None = None, at: str = "") -> str | None:
    """Why the schema refuses a value; None where it admits it."""
    schema = root if schema is None else schema
    assert set(schema) <= SAID | CHECKED, set(schema) - SAID - CHECKED
    if "$ref" in schema:
        return refusal(root, value, root["$defs"][schema["$ref"].rpartition("/")[2]], at)
    if options := schema.get("anyOf"):
        refusals = [refusal(root, value, option, at) for option in options]
        if None not in refusals:
            return f"{at}: none of {refusals}"
    simple = _scalar(schema, value)
    if simple:
        return f"{at}: {value!r} {simple}"
    inner = _members(root, schema, value, at) if isinstance(value, dict) else None
    return inner or (_items(root, schema, value, at) if isinstance(value, list) else None)


def _scalar(schema: dict[str, Any], value: Any) -> str | None:
    kind = schema.get("type")
    if kind and (not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind in ("integer", "number"))):
        return f"is no {kind}"
    if "enum" in schema and value not in schema["enum"]:
        return f"is none of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        return f"is not {schema['const']!r}"
    if isinstance(value, (int, float)):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        if not low <= value <= high:
            return f"is not in [{low}, {high}]"
        if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
            return "is too small"
        if "exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"]:
            return "is too large"
    if isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            return "has a wrong length"
        if "pattern" in schema and not re.search(schema["pattern"], value):
            return f"does not match {schema['pattern'][:60]}"
    return None


def _members(root: dict[str, Any], schema: dict[str, Any], value: dict[str, Any], at: str) -> str | None:
    if missing := set(schema.get("required", ())) - set(value):
        return f"{at}: lacks {sorted(missing)}"
    for key, item in value.items():
        if reason := refusal(root, key, schema.get("propertyNames", {}), f"{at}.{key}"):
            return reason
        patterns = schema.get("patternProperties", {})
        fitting = next((inner for pattern, inner in patterns.items() if re.search(pattern, key)), None)
        other = schema.get("additionalProperties", True) if fitting is None else fitting
        inner = schema.get("properties", {}).get(key, other)
        if inner is False:
            return f"{at}.{key} is unknown"
        if isinstance(inner, dict) and (reason := refusal(root, item, inner, f"{at}.{key}")):
            return reason
    return None


def _items(root: dict[str, Any], schema: dict[str, Any], value: list[Any], at: str) -> str | None:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return f"{at}: {len(value)} items"
    if schema.get("uniqueItems") and any(item in value[:number] for number, item in enumerate(value)):
        return f"{at}: an item twice"
    if "contains" in schema and all(refusal(root, item, schema["contains"], at) for item in value):
        return f"{at}: contains none"
    prefix = schema.get("prefixItems", [])
    for number, item in enumerate(value):
        inner = prefix[number] if number < len(prefix) else schema.get("items")
        if isinstance(inner, dict) and (reason := refusal(root, item, inner, f"{at}[{number}]")):
            return reason
    return None
