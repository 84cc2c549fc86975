"""`nestmem store VERB URL ...`: look at a store, search it, keep it safe. One function a verb."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from nestmem.errors import UserError
from nestmem.store import Filter, Item, Reader, Store, restore

HELP = """\
nestmem store: the memory that outlives the process

  nestmem store stats URL                      items by level and state, rows, bytes
  nestmem store search URL WORDS... [k=10 namespace=default levels=0,1 at=GENERATION]
  nestmem store show URL ID                    an item with its history, ties and evidence
  nestmem store tree URL [namespace=default depth=4 most=20]
  nestmem store verify URL                     check every row; 1 if something is wrong
  nestmem store snapshot URL FILE              copy it as it is, with a manifest
  nestmem store restore URL FILE               put a snapshot in its place; the old file is kept beside it
  nestmem store export URL FOLDER              all of it as JSON lines and tensors
  nestmem store import URL FOLDER              into a new store
  nestmem store projector URL FOLDER [space=NAME namespace=default levels=0,1 most=10000]
                                               vectors for TensorBoard's projector: tensorboard --logdir FOLDER
  nestmem store forget URL ID...               hide items; the past still has them
  nestmem store remember URL ID...             show them again

URL is a path such as memory.db, postgresql://HOST/DATABASE, or the shards of one store: "URL;URL;URL".
"""


def run(arguments: Sequence[str], console: Console | None = None) -> int:
    """Do what the command line says; the exit code."""
    out = console or Console(highlight=False)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        out.print(HELP, end="", markup=False)
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        raise UserError(f"store: no verb {verb!r}; known: {', '.join(VERBS)}")
    if not rest:
        raise UserError(f"store {verb}: expected a URL, as in: nestmem store {verb} memory.db")
    try:
        return VERBS[verb](rest[0], list(rest[1:]), out)
    except ValueError as error:
        raise UserError(f"store {verb}: {error}") from None


def _options(arguments: Sequence[str], **defaults: Any) -> tuple[list[str], dict[str, Any]]:
    """Plain arguments, and name=value ones for the names in `defaults`, each of its default's type."""
    plain, values = [], dict(defaults)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name in defaults:
            kind = type(defaults[name])
            try:
                values[name] = kind(value)
            except ValueError:
                raise UserError(f"{name}: expected {kind.__name__}, got {value!r}") from None
        else:
            plain.append(argument)
    return plain, values


def _only(verb: str, given: Sequence[str], *names: str) -> list[str]:
    if len(given) != len(names):
        raise UserError(f"store {verb}: expected {' '.join(('URL', *names))}, got {len(given)} arguments after the URL")
    return list(given)


def _stats(url: str, rest: list[str], out: Console) -> int:
    _only("stats", rest)
    with Store(url, read_only=True) as store:
        stats = store.stats()
    table = Table("namespace", "level", "items", title=f"{escape(_shown(url))}: generation {stats['generation']}")
    for namespace, level, many in stats["levels"]:
        table.add_row(escape(namespace), _level(level), f"{many:,}")
    out.print(table)
    more = Table("what", "how many")
    for name, many in {**stats["states"], **stats["rows"], "bytes": stats["bytes"]}.items():
        more.add_row(name, f"{many:,}")
    for name, (dim, metric, encoder) in stats["spaces"].items():
        more.add_row(f"space {escape(name)}", f"{dim} numbers, {metric}{', ' + escape(encoder) if encoder else ''}")
    out.print(more)
    return 0


def _search(url: str, rest: list[str], out: Console) -> int:
    words, given = _options(rest, k=10, namespace="default", levels="", at=-1)
    if not words:
        raise UserError(
            "store search: expected words to look for, as in: nestmem store search memory.db where is the key"
        )
    levels = _levels(given["levels"])
    with Store(url, read_only=True, namespace=given["namespace"]) as store:
        reader: Reader = store if given["at"] < 0 else store.as_of(generation=given["at"])
        found = reader.search(" ".join(words), k=given["k"], where=Filter(levels=levels))
    table = Table(title=f"{len(found.hits)} of generation {found.generation}")
    table.add_column("id", no_wrap=True)
    for name in ("level", "recorded", "text"):
        table.add_column(name)
    for hit in found.hits:
        table.add_row(
            hit.item.id, _level(hit.item.level), _when(hit.item.recorded_at), escape(_short(hit.item.text, 100))
        )
    out.print(table)
    return 0


def _show(url: str, rest: list[str], out: Console) -> int:
    (ident,) = _only("show", rest, "ID")
    with Store(url, read_only=True) as store:
        item = store.get(ident)
        table = Table("field", "value", title=ident)
        for name, value in item.__dict__.items():
            if value not in (None, "", "text") and name not in ("id", "text"):
                table.add_row(name, escape(_when(value) if name in TIMES else str(value)))
        use = store.dynamics(ident)
        table.add_row(
            "use", f"{use.retrievals} retrievals, {use.useful} useful, strength {use.strength:.3g}, {use.state}"
        )
        out.print(table)
        out.print(item.text, markup=False)
        for link in store.links(ident):
            arrow = f"{link.type} -> {link.dst}" if link.src == ident else f"{link.src} {link.type} -> this"
            out.print(f"  {arrow}", markup=False)
        for old in store.history(item.key, namespace=item.namespace):
            if old.id != ident:
                out.print(f"  version {old.version} (generation {old.born}): {_short(old.text, 100)}", markup=False)
        if item.level:
            for span in store.evidence(ident):
                sound = "" if span.verified else "  DAMAGED"
                out.print(f"  rests on {span.id}: {_short(span.text, 100)}{sound}", markup=False)
    return 0


