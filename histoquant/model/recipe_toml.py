"""A recipe as the TOML that reads back as the same recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from histoquant.model.recipe import Recipe

_BY_NAME = ("panel", "regions")
"""Parts of a recipe that hold one table per name."""


def recipe_toml(recipe: Recipe) -> str:
    """Return a recipe as TOML text; `histoquant.model.recipe.parse_recipe` gives an equal one.

    What stands at its default is left out, as in recipes that a person writes.
    """
    content = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True) | {"schema": recipe.schema_}
    top = {key: value for key, value in content.items() if not isinstance(value, dict)}
    lines = [f"{key} = {_value(top[key])}" for key in sorted(top, key=lambda key: key != "schema")]
    for part in type(recipe).model_fields:
        tables = content.get(part)
        if not isinstance(tables, dict):
            continue
        for name, table in tables.items() if part in _BY_NAME else [("", tables)]:
            lines += ["", f"[{part}.{_key(name)}]" if name else f"[{part}]"]
            lines += [f"{_key(key)} = {_value(value)}" for key, value in table.items() if value is not None]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(key)} = {_value(part)}" for key, part in value.items() if part is not None)
        return f"{{ {inside} }}" if inside else "{}"
    # Numbers and truth as JSON has them; 1e22 is a float in both.
    return json.dumps(value, allow_nan=False)


def _text(text: str) -> str:
    # A TOML string escapes what a JSON string does, and DEL besides.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
