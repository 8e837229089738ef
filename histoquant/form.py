"""A recipe as a form: every number and choice of it that can be changed, with the words and bounds of its field.

Title, help, unit and bounds stand in the fields of `Recipe` and of the plug-ins' ``Params``; nothing is said twice.
Whatever shows the form needs no more than `entries` and `with_value`.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from histoquant import registry
from histoquant.errors import InputError
from histoquant.model.recipe import Recipe, build_recipe, plugin_parameters
from histoquant.survey import segmenter_parameters
from histoquant.work import rules_of

Place = tuple[str, ...]

_PLUGINS: dict[tuple[str, str], registry.Kind] = {("segment", "segmenter"): "segmenter", ("panel", "rule"): "rule"}
"""Fields that name a plug-in, by the part of the recipe and their key."""


@dataclass(frozen=True)
class Bounds:
    """What a number may be; None = no bound. ``open_*`` says that the bound itself is not allowed."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False


@dataclass(frozen=True)
class Entry:
    """One line of the form.

    Attributes
    ----------
    path : tuple of str
        Where it stands in the recipe, ``("panel", "tunel", "positive", "k")``.
    section : str
        What its part of the recipe is called.
    title, help : str
    value : Any
        What holds now, the default included.
    default : Any
        None when there is none.
    number : type or None
        ``int`` or ``float`` when a number may stand here.
    bounds : Bounds
    choices : tuple of str
        Words that may stand here; with ``number`` either may.
    truth : bool
        True or false may stand here.
    text : bool
        Free text may stand here.
    names : int
        1 when several names may stand here, 2 when pairs of names may.
    optional : bool
        Nothing may stand here: estimated, or as the help says.
    """

    path: Place
    section: str
    title: str
    help: str
    value: Any
    default: Any
    number: type[int] | type[float] | None = None
    bounds: Bounds = Bounds()
    choices: tuple[str, ...] = ()
    truth: bool = False
    text: bool = False
    names: int = 0
    optional: bool = False


def entries(recipe: Recipe) -> list[Entry]:
    """Return the form of a recipe, in its order; markers and regions are those it has."""
    found: list[Entry] = []
    for entry in _of_model(recipe, (), ""):
        if entry.path[0] == "tiles" and found[-1].path[0] != "tiles":
            found += _of_segmenter(recipe)
        if entry.path[2:] == ("area",):
            found += _of_rule(recipe, entry.path[1], entry.section)
        found.append(entry)
    return found


def with_value(recipe: Recipe, path: Place, value: Any) -> Recipe:
    """Return the recipe with another value in one place; None puts the default back.

    Raises
    ------
    RecipeError, Faults
        If it is not allowed there; the message names the place.
    """
    content = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    table = content
    for key in path[:-1]:
        table = table.setdefault(key, {})
    if value is None:
        table.pop(path[-1], None)
    else:
        table[path[-1]] = value
    changed = build_recipe(content)
    if path[0] == "segment":
        segmenter_parameters(changed.segment)
    if path[0] == "panel":
        rules_of(changed.panel)
    return changed


def _of_model(model: BaseModel, path: Place, section: str) -> Iterator[Entry]:
    for name, field in type(model).model_fields.items():
        key = field.alias or name
        value = getattr(model, name)
        if key == "schema":
            continue
        title = field.title or name
        if isinstance(value, BaseModel):
            yield from _of_model(value, (*path, key), f"{section} · {title}" if section else title)
        elif isinstance(value, Mapping):
            for each, part in value.items():
                yield from _of_model(part, (*path, key, each), f"{title} · {each}")
        else:
            entry = _entry(field, value, (*path, key), section or "Recipe")
            if entry is not None:
                yield entry


def _of_segmenter(recipe: Recipe) -> list[Entry]:
    """Return what the recipe's segmenter itself lets one choose, but for the diameter, which the recipe states."""
    segmenter = registry.load("segmenter", recipe.segment.segmenter)
    params = plugin_parameters(segmenter.Params, recipe.segment.parameters, where="[segment]")
    section = f"{type(recipe).model_fields['segment'].title} · {recipe.segment.segmenter}"
    found = _of_model(params, ("segment",), section)
    return [entry for entry in found if entry.path[-1] not in type(recipe.segment).model_fields]


