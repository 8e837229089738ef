"""The promises a plug-in breaks, collected and raised together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from histoquant.errors import PluginError
from histoquant.registry import Kind, interface_faults

if TYPE_CHECKING:
    from pydantic import BaseModel


class BrokenPromises:
    """The broken promises of one plug-in."""

    def __init__(self, kind: Kind, plugin: type[Any]) -> None:
        self.plugin = f"{kind.capitalize()} {plugin.__module__}.{plugin.__qualname__}"
        self.found: list[str] = []

    def expect(self, kept: object, otherwise: str) -> None:
        """Note what is broken unless the promise is kept."""
        if not kept:
            self.found.append(otherwise)

    @contextmanager
    def when(self, doing: str) -> Iterator[None]:
        """Turn whatever the plug-in raises within into a fault."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  a plug-in may raise anything; nothing is lost, it is listed
            self.found.append(f"{doing} raised {type(error).__name__}: {error}")

    def stop_if_any(self) -> None:
        """Raise one PluginError that lists everything broken so far, each once."""
        distinct = dict.fromkeys(self.found)
        if distinct:
            listed = "\n".join(f"  - {fault}" for fault in distinct)
            raise PluginError(f"{self.plugin} breaks {len(distinct)} promise(s):\n{listed}")


def checked_params(
    faults: BrokenPromises, kind: Kind, plugin: type[Any], params: Mapping[str, Any] | None
) -> BaseModel:
    """Return the parameters to check with, from a ``Params`` that is what recipes need."""
    faults.found += interface_faults(kind, plugin)
    faults.stop_if_any()
    model, made = plugin.Params, []
    faults.expect(model.model_config.get("frozen"), "Params is not frozen")
    faults.expect(model.model_config.get("extra") == "forbid", "Params accepts unknown keys (extra is not 'forbid')")
    with faults.when("making Params" + ("" if params else " from its defaults")):
        made.append(model(**(params or {})))
        faults.expect(model.model_validate_json(made[0].model_dump_json()) == made[0], "Params does not survive JSON")
    faults.stop_if_any()
    return made[0]  # type: ignore[no-any-return]  # interface_faults looked for a pydantic model
