"""A small archive in the format of PPI's."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

ppi = importlib.import_module("datasets.ppi")  # the package has a function of that name


def write(
    sizes: Mapping[str, Sequence[int]],
    labels: Callable[[np.random.Generator, np.ndarray], np.ndarray],
) -> bytes:
    """Rings of proteins, numbered through in each split, as the archive has them.

    Args:
        sizes: the nodes of each graph, for "train", "valid" and "test".
        labels: `[N, 121]` from the features `[N, 50]`.
    """
    rng = np.random.default_rng(0)
    out = io.BytesIO()
    first = 1
    with zipfile.ZipFile(out, "w") as archive:
        for split, of_split in sizes.items():
            graph_id = np.repeat(np.arange(first, first + len(of_split)), of_split)
            first += len(of_split)
            links, start = [], 0
            for size in of_split:
                links += [
                    {"source": start + n, "target": start + other}
                    for n in range(size)
                    for other in (n, (n + 1) % size)  # a self-loop each, as in the real ones
                ]
                start += size
            graph = {"directed": False, "multigraph": False, "graph": {}, "links": links}
            graph["nodes"] = [{"id": n} for n in range(start)]
            archive.writestr(f"{split}_graph.json", json.dumps(graph))
            feats = rng.normal(size=(start, 50))
            arrays = {"feats": feats, "labels": labels(rng, feats), "graph_id": graph_id}
            for name, array in arrays.items():
                file = io.BytesIO()
                np.save(file, array)
                archive.writestr(f"{split}_{name}.npy", file.getvalue())
    return out.getvalue()


def expect(content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let `datasets.ppi` find this archive, and take it for the right one; returns its path."""
    path = folder / "data" / "ppi" / "ppi.zip"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    monkeypatch.setenv("GAT_DATA", str(folder / "data"))
    monkeypatch.setenv("GAT_CACHE", str(folder / "cache"))
    monkeypatch.setattr(ppi, "SHA256", hashlib.sha256(content).hexdigest())
    return path
