"""Which recordings belong to which split: the same at every call, and as files are added."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import NamedTuple

__all__ = ["Wanted", "share_of", "wanted_ids"]


class Wanted(NamedTuple):
    """A split's recordings, and how many at most."""

    split: str
    samples: int


def share_of(shares: Mapping[str, float], split: str) -> tuple[float, float]:
    """Where in 0 to 1 a split's part begins and ends; all of it where there are no shares."""
    ends = dict(zip(shares, accumulate(shares.values()), strict=True))
    return (ends[split] - shares[split], min(ends[split], 1.0)) if shares else (0.0, 1.0)


def wanted_ids(ids: Iterable[str], shares: Mapping[str, float], wanted: Wanted) -> list[str]:
    """A split's ids, as many as are wanted, in an order that has nothing to do with their names.

    An id's place in 0 to 1 is its sha256, and a split is a part of that: a recording stays in its split whatever is
    added or taken away. Within a split the places are the order too, so that the first few are of every kind.
    """
    first, end = share_of(shares, wanted.split)
    placed = sorted((_place(id_), id_) for id_ in ids)
    return [id_ for place, id_ in placed if first <= place < end][: wanted.samples]


def _place(id_: str) -> float:
    """53 bits of it, as many as a float holds: never 1."""
    return (int.from_bytes(hashlib.sha256(id_.encode()).digest()[:8], "big") >> 11) / (1 << 53)