def _of_rule(recipe: Recipe, marker: str, section: str) -> list[Entry]:
    """Return what the positivity rule of a marker itself lets one choose."""
    positive = recipe.panel[marker].positive
    if positive is None:
        return []
    name = recipe.panel[marker].rule
    params = plugin_parameters(registry.load("rule", name).Params, positive.parameters, where=f"rule '{name}'")
    return list(_of_model(params, ("panel", marker, "positive"), f"{section} · {name}"))


def _entry(field: FieldInfo, value: Any, path: Place, section: str) -> Entry | None:
    told = _Kinds()
    told.look(field.annotation)
    for part in field.metadata:
        told.bound(part)
    kind: registry.Kind | None = _PLUGINS.get((path[0], path[-1]))
    if kind is not None:
        told.choices = [plugin.name for plugin in registry.list_plugins(kind)]
        told.text = False
    unseen = told.text and not told.names and isinstance(value, tuple)  # a midline given by two points
    if unseen or not (told.number or told.choices or told.truth or told.text or told.names):
        return None
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return Entry(
        path,
        section,
        field.title or path[-1],
        field.description or "",
        value,
        default,
        told.number,
        Bounds(told.low, told.high, told.open_low, told.open_high),
        tuple(told.choices),
        told.truth,
        told.text,
        told.names,
        told.optional,
    )


class _Kinds:
    """What may stand in a field, read from its annotation."""

    def __init__(self) -> None:
        self.number: type[int] | type[float] | None = None
        self.low: float | None = None
        self.high: float | None = None
        self.open_low = self.open_high = False
        self.choices: list[str] = []
        self.truth = self.text = self.optional = False
        self.names = 0

    def look(self, kind: Any) -> None:
        origin = get_origin(kind)
        if kind is type(None):
            self.optional = True
        elif origin in (Union, types.UnionType):
            for part in get_args(kind):
                self.look(part)
        elif origin is Annotated:
            inner, *details = get_args(kind)
            self.look(inner)
            for part in details:
                self.bound(part)
        elif origin is Literal:
            self.choices += [str(choice) for choice in get_args(kind)]
        elif kind is bool:
            self.truth = True
        elif kind in (int, float):
            self.number = float if float in (kind, self.number) else int
        elif kind is str:
            self.text = True
        elif origin is tuple:
            self._look_into(get_args(kind))

    def _look_into(self, parts: tuple[Any, ...]) -> None:
        inside = _Kinds()
        if parts[-1] is Ellipsis:
            inside.look(parts[0])
            self.names = 1 if inside.text else 2 if inside.names else 0
        elif len(parts) == 2:
            inside.look(parts[0])
            self.names = 1 if inside.text else 0

    def bound(self, part: Any) -> None:
        if isinstance(part, FieldInfo):
            for each in part.metadata:
                self.bound(each)
        elif isinstance(part, annotated_types.Ge | annotated_types.Gt):
            self.low, self.open_low = _number(part), isinstance(part, annotated_types.Gt)
        elif isinstance(part, annotated_types.Le | annotated_types.Lt):
            self.high, self.open_high = _number(part), isinstance(part, annotated_types.Lt)


def _number(bound: Any) -> float:
    (value,) = (getattr(bound, name) for name in ("ge", "gt", "le", "lt") if hasattr(bound, name))
    return float(value)


def words_of(entry: Entry) -> str:
    """Return the value of an entry of names as a person types it: ``svz, dg``, or ``brdu + dcx, tunel + dcx``."""
    if entry.value is None:
        return ""
    named = [entry.value] if isinstance(entry.value, str) else entry.value
    return ", ".join(name if isinstance(name, str) else " + ".join(name) for name in named)


def names_in(entry: Entry, words: str) -> list[Any] | None:
    """Return what was typed as names, as the recipe takes it; None when nothing was.

    Raises
    ------
    InputError
        If pairs are wanted and something else was typed.
    """
    named: list[Any] = [word.strip() for word in words.split(",") if word.strip()]
    if entry.names == 2:
        named = [[part.strip() for part in word.split("+") if part.strip()] for word in named]
        if any(len(pair) != 2 for pair in named):
            raise InputError(f"'{words}' is no list of pairs.", "Type pairs as in: brdu + dcx, tunel + dcx.")
    return named or None
