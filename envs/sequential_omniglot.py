"""The 600-class sequential benchmark of OML (Javed & White 2019) and ANML (Beaulieu et al. 2020): trajectories, and nothing else.

Meta-training: classes 0..962 of Omniglot's background part. Meta-test: n classes drawn from 0..649 of the evaluation part; they
come one after the other, drawings 0..14 of each, one image at a time, once: 9,000 steps for 600 classes. Then all n classes
are asked for drawings 15..19, among 1,000 outputs, without being told which n there were. Accuracy on the learned
drawings is reported too: it shows erasure, the held-out accuracy mostly generalisation.

What moves the number, as published code has it and as it is here:
    numbering: theirs follows the file system; ours is sorted by alphabet, character and drawing, and `manifest` lists it.
    order: their n classes are a draw, but are *shown in the order of the listing*, so alphabets stay together ("listing");
        GeMCL (Banayeeanzade et al. 2021) shows them in random order ("random").
    fewer classes: their curves draw n classes afresh for each n. The first n of a random order are such a draw; the first n
        of a listing are not (they are the first alphabets), and are refused.
    drawings: first 15, last 5 ("first"), or in GeMCL 15 at random ("random"), there of the first 600 classes always.
    size: 84 in OML and GeMCL, 28 in ANML (which also repeats the channel and normalises); ink is bright here, dark there.
    step size: OML takes the one that most often wins five draws by accuracy on the *learned* drawings (`RATES`, Adam), then
        runs 50 fresh draws; ANML's script can choose on the held-out drawings, which we never do.
Legend: R trajectories, N classes in each, C classes and E drawings of the set, L = 15 learned and 5 held out per class.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs import omniglot
from envs.fewshot import ImageSet
from envs.tasks import alphabet
from nestmem.errors import UserError

OUTPUTS = 1000
POINTS = (10, 50, 75, 100, 150, 200, 300, 400, 500, 600)
LEARNED = 15
RATES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
ORDERS = ("listing", "random")
DRAWINGS = ("first", "random")

# Rows of the background (and for "meta_test" of the evaluation) part, in sorted order.
SPLITS = {
    "meta_train": range(963),
    "remember": range(481),  # OML: what the outer loss is reminded of
    "inner": range(481, 963),  # OML: what the inner loop learns
    "train": range(763),  # GeMCL: with the next row, for choices that must not touch the evaluation part
    "val": range(763, 963),
    "meta_test": range(650),
}


def subset(data: ImageSet, split: str) -> ImageSet:
    """The classes of a split of the whole of Omniglot; C as in `SPLITS`."""
    if split not in SPLITS:
        raise UserError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    part = [
        i
        for i, name in enumerate(data.names)
        if (alphabet(name) in omniglot.EVALUATION_ALPHABETS) == (split == "meta_test")
    ]
    rows = [part[i] for i in SPLITS[split]]
    return ImageSet(data.images[rows], [data.names[i] for i in rows])


class Trajectories:
    """R trajectories of N classes out of a set of C; images, or anything made of them once, are picked by `learned` and `held_out`.

    classes: int64 [R, N], the class learned n-th, which is also its label. drawings: int64 [R, N, E], the first 15 are learned,
    in this order, and the rest held out.
    Errors: more classes than the set has, or than there are outputs.
    """

    def __init__(
        self,
        data: ImageSet,
        *,
        seed: int,
        classes: int = 600,
        trajectories: int = 10,
        order: str = "listing",
        drawings: str = "first",
    ):
        for name, value, known in (("order", order, ORDERS), ("drawings", drawings, DRAWINGS)):
            if value not in known:
                raise UserError(f"sequential.{name}: expected one of {', '.join(known)}, got {value!r}")
        have, each = data.images.shape[:2]
        if not 1 <= classes <= min(have, OUTPUTS) or trajectories < 1 or each <= LEARNED:
            raise UserError(
                f"sequential: expected 1..{min(have, OUTPUTS)} classes of more than {LEARNED} drawings and at least one "
                f"trajectory, got {classes} classes of {each} drawings and {trajectories} trajectories"
            )
        g = torch.Generator().manual_seed(seed)
        self.names, self.order = data.names, order
        drawn = torch.rand(trajectories, have, generator=g).argsort(dim=-1, stable=True)[:, :classes]
        self.classes = drawn.sort(-1).values if order == "listing" else drawn
        self.drawings = torch.arange(each).expand(trajectories, classes, each)
        if drawings == "random":
            self.drawings = torch.rand(trajectories, classes, each, generator=g).argsort(dim=-1, stable=True)

    def learned(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """What is shown, step by step, of a table [C, E, ...] (images, features): [R, N * 15, ...], and labels [R, N * 15]."""
        return self._pick(table, self.classes.shape[1], slice(None, LEARNED))

    def held_out(self, table: Tensor, after: int | None = None) -> tuple[Tensor, Tensor]:
        """What is asked for after the first `after` classes (all by default): [R, after * 5, ...], and labels [R, after * 5]."""
        return self._pick(table, self._checked(after), slice(LEARNED, None))

    def relearned(self, table: Tensor, after: int | None = None) -> tuple[Tensor, Tensor]:
        """The learned images of the first `after` classes, to be asked for once more: [R, after * 15, ...] and labels."""
        return self._pick(table, self._checked(after), slice(None, LEARNED))

    def listing(self) -> dict[str, list[str] | Tensor]:
        """What `envs.manifest` lists."""
        return {
            "names": self.names,
            "classes": self.classes,
            "drawings": self.drawings,
            "learned": torch.tensor([LEARNED]),
        }

    def _checked(self, after: int | None) -> int:
        total = self.classes.shape[1]
        if after is None or after == total:
            return total
        if not 1 <= after < total:
            raise UserError(f"sequential.after: expected 1..{total} classes, got {after}")
        if self.order == "listing":
            raise UserError(
                f"sequential.after: the first {after} classes of a listing are its first alphabets, not a draw; "
                f"use order 'random', or trajectories of {after} classes"
            )
        return after

    def _pick(self, table: Tensor, first: int, part: slice) -> tuple[Tensor, Tensor]:
        drawings = self.drawings[:, :first, part]
        labels = self.classes[:, :first, None].expand_as(drawings)
        at = labels.flatten(1).to(table.device), drawings.flatten(1).to(table.device)
        return table[at], at[0]


class Lesson(NamedTuple):
    """B meta-training steps as (class, drawing) pairs: the inner trajectory, one image at a time, then the outer batch."""

    inner: Tensor  # int64 [B, ways * shots, 2]
    outer: Tensor  # int64 [B, ways * queries + remember, 2]


def lessons(
    generator: torch.Generator,
    count: int,
    *,
    ways: int = 3,
    shots: int = 5,
    queries: int = 5,
    remember: int = 15,
    inner: range = SPLITS["inner"],
    outer: range = SPLITS["remember"],
    drawings: int = 20,
) -> Lesson:
    """What one meta-training step of OML learns and is asked for, over rows of "meta_train".

    `ways` classes of `inner`, one after the other, `shots` images of each; then `queries` further images of each, and `remember`
    images of classes of `outer` at random. ANML: ways 1, shots 20, queries 0, remember 64, where without queries the
    inner images are asked for again, as ANML does.
    """
    if ways > len(inner) or shots + queries > drawings:
        raise UserError(
            f"lessons: expected at most {len(inner)} ways and shots + queries <= {drawings}, got {ways} and {shots} + {queries}"
        )
    picked = torch.tensor(inner)[torch.rand(count, len(inner), generator=generator).argsort(-1)[:, :ways]]
    order = torch.rand(count, ways, drawings, generator=generator).argsort(-1)
    pairs = torch.stack([picked[..., None].expand_as(order), order], -1)  # [B, ways, E, 2]
    learn = pairs[:, :, :shots].flatten(1, 2)
    ask = pairs[:, :, shots : shots + queries].flatten(1, 2) if queries else learn
    old = torch.tensor(outer)[torch.randint(len(outer), (count, remember), generator=generator)]
    drawn = torch.randint(drawings, (count, remember), generator=generator)
    return Lesson(learn, torch.cat([ask, torch.stack([old, drawn], -1)], 1))
