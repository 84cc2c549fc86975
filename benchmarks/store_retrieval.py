"""Claims store-retrieval-planted and store-retrieval-loogle: what each strategy of the store finds, beside what needs no store.

    python -m benchmarks.store_retrieval

loogle: the ten Wikipedia articles of LooGLE's test sample and their questions that name evidence sentences (NESTMEM_DATA/
loogle_wiki_sample; arXiv 2311.04939). Sentences are items; vectors are hashed words, weighed by idf and projected to 256
numbers, so nothing is trained or downloaded. recall@10: share of a question's evidence sentences among ten. A sentence is
evidence if three quarters of the shorter one's words are in the other.
planted: 60 episodes of eight items around hidden directions in 64 dimensions, so noisy that an item alone says little;
the question is a noisy direction, what is wanted are its episode's items, recall@8.
Baselines: an exhaustive scan that counts shared words (weighed by idf) or compares vectors with every sentence and has no store,
and the whole context, which finds everything and reads everything. Intervals: bootstrap over questions.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.results import row, save
from nestmem.store import Communities, Episodes, Filter, New, PyramidMerge, Store, associate, descend
from nestmem.store.descend import made_of

DIM, K = 256, 10
Retrieve = Callable[[str | None, Tensor, int], Sequence[str]]  # question, vector, how many to ids


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def sentences(text: str) -> list[str]:
    found = [s.strip() for s in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"“(])", text) if len(words(s)) > 2]
    return list(dict.fromkeys(found))


class Encoder:
    """Hashed words weighed by idf over the sentences of a document, each word a fixed random direction."""

    def __init__(self, texts: Sequence[str]):
        self.count = Counter(w for t in texts for w in set(words(t)))
        self.many = len(texts)

    def idf(self, word: str) -> float:
        return math.log(1 + self.many / (1 + self.count[word]))

    def __call__(self, text: str) -> Tensor:
        total = torch.zeros(DIM)
        for word in set(words(text)):
            seed = int(hashlib.sha256(word.encode()).hexdigest()[:8], 16)
            total += self.idf(word) * torch.randn(DIM, generator=torch.Generator().manual_seed(seed))
        return F.normalize(total, dim=0) if bool(total.any()) else torch.ones(DIM) / math.sqrt(DIM)


def opened(store: Store, level: int) -> Retrieve:
    """The items under the best summaries, in the order of their own similarity within each."""

    def retrieve(text: str | None, vector: Tensor, k: int) -> list[str]:
        above = store.search(text, vector=vector, space="v", k=k, where=Filter(levels=[level])).ids
        found: list[str] = []
        for ident in above:
            inside = list(made_of(store, [ident]))
            found += store.search(
                vector=vector, space="v", k=len(inside) or 1, where=Filter(ids=inside, levels=[0])
            ).ids
        return found[:k]

    return retrieve


def strategies(store: Store) -> dict[str, Retrieve]:
    """Ways of asking one store that has been consolidated; all return verbatim items."""
    below = Filter(levels=[0])

    def ask(dense: bool = True, lexical: bool = True, also: Sequence[str] = (), where: Filter = below) -> Retrieve:
        def retrieve(text: str | None, vector: Tensor, k: int) -> Sequence[str]:
            given: dict[str, Any] = dict(vector=vector, space="v") if dense else {}
            return store.search(text if lexical else None, k=k, where=where, also=also, **given).ids

        return retrieve

    return {
        "dense": ask(lexical=False),
        "words (BM25)": ask(dense=False),
        "dense + words": ask(),
        "dense + words + entities": ask(also=["entities"]),
        "dense + words + hopfield": ask(also=["hopfield"]),
        "dense + words + spreading": ask(also=["spreading"]),
        "dense + spreading": ask(lexical=False, also=["spreading"]),
        "episodes opened": opened(store, 1),
        "pyramid opened": opened(store, 2),
        "communities opened": opened(store, 3),
    }


def consolidated(path: Path, news: Sequence[New]) -> Store:
    """A store with the items and what the strategies make of them: episodes at level 1, a pyramid at 2, scenes at 3."""
    store = Store(path)
    store.space("v", news[0].vectors["v"].shape[0])
    store.put_many(news)
    store.consolidate(Episodes("v", longest=12))
    return store


def consolidate_more(store: Store, many: int) -> None:
    store.consolidate(_Up(PyramidMerge("v", capacities=(max(2, many // 3), 10_000)), 1))
    store.consolidate(_Up(Communities("v", threshold=0.35), 2))
    associate(store, "v", where=Filter(levels=[0]))


def descent(store: Store) -> Retrieve:
    """From episodes to what the five best were made of, where they are not clear."""
    return lambda text, vector, k: descend(store, vector, "v", text=text, k=k, margin=2.0, beam=5).found.ids


class _Up:
    """A policy whose items lie some levels higher, so that several can be asked side by side."""

    def __init__(self, policy: Any, by: int):
        self.policy, self.by = policy, by
        self.name, self.space, self.source = policy.name, policy.space, policy.source

    def config(self) -> dict[str, Any]:
        return self.policy.config()

    def derive(self, items: Any, vectors: Tensor) -> Any:
        return [each._replace(level=each.level + self.by) for each in self.policy.derive(items, vectors)]

    def describe(self, members: Any, vectors: Tensor) -> str:
        return self.policy.describe(members, vectors)


def loogle() -> dict[str, list[tuple[float, int]]]:
    """Recall@10 and sentences read, per strategy and question."""
    found: dict[str, list[tuple[float, int]]] = {}
    path = Path(os.environ.get("NESTMEM_DATA", "data")) / "loogle_wiki_sample" / "loogle_wiki_sample.jsonl.gz"
    with gzip.open(path, "rt") as file:
        documents = [json.loads(line) for line in file]
    for document in documents:
        texts = sentences(document["context"])
        encode, bags = Encoder(texts), [set(words(t)) for t in texts]
        news = [New(t, root="d", event_from=float(i), vectors={"v": encode(t)}) for i, t in enumerate(texts)]
        with tempfile.TemporaryDirectory() as folder, consolidated(Path(folder) / "m.db", news) as store:
            place = {item.id: int(item.event_from or 0) for item in store.items(Filter(levels=[0]))}
            asked_first = [descent(store)(p["Q"], encode(p["Q"]), K) for p in document["qa_pairs"]]
            consolidate_more(store, len(news))
            ways = strategies(store)
            matrix = torch.stack([new.vectors["v"] for new in news])
            for pair, went in zip(document["qa_pairs"], asked_first):
                gold = evidence(pair["S"], bags)
                if not gold:
                    continue
                question = pair["Q"]
                vector = encode(question)
                for name, ids in [*((n, w(question, vector, K)) for n, w in ways.items()), ("descent", went)]:
                    got = {place[i] for i in ids if i in place}
                    found.setdefault(name, []).append((len(gold & got) / len(gold), len(got)))
                asked = set(words(question))
                shared = [sum(encode.idf(w) for w in asked & bag) for bag in bags]
                for name, scores in (
                    ("exhaustive scan, shared words", torch.tensor(shared)),
                    ("exhaustive scan, vectors", matrix @ vector),
                ):
                    got = set(scores.topk(min(K, len(texts))).indices.tolist())
                    found.setdefault(name, []).append((len(gold & got) / len(gold), len(texts)))
                found.setdefault("whole context", []).append((1.0, len(texts)))
    return found


def evidence(given: Sequence[str] | str, bags: Sequence[set[str]]) -> set[int]:
    """The sentences that the evidence of a question quotes."""
    gold: set[int] = set()
    for text in [given] if isinstance(given, str) else given:
        for part in sentences(re.sub(r"\s+", " ", text)) or [text]:
            bag = set(words(part))
            if len(bag) >= 4:
                shares = [len(bag & other) / min(len(bag), len(other)) if len(other) >= 4 else 0.0 for other in bags]
                best = max(shares)
                gold |= {i for i, share in enumerate(shares) if share >= 0.75 and share >= best - 0.05}
    return gold


def planted(
    questions: int = 60, episodes: int = 60, each: int = 8, dim: int = 64
) -> dict[str, list[tuple[float, int]]]:
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(episodes, dim, generator=generator), dim=-1)
    noise = F.normalize(torch.randn(episodes, each, dim, generator=generator), dim=-1)
    vectors = F.normalize(centres[:, None] + 1.2 * noise, dim=-1).flatten(0, 1)
    news = [New(f"item {i}", root="d", event_from=float(i), vectors={"v": v}) for i, v in enumerate(vectors)]
    found: dict[str, list[tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory() as folder, consolidated(Path(folder) / "m.db", news) as store:
        place = {item.id: int(item.event_from or 0) for item in store.items(Filter(levels=[0]))}
        asked = []
        for q in range(questions):
            vector = F.normalize(centres[q] + 0.8 * F.normalize(torch.randn(dim, generator=generator), dim=0), dim=0)
            asked.append((vector, descent(store)(None, vector, each)))
        consolidate_more(store, len(news))
        ways = {n: w for n, w in strategies(store).items() if "words" not in n}
        for q, (vector, went) in enumerate(asked):
            gold = set(range(each * q, each * (q + 1)))
            for name, ids in [*((n, w(None, vector, each)) for n, w in ways.items()), ("descent", went)]:
                got = {place[i] for i in ids if i in place}
                found.setdefault(name, []).append((len(gold & got) / each, len(got)))
            got = set((vectors @ vector).topk(each).indices.tolist())
            found.setdefault("exhaustive scan, vectors", []).append((len(gold & got) / each, len(vectors)))
            found.setdefault("whole context", []).append((1.0, len(vectors)))
    return found


def rows_of(claim: str, found: dict[str, list[tuple[float, int]]]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for name, results in found.items():
        recall = 100 * np.array([r for r, _ in results])
        means = [float(rng.choice(recall, len(recall)).mean()) for _ in range(2000)]
        low, high = np.quantile(means, [0.025, 0.975])
        note = f"{np.mean([n for _, n in results]):.0f} sentences read" if "loogle" in claim else ""
        rows.append(
            row(claim, name, float(recall.mean()), low=float(low), high=float(high), unit="%", n=len(recall), note=note)
        )
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    save("store_retrieval", rows_of("store-retrieval-planted", planted()) + rows_of("store-retrieval-loogle", loogle()))
