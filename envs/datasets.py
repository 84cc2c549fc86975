"""`nestmem data`: which sets there are, where they lie, whether they are whole."""

from __future__ import annotations

from envs import archives, documents, mnist, omniglot
from nestmem.errors import UserError

SETS = {"omniglot": omniglot.ARCHIVES, "mnist_t10k": mnist.ARCHIVES} | documents.ARCHIVES
BUILT_IN = {"glyphs": "built in, nothing to download", "generated": "tales, built in"}


def run(verb: str, names: list[str]) -> int:
    """list, get or check the named sets (all if none is named); 0 if what was asked for is here and whole."""
    for name in names:
        if name not in SETS:
            raise UserError(f"data: no set {name!r} to {verb}; known: {', '.join(SETS)}")
    if verb == "list":
        for name, what in BUILT_IN.items():
            print(f"{name:10} {what}")
    complete = True
    for name in names or SETS:
        for archive in SETS[name]:
            path = archives.fetch(archive) if verb == "get" and (names or archive.url) else archives.locate(archive)
            if path is not None and verb in ("get", "check"):
                archives.check(archive, path)
            complete &= path is not None
            state = "missing: nestmem data get " + name if path is None else "whole" if verb != "list" else "here"
            print(f"{name:10} {archive.file:26} {state:8} {path or ''}")
    return 0 if complete or verb == "list" else 1
