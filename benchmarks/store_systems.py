"""What `benchmarks/store.py` compares: the store and what one would pick instead, each behind the same few calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from nestmem.store import Filter, New, Store

DIM, GROUPS, K = 128, 10, 10


def data(many: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Unit vectors [N, 128] in clusters, as embeddings are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(200, DIM))
    made = np.empty((many, DIM), dtype=np.float32)
    for start in range(0, many, 100_000):
        some = min(100_000, many - start)
        rows = centres[rng.integers(200, size=some)] + 0.7 * rng.normal(size=(some, DIM))
        made[start : start + some] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return made


class Ours:
    name = "nestmem.store, SQLite"

    def __init__(self, folder: Path):
        self.path = folder / "memory.db"
        self.open()
        self.store.space("v", DIM)

    def open(self, index: str = "") -> None:
        self.store = Store(self.path, index=index)

    def put(self, first: int, rows: np.ndarray[Any, Any]) -> None:
        self.store.put_many(
            [
                New(
                    f"item {first + i}",
                    key=str(first + i),
                    run=str((first + i) % GROUPS),
                    vectors={"v": torch.from_numpy(r)},
                )
                for i, r in enumerate(rows)
            ]
        )

    def search(self, query: np.ndarray[Any, Any], group: int | None) -> list[int]:
        where = None if group is None else Filter(runs=[str(group)])
        found = self.store.search(vector=torch.from_numpy(query), space="v", k=K, where=where)
        return [int(hit.item.key) for hit in found.hits]

    def close(self) -> None:
        self.store.close()


class SqliteVec:
    name = "sqlite-vec"

    def __init__(self, folder: Path):
        self.path = folder / "vec.db"
        self.open()
        self.db.execute("CREATE TABLE item(id INTEGER PRIMARY KEY, text TEXT)")
        self.db.execute(
            "CREATE VIRTUAL TABLE v USING vec0("
            f"id INTEGER PRIMARY KEY, g INTEGER PARTITION KEY, e float[{DIM}] distance_metric=cosine)"
        )

    def open(self) -> None:
        import apsw
        import sqlite_vec

        self.db = apsw.Connection(str(self.path))
        self.db.enable_load_extension(True)
        self.db.load_extension(sqlite_vec.loadable_path())
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")

    def put(self, first: int, rows: np.ndarray[Any, Any]) -> None:
        with self.db:
            items = [(first + i, f"item {first + i}") for i in range(len(rows))]
            self.db.executemany("INSERT INTO item VALUES (?, ?)", items)
            vectors = [(first + i, (first + i) % GROUPS, r.tobytes()) for i, r in enumerate(rows)]
            self.db.executemany("INSERT INTO v(id, g, e) VALUES (?, ?, ?)", vectors)

    def search(self, query: np.ndarray[Any, Any], group: int | None) -> list[int]:
        only = "" if group is None else f" AND g = {group}"
        asked = f"SELECT v.id, item.text FROM v JOIN item ON item.id = v.id WHERE e MATCH ? AND k = {K}{only}"
        return [ident for ident, _ in self.db.execute(asked, (query.tobytes(),))]

    def close(self) -> None:
        self.db.close()


class Lance:
    name = "LanceDB"

    def __init__(self, folder: Path):
        self.path = folder / "lance"
        import pyarrow as pa

        self.schema = pa.schema(
            [("id", pa.int64()), ("g", pa.int64()), ("text", pa.string()), ("e", pa.list_(pa.float32(), DIM))]
        )
        import lancedb

        lancedb.connect(str(self.path)).create_table("t", schema=self.schema)
        self.open()

    def open(self) -> None:
        import lancedb

        self.table = lancedb.connect(str(self.path)).open_table("t")

    def put(self, first: int, rows: np.ndarray[Any, Any]) -> None:
        import pyarrow as pa

        ids = np.arange(first, first + len(rows))
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), DIM)
        texts = pa.array([f"item {i}" for i in ids])
        self.table.add(pa.table([pa.array(ids), pa.array(ids % GROUPS), texts, vectors], schema=self.schema))

    def search(self, query: np.ndarray[Any, Any], group: int | None) -> list[int]:
        asked = self.table.search(query).distance_type("cosine").limit(K)
        if group is not None:
            asked = asked.where(f"g = {group}", prefilter=True)
        return [hit["id"] for hit in asked.to_list()]

    def close(self) -> None:
        del self.table


class Chroma:
    name = "Chroma"

    def __init__(self, folder: Path):
        self.path = folder / "chroma"
        self.open()

    def open(self) -> None:
        import chromadb

        self.client = chromadb.PersistentClient(str(self.path), settings=chromadb.Settings(anonymized_telemetry=False))
        self.table = self.client.get_or_create_collection("items", metadata={"hnsw:space": "cosine"})

    def put(self, first: int, rows: np.ndarray[Any, Any]) -> None:
        ids = range(first, first + len(rows))
        self.table.add(
            ids=[str(i) for i in ids], embeddings=rows, documents=[f"item {i}" for i in ids],
            metadatas=[{"g": i % GROUPS} for i in ids],
        )  # fmt: skip

    def search(self, query: np.ndarray[Any, Any], group: int | None) -> list[int]:
        where = None if group is None else {"g": group}
        return [int(i) for i in self.table.query(query_embeddings=[query], n_results=K, where=where)["ids"][0]]

    def close(self) -> None:
        from chromadb.api.shared_system_client import SharedSystemClient

        del self.table, self.client
        SharedSystemClient.clear_system_cache()


PEERS = {"sqlite-vec": (SqliteVec, "sqlite_vec"), "lancedb": (Lance, "lancedb"), "chroma": (Chroma, "chromadb")}
