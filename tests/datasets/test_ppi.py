"""PPI, on a small archive in its format."""

import hashlib
import io
import os
import zipfile

import numpy as np
import pytest
import torch

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


def test_what_was_read_is_kept(archive, monkeypatch):
    first = ppi()
    monkeypatch.setattr(module, "_read", lambda *_: pytest.fail("read again"))
    second = ppi()
    assert torch.equal(first.val[0].y, second.val[0].y)


def test_a_reading_that_is_cut_off_leaves_nothing(archive, tmp_path, monkeypatch):
    def cut(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.PPI, "process", cut)
        ppi()
    assert os.listdir(tmp_path / "cache" / "ppi") == []
    assert len(ppi().train) == 2


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


def test_a_cache_that_cannot_be_written(archive, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GAT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataFileError, match="set GAT_CACHE to a writable folder"):
        ppi()


def test_the_files_are_those_that_torch_geometric_reads():
    found = module.PPI.raw_file_names.fget(module.PPI.__new__(module.PPI))
    assert sorted(found) == sorted(module.RAW)
    assert module.PPI.url == module.URL
    assert len(module.SHA256) == 64
