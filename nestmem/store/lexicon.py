"""BM25 on PostgreSQL, which has no such ranking: a table of the distinct words of each text under a GIN index.

    score(d) = sum over words w of the query  idf(w) tf (k1 + 1) / (tf + k1 (1 - b + b |d| / mean |d|))
    idf(w)   = ln((N - n_w + 1/2) / (n_w + 1/2)), at least 1e-6        k1 = 1.2, b = 0.75

The formula, its constants and the tokens (runs of letters and digits, lower case, without accents) are those of
SQLite's FTS5, so both engines rank alike. Okapi BM25: Robertson and Zaragoza 2009.
Legend: N texts, n_w texts with the word, tf its count in one, |d| words of one.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import ARRAY, INTEGER, TEXT

from nestmem.store.engine import chunks
from nestmem.store.schema import item, meta

K1, B, FLOOR = 1.2, 0.75, 1e-6
LONGEST = 100  # characters of a word that count: an index entry has a limit
QUERY_WORDS = 64  # distinct words of a query that count

_own = sa.MetaData()
lexicon = sa.Table(
    "lexicon",
    _own,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("words", ARRAY(TEXT), nullable=False),
    sa.Column("counts", ARRAY(INTEGER), nullable=False),
    sa.Column("length", sa.Integer, nullable=False),
    sa.Index("lexicon_words", "words", postgresql_using="gin"),
)
SEARCH = """
WITH hit AS (SELECT l.seq, l.length, t.word, t.tf FROM lexicon l, unnest(l.words, l.counts) AS t(word, tf)
             WHERE l.words && CAST(:asked AS text[]) AND t.word = ANY(CAST(:asked AS text[]))),
     idf AS (SELECT word, greatest(ln((:texts - count(*) + 0.5) / (count(*) + 0.5)), :floor) AS idf
             FROM hit GROUP BY word)
SELECT hit.seq, sum(idf.idf * hit.tf * (:k1 + 1) / (hit.tf + :k1 * (1 - :b + :b * hit.length / :mean))) AS score
FROM hit JOIN idf ON idf.word = hit.word GROUP BY hit.seq
"""


def tokens(text: str) -> list[str]:
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if not unicodedata.combining(c))
    return [word[:LONGEST] for word in re.findall(r"[^\W_]+", plain)]


def scores(texts: Sequence[tuple[int, str]], query: str) -> dict[int, float]:
    """The BM25 of those of `texts` that have a word of the query."""
    asked = list(dict.fromkeys(tokens(query)))[:QUERY_WORDS]
    bags = {seq: Counter(tokens(text)) for seq, text in texts}
    mean = sum(bag.total() for bag in bags.values()) / max(1, len(bags))
    found: dict[int, float] = {}
    for word in asked:
        there = [seq for seq, bag in bags.items() if word in bag]
        idf = max(math.log((len(bags) - len(there) + 0.5) / (len(there) + 0.5)), FLOOR)
        for seq in there:
            tf = bags[seq][word]
            part = idf * tf * (K1 + 1) / (tf + K1 * (1 - B + B * bags[seq].total() / mean))
            found[seq] = found.get(seq, 0.0) + part
    return found


class Lexicon:
    """The word index of one database. How many texts and words there are stands in `meta`, row "words"."""

    def make(self, conn: Connection) -> None:
        _own.create_all(conn)
        conn.execute(sa.insert(meta).values(name="words", value="0 0"))

    def clear(self, conn: Connection) -> None:
        conn.execute(sa.delete(lexicon))
        conn.execute(sa.update(meta).where(meta.c.name == "words").values(value="0 0"))

    def add(self, conn: Connection, rows: Sequence[tuple[int, str]]) -> None:
        values, lengths = [], []
        for seq, text in rows:
            bag = Counter(tokens(text))
            values.append(dict(seq=seq, words=list(bag), counts=list(bag.values()), length=bag.total()))
            lengths.append(bag.total())
        for piece in chunks(values):
            conn.execute(sa.insert(lexicon), list(piece))
        self._count(conn, len(values), sum(lengths))

    def remove(self, conn: Connection, seqs: Sequence[int]) -> None:
        for piece in chunks(seqs):
            where = lexicon.c.seq.in_(piece)
            lengths = conn.execute(sa.delete(lexicon).where(where).returning(lexicon.c.length)).scalars().all()
            self._count(conn, -len(lengths), -sum(lengths))

    def seqs(self, conn: Connection) -> set[int]:
        return set(conn.execute(select(lexicon.c.seq)).scalars())

    def search(
        self, conn: Connection, query: str, where: sa.ColumnElement[bool], limit: int
    ) -> list[tuple[int, str, float]]:
        """The best `limit` of the items that meet `where`, as (seq, id, BM25), best first."""
        asked = list(dict.fromkeys(tokens(query)))[:QUERY_WORDS]
        texts, words = self._totals(conn)
        if not asked or not texts:
            return []
        given = dict(asked=asked, texts=float(texts), floor=FLOOR, k1=K1, b=B, mean=words / texts or 1.0)
        hits = sa.text(SEARCH).bindparams(**given).columns(seq=sa.BigInteger, score=sa.Float(53)).cte("hits")
        found = (
            select(item.c.seq, item.c.id, hits.c.score)
            .join(hits, hits.c.seq == item.c.seq)
            .where(where)
            .order_by(sa.func.round(hits.c.score * 1e9).desc(), item.c.id)
            .limit(limit)
        )
        return [(row.seq, row.id, float(row.score)) for row in conn.execute(found)]

    def _totals(self, conn: Connection) -> tuple[int, int]:
        noted = conn.execute(select(meta.c.value).where(meta.c.name == "words")).scalar_one()
        texts, words = noted.split()
        return int(texts), int(words)

    def _count(self, conn: Connection, texts: int, words: int) -> None:
        if texts:
            before = self._totals(conn)
            value = f"{before[0] + texts} {before[1] + words}"
            conn.execute(sa.update(meta).where(meta.c.name == "words").values(value=value))
