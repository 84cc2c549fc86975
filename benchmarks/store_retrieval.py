"""Claims store-retrieval-planted and store-retrieval-loogle: what each strategy of the store finds, beside what needs no store.

    python -m benchmarks.store_retrieval

loogle: the ten Wikipedia articles of LooGLE's test sample and their questions that name evidence sentences (NESTMEM_DATA/
loogle_wiki_sample; arXiv 2311.04939). Sentences are items; vectors are hashed words, weighed by idf and projected to 256
numbers, so nothing is trained or downloaded. recall@10: share of a question's evidence sentences among ten. A sentence is
evidence if three quarters of the shorter one's words are in the other.
planted: 60 episodes of eight items around hidden directions in 64 dimensions, so noisy that an item alone says little;
the question is a noisy direction, what is wanted are its episode's items, recall@8.
repeated: the same with little noise, as if 60 facts were said eight times each, in any order; wanted is the fact, first place.
Where a strategy keeps less than all (facts that a gate lets through, prototypes), the note says how much.
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
from nestmem.store import (
    Communities,
    Episodes,
    Filter,
    New,
    NoveltyGate,
    PredictCalibrate,
    Prototypes,
    PyramidMerge,
    Store,
    associate,
    descend,
)
from nestmem.store.descend import made_of

DIM, K = 256, 10
GATES = {"nearest": 2, "ridge": 3}  # their facts' level
PROTOTYPES = 4
Retrieve = Callable[[str | None, Tensor, int], Sequence[str]]  # question, vector, how many to ids
Results = dict[str, list[tuple[float, int]]]  # per strategy and question: recall, and items read
Kept = dict[str, tuple[int, int]]  # per strategy: items it keeps, of how many


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


def selective(path: Path, news: Sequence[New]) -> Store:
    """Another store with the items and what policies make of them that keep less than all; and episodes at level 1."""
    store = consolidated(path, news)
    for mode, level in GATES.items():
        store.consolidate(_Up(PredictCalibrate("v", NoveltyGate(mode=mode), name=mode), level - 1))
    store.consolidate(_Up(Prototypes("v", codes=max(2, len(news) // 8)), PROTOTYPES - 1))
    return store


def selected(store: Store) -> dict[str, Retrieve]:
    """Ways of asking such a store."""

    def routed(text: str | None, vector: Tensor, k: int) -> list[str]:
        asked = dict(vector=vector, space="v", k=k, where=Filter(levels=[0, 1]), also=["levels"])
        found: list[str] = []
        for hit in store.search(**asked).hits:
            found += [hit.item.id] if hit.item.level == 0 else [i.id for i in store.children(hit.item.id)]
        return list(dict.fromkeys(found))[:k]

    def varied(text: str | None, vector: Tensor, k: int) -> Sequence[str]:
        return store.search(vector=vector, space="v", k=k, where=Filter(levels=[0]), diversity=0.3).ids

    gates = {f"facts a gate keeps ({mode})": opened(store, level) for mode, level in GATES.items()}
    return {"levels routed": routed, "diverse": varied, **gates, "prototypes opened": opened(store, PROTOTYPES)}


def kept(store: Store) -> dict[str, tuple[int, int]]:
    """How many items the gates and the codebook keep, and of how many."""
    levels = Counter(item.level for item in store.items())
    names = {f"facts a gate keeps ({mode})": level for mode, level in GATES.items()}
    return {name: (levels[level], levels[0]) for name, level in {**names, "prototypes opened": PROTOTYPES}.items()}


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


def loogle() -> tuple[Results, Kept]:
    """Recall@10 and sentences read, per strategy and question."""
    found: Results = {}
    keeps: Kept = {}
    path = Path(os.environ.get("NESTMEM_DATA", "data")) / "loogle_wiki_sample" / "loogle_wiki_sample.jsonl.gz"
    with gzip.open(path, "rt") as file:
        documents = [json.loads(line) for line in file]
    for document in documents:
        texts = sentences(document["context"])
        encode, bags = Encoder(texts), [set(words(t)) for t in texts]
        news = [New(t, root="d", event_from=float(i), vectors={"v": encode(t)}) for i, t in enumerate(texts)]
        with (
            tempfile.TemporaryDirectory() as folder,
            consolidated(Path(folder) / "m.db", news) as store,
            selective(Path(folder) / "s.db", news) as other,
        ):
            place = places(store) | places(other)
            for name, (some, many) in kept(other).items():
                keeps[name] = (keeps.get(name, (0, 0))[0] + some, keeps.get(name, (0, 0))[1] + many)
            asked_first = [descent(store)(p["Q"], encode(p["Q"]), K) for p in document["qa_pairs"]]
            consolidate_more(store, len(news))
            ways = strategies(store) | selected(other)
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
    return found, keeps


def places(store: Store) -> dict[str, int]:
    """The number of each verbatim item."""
    return {item.id: int(item.event_from or 0) for item in store.items(Filter(levels=[0]))}


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
    noise: float = 1.2, mixed: bool = False, questions: int = 60, each: int = 8, dim: int = 64
) -> tuple[Results, Kept]:
    """Recall@8 of an episode's items; `mixed` in any order: whether the first is of the episode."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(questions, dim, generator=generator), dim=-1)
    around = F.normalize(torch.randn(questions, each, dim, generator=generator), dim=-1)
    vectors = F.normalize(centres[:, None] + noise * around, dim=-1).flatten(0, 1)
    said = torch.arange(questions).repeat_interleave(each)
    if mixed:
        order = torch.randperm(len(said), generator=generator)
        vectors, said = vectors[order], said[order]
    news = [New(f"item {i}", root="d", event_from=float(i), vectors={"v": v}) for i, v in enumerate(vectors)]
    found: Results = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        consolidated(Path(folder) / "m.db", news) as store,
        selective(Path(folder) / "s.db", news) as other,
    ):
        place = places(store) | places(other)
        asked = []
        for q in range(questions):
            vector = F.normalize(centres[q] + 0.8 * F.normalize(torch.randn(dim, generator=generator), dim=0), dim=0)
            asked.append((vector, descent(store)(None, vector, each)))
        consolidate_more(store, len(news))
        ways = {n: w for n, w in strategies(store).items() if "words" not in n} | selected(other)
        for q, (vector, went) in enumerate(asked):
            scan = (vectors @ vector).topk(each).indices.tolist()
            answers = {n: [place[i] for i in w(None, vector, each) if i in place] for n, w in ways.items()}
            answers |= {"descent": [place[i] for i in went if i in place], "exhaustive scan, vectors": scan}
            for name, got in answers.items():
                right = [int(said[i]) == q for i in dict.fromkeys(got)]
                recall = float(right[:1] == [True]) if mixed else sum(right) / each
                found.setdefault(name, []).append((recall, len(vectors) if got is scan else len(right)))
            if not mixed:
                found.setdefault("whole context", []).append((1.0, len(vectors)))
        return found, kept(other)


def rows_of(claim: str, found: Results, keeps: Kept) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for name, results in found.items():
        recall = 100 * np.array([r for r, _ in results])
        means = [float(rng.choice(recall, len(recall)).mean()) for _ in range(2000)]
        low, high = np.quantile(means, [0.025, 0.975])
        note = f"{np.mean([n for _, n in results]):.0f} sentences read" if "loogle" in claim else ""
        if name in keeps:
            note += f"{'; ' if note else ''}{100 * keeps[name][0] / keeps[name][1]:.0f} % of the items are kept"
        rows.append(
            row(claim, name, float(recall.mean()), low=float(low), high=float(high), unit="%", n=len(recall), note=note)
        )
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = rows_of("store-retrieval-planted", *planted())
    rows += rows_of("store-retrieval-repeated", *planted(noise=0.3, mixed=True))
    save("store_retrieval", rows + rows_of("store-retrieval-loogle", *loogle()))
