"""Names for memories, so that `memory=lstm` on a command line and `build("lstm", 64)` in code mean the same thing."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from nestmem.memory.base import Fields, Memory

_BUILDERS: dict[str, Callable[..., Memory]] = {}


def register(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a class or function `(d_model, fields=None, **options)`. Its options become the config schema of the
    name, and it is put through the whole conformance suite."""

    def add(builder: Callable[..., Any]) -> Callable[..., Any]:
        if name in _BUILDERS:
            raise ValueError(f"memory {name!r} is registered already")
        _BUILDERS[name] = builder
        return builder

    return add


def memories() -> dict[str, str]:
    """Every registered name with the first line of its description."""
    return {name: (inspect.getdoc(builder) or "").split("\n")[0] for name, builder in sorted(_BUILDERS.items())}


def builder(name: str) -> Callable[..., Memory]:
    if name not in _BUILDERS:
        raise ValueError(f"memory: no memory is called {name!r}; known: {', '.join(sorted(_BUILDERS))}")
    return _BUILDERS[name]


def build(name: str, d_model: int, fields: Fields | None = None, **options: Any) -> Memory:
    """A memory by name. Errors name the known names and options."""
    known = {field.name for field in dataclasses.fields(schema(name))} - {"name"}
    unknown = set(options) - known
    if unknown:
        raise ValueError(f"memory {name}: no option {sorted(unknown)[0]!r}; known: {', '.join(sorted(known))}")
    return builder(name)(d_model, fields, **options)


def schema(name: str) -> type:
    """A dataclass of the name's options with their types and defaults: the schema of `memory=name`."""
    target = builder(name)
    function = target.__init__ if inspect.isclass(target) else target
    hints = get_type_hints(function)
    options = [
        p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "d_model", "fields")
    ]
    return dataclasses.make_dataclass(
        f"{name.capitalize()}Options",
        [("name", str, name), *((p.name, hints[p.name], p.default) for p in options)],
    )
