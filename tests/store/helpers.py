"""What several tests of the store do."""

import os

import pytest

from nestmem.store import New

ON_SQLITE = pytest.mark.parametrize("place", ["sqlite"], indirect=True)  # about its files
SERVED = pytest.mark.parametrize("place", ["postgres"], indirect=True)
SHARDED = pytest.mark.parametrize("place", ["shards", "files"], indirect=True)


def fill(store, vectors, many=40, roots=1, **fields):
    """Notes about cats and dogs, in one subtree or in several."""
    news = []
    for i in range(many):
        where = {"root": f"r{i % roots}"} if roots > 1 else {}
        said = f"note {i} about {'cats' if i % 2 else 'dogs'}"
        news.append(New(said, vectors={"w": vectors[i]}, event_from=float(i), **where, **fields))
    return store.put_many(news).ids


def roots_on(store, place, many):
    """Names of `many` subtrees that lie on a shard."""
    return [f"r{n}" for n in range(1000) if store._shards.place("default", f"r{n}") == place][:many]


def forked(work, argument):
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work(argument)
        status = 0
    finally:
        os._exit(status)