def _tree(url: str, rest: list[str], out: Console) -> int:
    plain, given = _options(rest, namespace="default", depth=4, most=20)
    _only("tree", plain)
    with Store(url, read_only=True, namespace=given["namespace"]) as store:
        tree = Tree(f"{escape(_shown(url))}: {escape(given['namespace'])}")
        by_root: dict[str, list[Item]] = {}
        for item in store.roots():
            by_root.setdefault(item.root, []).append(item)
        for root, items in by_root.items():
            _grow(store, tree.add(f"[bold]{escape(root)}[/bold]"), items, given["depth"], given["most"])
    out.print(tree)
    return 0


def _grow(store: Store, tree: Tree, items: Sequence[Item], depth: int, most: int) -> None:
    for item in items[:most]:
        branch = tree.add(f"{_level(item.level)} {escape(_short(item.text, 80))} [dim]{item.id}[/dim]")
        if depth > 1 and item.level > 0:
            _grow(store, branch, store.children(item.id), depth - 1, most)
    if len(items) > most:
        tree.add(f"[dim]and {len(items) - most} more[/dim]")


def _verify(url: str, rest: list[str], out: Console) -> int:
    _only("verify", rest)
    with Store(url, read_only=True) as store:
        report = store.verify()
    for problem in report.problems:
        out.print(problem, markup=False)
    out.print(f"{report.rows:,} rows: {'clean' if report.clean else f'{len(report.problems)} problems'}")
    return 0 if report.clean else 1


def _snapshot(url: str, rest: list[str], out: Console) -> int:
    (file,) = _only("snapshot", rest, "FILE")
    with Store(url, actor="nestmem store") as store:
        done = store.snapshot(file)
    out.print(f"generation {done.generation} in {file}", markup=False)
    return 0


def _restore(url: str, rest: list[str], out: Console) -> int:
    (file,) = _only("restore", rest, "FILE")
    kept = "" if "://" in url or ";" in url else f"; what was there is {url}.before-restore"
    out.print(f"{_shown(url)} is at generation {restore(file, url)}{kept}", markup=False)
    return 0


def _export(url: str, rest: list[str], out: Console) -> int:
    (folder,) = _only("export", rest, "FOLDER")
    with Store(url, read_only=True) as store:
        done = store.export(folder)
    out.print(f"generation {done.generation} in {folder}", markup=False)
    return 0


def _import(url: str, rest: list[str], out: Console) -> int:
    (folder,) = _only("import", rest, "FOLDER")
    with Store(url, actor="nestmem store") as store:
        done = store.import_(folder)
    out.print(f"{_shown(url)} is at generation {done.generation}", markup=False)
    return 0


def _projector(url: str, rest: list[str], out: Console) -> int:
    plain, given = _options(rest, space="", namespace="default", levels="", most=10_000)
    (folder,) = _only("projector", plain, "FOLDER")
    if given["most"] < 1:
        raise UserError(f"most: expected a whole number of at least 1, got {given['most']}")
    from nestmem.store.projector import project

    with Store(url, read_only=True, namespace=given["namespace"]) as store:
        spaces = [given["space"]] if given["space"] else None
        done = project(store, Path(folder), spaces=spaces, levels=_levels(given["levels"]), most=given["most"])
    for name, many in done.items():
        out.print(f"{many:,} vectors of space {name}", markup=False)
    out.print(f"look at them: tensorboard --logdir {folder}", markup=False)
    return 0


def _forget(url: str, rest: list[str], out: Console) -> int:
    return _each(url, rest, out, "forget", "forgotten at generation {}; remember brings them back")


def _remember(url: str, rest: list[str], out: Console) -> int:
    return _each(url, rest, out, "remember", "back at generation {}")


def _each(url: str, rest: list[str], out: Console, verb: str, done: str) -> int:
    if not rest:
        raise UserError(f"store {verb}: expected at least one ID after the URL")
    with Store(url, actor="nestmem store") as store:
        written = getattr(store, verb)(rest)
    out.print(f"{len(rest)} {done.format(written.generation)}", markup=False)
    return 0


TIMES = ("recorded_at", "superseded_at", "event_from", "event_to", "event_closed")


def _shown(url: str) -> str:
    """A URL without its password."""
    return re.sub(r"(?<=://)([^:@/;]*):[^@/;]*@", r"\1:...@", url)


def _levels(given: str) -> list[int] | None:
    try:
        return [int(level) for level in given.split(",")] if given else None
    except ValueError:
        raise UserError(f"levels: expected numbers such as 0,1, got {given!r}") from None


def _level(level: int) -> str:
    return "proc" if level < 0 else f"L{level}"


def _when(seconds: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g}"


def _short(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


VERBS: dict[str, Callable[[str, list[str], Console], int]] = {
    "stats": _stats,
    "search": _search,
    "show": _show,
    "tree": _tree,
    "verify": _verify,
    "snapshot": _snapshot,
    "restore": _restore,
    "export": _export,
    "import": _import,
    "projector": _projector,
    "forget": _forget,
    "remember": _remember,
}
