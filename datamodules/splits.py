"""Held-out sets chosen by caption, so that no text of the validation set is ever trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any


def hold_out(groups: Iterable[int], num: int, seed: int) -> set[int]:
    """Choose distinct groups to hold out, the same ones whatever the order of `groups`.

    Groups are ranked by a hash of (seed, group), so adding samples moves few others.

    Args:
        groups: the group of each sample that may be held out; repeats do not count.
        num: how many distinct groups to choose.
        seed: another seed chooses other groups.

    Raises:
        ValueError: fewer than `num` + 1 distinct groups: nothing would be left to train on.
    """
    distinct = set(groups)
    if not 0 <= num < max(len(distinct), 1):
        raise ValueError(f"cannot hold out {num} of {len(distinct)} caption groups; choose fewer")
    return set(sorted(distinct, key=lambda group: _rank(seed, group))[:num])


def _rank(seed: int, group: int) -> bytes:
    return hashlib.blake2b(f"{seed} {group}".encode(), digest_size=16).digest()


def may_be_held_out(meta: Mapping[str, Any], source: str | None) -> bool:
    """Whether a sample may be validated on: from `source` (None = any), and not a mere symbol."""
    return source in (None, meta.get("source")) and not meta.get("symbol", False)
