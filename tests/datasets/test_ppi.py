"""PPI, on a small archive in its format."""

import hashlib
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
import torch_geometric.datasets
from torch_geometric.utils import coalesce

from datasets import DataFileError, ppi
from tests.datasets.ppi_archive import expect, write
from tests.datasets.ppi_archive import ppi as module

SIZES = {"train": [3, 4], "valid": [2], "test": [5]}  # nodes per graph


def labels(rng, feats):
    return rng.integers(0, 2, size=(len(feats), 121))


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """The path of the stand-in, which is what is expected."""
    return expect(write(SIZES, labels), tmp_path, monkeypatch)


def test_graphs_features_labels_and_edges(archive):
    graphs = ppi()
    assert [[graph.num_nodes for graph in split] for split in graphs] == [[3, 4], [2], [5]]
    with zipfile.ZipFile(archive) as content:
        for split, name in zip(graphs, SIZES, strict=True):
            for part, width in (("feats", 50), ("labels", 121)):
                expected = np.load(io.BytesIO(content.read(f"{name}_{part}.npy")))
                found = torch.cat([graph.x if width == 50 else graph.y for graph in split])
                assert found.shape == (sum(SIZES[name]), width) and found.dtype == torch.float32
                assert torch.equal(found, torch.from_numpy(expected).float())
    ring = {(n, (n + 1) % 5) for n in range(5)}
    both_ways = ring | {(b, a) for a, b in ring}
    assert set(map(tuple, graphs.test[0].edge_index.t().tolist())) == both_ways
    assert graphs.train[1].edge_index.max() == 3


def test_the_graphs_are_those_that_torch_geometric_reads(archive, tmp_path):
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "theirs" / "raw")
    for split, ours in zip(("train", "val", "test"), ppi(), strict=True):
        theirs = list(torch_geometric.datasets.PPI(str(tmp_path / "theirs"), split))
        assert len(ours) == len(theirs)
        for found, expected in zip(ours, theirs, strict=True):
            assert torch.equal(found.x, expected.x) and torch.equal(found.y, expected.y)
            assert torch.equal(found.edge_index, coalesce(expected.edge_index))


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle beside the archive was loaded",)


def test_nothing_but_the_verified_archive_is_read_or_written(archive, tmp_path):
    """Files derived from it, which no hash vouches for, could run code when they are loaded."""
    name = f"{module.SHA256[:12]}-{torch_geometric.__version__}"
    for folder in (tmp_path / "cache" / "ppi", tmp_path / "cache" / "ppi" / name):
        (folder / "processed").mkdir(parents=True)
        for split in ("train", "val", "test"):
            with zipfile.ZipFile(folder / "processed" / f"{split}.pt", "w") as file:
                file.writestr("archive/data.pkl", pickle.dumps(Trap()))
    before = sorted((tmp_path / "cache").rglob("*"))
    assert len(ppi().train) == 2
    assert sorted((tmp_path / "cache").rglob("*")) == before


def test_pickles_in_the_archive_are_never_loaded(archive, monkeypatch):
    content = io.BytesIO()
    np.save(content, np.array([Trap()], dtype=object))
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("train_feats.npy", content.getvalue())
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    with pytest.raises(DataFileError, match=r"is not the archive of PPI: .*allow_pickle"):
        ppi()


def test_another_hash_is_refused(archive):
    archive.write_bytes(archive.read_bytes() + b"0")
    with pytest.raises(DataFileError, match="sha256"):
        ppi()


def test_an_archive_of_something_else(archive, monkeypatch):
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("readme.txt", "nothing")
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    with pytest.raises(DataFileError, match=r"is not the archive of PPI: .*train_feats\.npy"):
        ppi()


def test_the_archive_is_the_one_that_torch_geometric_names():
    assert torch_geometric.datasets.PPI.url == module.URL
    assert len(module.SHA256) == 64
