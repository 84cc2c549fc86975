"""Tokens of a text stream: bytes, or byte pairs that were merged because they are frequent.

Byte-pair encoding (Gage 1994; Sennrich et al. 2016), trained on the source itself. A byte is read as the character of that
number, so every token is a run of bytes: nothing is normalised, text that is no valid UTF-8 comes back as it was, and the
number of bytes behind a token is known, which bits per byte need.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np

from envs.archives import cache_dir
from envs.documents import Array, Document
from nestmem.errors import UserError

PIECE = 1 << 20  # bytes encoded at once
SAMPLE = 1 << 18  # bytes of each document that merges are learned from
DOCUMENTS = 64  # documents they are learned from


class Bytes:
    """Every byte is a token."""

    size = 256
    lengths = np.ones(256, np.int64)  # bytes of each token

    def documents(self, documents: Sequence[Document]) -> list[Document]:
        return list(documents)

    def encode(self, text: bytes) -> Array:
        return np.frombuffer(text, np.uint8)

    def decode(self, tokens: Sequence[int]) -> bytes:
        return bytes(tokens)

    def saved(self) -> bytes:
        return b""


class Pairs:
    """A trained byte-pair encoding. `saved` is all it needs to be made again."""

    def __init__(self, saved: bytes):
        self.tokenizer = _library().Tokenizer.from_str(saved.decode())
        self._saved = saved
        self.size = self.tokenizer.get_vocab_size()
        self.texts = [self.tokenizer.id_to_token(i).encode("latin-1") for i in range(self.size)]
        self.lengths = np.array([len(text) for text in self.texts])

    def documents(self, documents: Sequence[Document]) -> list[Document]:
        """The same documents in tokens, encoded once into the cache and mapped from there."""
        return [self._encoded(document) for document in documents]

    def encode(self, text: bytes) -> Array:
        return np.array(self.tokenizer.encode(text.decode("latin-1")).ids, np.uint16)

    def decode(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self.texts[token] for token in tokens)

    def saved(self) -> bytes:
        return self._saved

    def _encoded(self, document: Document) -> Document:
        pieces = range(0, len(document), PIECE)
        if document.data is not None:
            tokens = np.concatenate([self.encode(document.read(at, at + PIECE).tobytes()) for at in pieces])
            return Document(document.name, 0, len(tokens), kind="u2", data=tokens)
        stat = os.stat(document.path)
        what = f"{document.path} {document.start} {document.stop} {stat.st_size} {stat.st_mtime_ns}"
        key = hashlib.sha256(self._saved + what.encode()).hexdigest()[:24]
        path = cache_dir() / "text" / "tokens" / f"{key}.u2"
        if not path.is_file():
            partial = path.with_suffix(f".{os.getpid()}.part")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(partial, "wb") as out:
                    for at in pieces:
                        out.write(self.encode(document.read(at, at + PIECE).tobytes()).tobytes())
                partial.replace(path)
            except OSError as error:
                raise UserError(f"env.vocabulary: tokens cannot be kept in {path.parent} ({error.strerror})") from None
        return Document(document.name, 0, path.stat().st_size // 2, str(path), "u2")


def trained(documents: Sequence[Document], size: int) -> Pairs:
    """Merges learned from the beginnings of some documents, evenly chosen."""
    if not 257 <= size <= 65535:
        raise UserError(f"env.vocabulary: expected 0 for bytes, or 257 to 65535 tokens, got {size}")
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    words = library.Regex(r" ?\S+|\s+")
    tokenizer.pre_tokenizer = library.pre_tokenizers.Split(words, "isolated")
    chosen = [documents[i] for i in np.unique(np.linspace(0, len(documents) - 1, DOCUMENTS).astype(int))]
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=[chr(i) for i in range(256)], show_progress=False
    )
    tokenizer.train_from_iterator((d.read(0, SAMPLE).tobytes().decode("latin-1") for d in chosen), trainer)
    return Pairs(tokenizer.to_str().encode())


def vocabulary(documents: Sequence[Document], size: int, saved: bytes = b"") -> Bytes | Pairs:
    """Bytes if `size` is 0, else as many byte pairs, of `saved` ones if there are."""
    if size == 0:
        return Bytes()
    return Pairs(saved) if saved else trained(documents, size)


def _library():  # type: ignore[no-untyped-def]
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise UserError(
            "env.vocabulary: the package 'tokenizers' is missing; pip install 'nestmem[train]', or use 0 for bytes"
        ) from None
    return tokenizers
