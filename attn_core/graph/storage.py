"""Sorted pairs in a folder of .npy files, which other programs read too and systems can map."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attn_core.graph.listing import Listing, Sorted

_ABOUT = "about"  # int64: format, keys, queries, edges given, loops (-1: none replaced), pairs
_FORMAT = 1


def save(listing: Listing, folder: str | os.PathLike[str]) -> None:
    """Write a listing to a folder, which is there as a whole or as it was before."""
    import numpy as np  # which torch needs for it too

    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    loops = -1 if listing.loops is None else listing.loops
    about = [_FORMAT, *listing.sizes, listing.num_given, loops, listing.num_pairs]
    files: dict[str, Any] = {_ABOUT: torch.tensor(about), **listing.room()._asdict()}
    if (key_room := listing.key_room()) is not None:
        files |= {f"key_{name}": x for name, x in key_room._asdict().items()}
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name, x in files.items():
            with open(made / f"{name}.npy", "wb") as file:
                np.save(file, x.numpy(), allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        made.chmod(0o777 & ~_umask())
        if target.is_dir() and _is_ours(target):
            aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            target.replace(aside)
            made.replace(target)
            shutil.rmtree(aside)
        else:
            made.replace(target)  # which refuses a folder with something else in it
    finally:
        shutil.rmtree(made, ignore_errors=True)


def load(folder: str | os.PathLike[str], *, mapped: bool) -> Listing:
    """Read what `save` wrote; `mapped`: the files are read when their numbers are."""
    about = _read(folder, _ABOUT, mapped=False).tolist()
    if len(about) != 6 or about[0] != _FORMAT:
        raise ValueError(
            f"{folder} holds Edges in the format {about[:1]}; this release reads {_FORMAT}: save "
            "them anew"
        )
    _, num_keys, num_queries, given, loops, pairs = about

    def order(prefix: str) -> Sorted:
        return Sorted(*(_read(folder, prefix + name, mapped=mapped) for name in Sorted._fields))

    room = order("")
    fits = len(room.pointer) == num_queries + 1 and int(room.pointer[-1]) == pairs
    if not fits or len({len(room.columns), len(room.places), given + max(loops, 0)}) != 1:
        raise ValueError(f"{folder} holds files that do not fit each other: save the Edges anew")
    key_room = order("key_") if (Path(folder) / "key_pointer.npy").exists() else None
    sizes = num_keys, num_queries
    return Listing(sizes, given, None if loops < 0 else loops, room, pairs, key_room)


def _read(folder: str | os.PathLike[str], name: str, *, mapped: bool) -> Tensor:
    import numpy as np

    # Copied where it is written to: what is mapped is not to be edited
    path = Path(folder) / f"{name}.npy"
    return torch.from_numpy(np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False))


def _is_ours(folder: Path) -> bool:
    return (folder / f"{_ABOUT}.npy").exists()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
