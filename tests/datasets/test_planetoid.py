import io
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch_geometric.io import read_planetoid_data
from torch_geometric.transforms import NormalizeFeatures
from torch_geometric.utils import contains_self_loops, is_undirected

from datasets import DataFileError, planetoid
from datasets.planetoid import SHA256, _Unpickler

needs_data = pytest.mark.skipif(
    not os.environ.get("GAT_DATA"),
    reason="reads the Planetoid files: set GAT_DATA to a folder that has them in planetoid/",
)
NAMES = ["cora", "citeseer", "pubmed"]


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@needs_data
@pytest.mark.parametrize(
    "name, nodes, edges, features, classes",
    [
        ("cora", 2708, 5278, 1433, 7),
        ("citeseer", 3327, 4552, 3703, 6),
        ("pubmed", 19717, 44324, 500, 3),
    ],
)
def test_published_statistics(name, nodes, edges, features, classes):
    data = planetoid(name)
    assert data.x.shape == (nodes, features)
    assert data.num_edges == 2 * edges
    assert is_undirected(data.edge_index)
    assert not contains_self_loops(data.edge_index)
    assert data.edge_index.unique(dim=1).shape == data.edge_index.shape
    assert data.y[data.train_mask].bincount().tolist() == [20] * classes
    assert (int(data.val_mask.sum()), int(data.test_mask.sum())) == (500, 1000)
    assert len(data.class_names) == classes
    assert (data.x.dtype, data.edge_index.dtype, data.y.dtype) == (
        torch.float32,
        torch.int64,
        torch.int64,
    )


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_torch_geometric(name):
    theirs = read_planetoid_data(os.path.join(os.environ["GAT_DATA"], "planetoid"), name)
    ours = planetoid(name, normalize_features=False)
    assert torch.equal(ours.x, theirs.x)
    assert torch.equal(ours.y, theirs.y)
    for mask in ("train_mask", "val_mask", "test_mask"):
        assert torch.equal(ours[mask], theirs[mask])
    found, expected = (  # one number for each pair
        (edges[0] * ours.num_nodes + edges[1]).unique()
        for edges in (ours.edge_index, theirs.edge_index)
    )
    assert torch.equal(found, expected)
    assert torch.allclose(planetoid(name).x, NormalizeFeatures()(theirs).x, rtol=1e-6)


@needs_data
def test_rows_sum_to_one_except_papers_without_words():
    total = planetoid("citeseer").x.sum(dim=1)
    known = total > 0
    assert int((~known).sum()) == 15
    assert torch.allclose(total[known], torch.ones(()), rtol=1e-5)


@needs_data
def test_papers_of_citeseer_without_words_have_citations_but_are_in_no_mask():
    data = planetoid("citeseer")
    wordless = data.x.sum(dim=1) == 0
    degree = data.edge_index[1].bincount(minlength=data.num_nodes)
    assert (degree[wordless] > 0).all()
    assert not (wordless & (data.train_mask | data.val_mask | data.test_mask)).any()
    assert int((degree == 0).sum()) == 48


@needs_data
def test_class_names_follow_from_the_known_class_sizes():
    def sizes(name):
        data = planetoid(name)
        known = data.x.sum(dim=1) > 0
        return dict(zip(data.class_names, data.y[known].bincount().tolist(), strict=True))

    assert sizes("cora") == {
        "Theory": 351,
        "Reinforcement Learning": 217,
        "Genetic Algorithms": 418,
        "Neural Networks": 818,
        "Probabilistic Methods": 426,
        "Case Based": 298,
        "Rule Learning": 180,
    }
    assert sizes("citeseer") == {
        "AI": 249,
        "ML": 590,
        "IR": 668,
        "DB": 701,
        "Agents": 596,
        "HCI": 508,
    }


@needs_data
def test_changed_file_is_refused_before_it_is_unpickled(tmp_path, monkeypatch):
    folder = tmp_path / "planetoid"
    shutil.copytree(os.path.join(os.environ["GAT_DATA"], "planetoid"), folder)
    monkeypatch.setenv("GAT_DATA", str(tmp_path))
    planted = tmp_path / "planted"
    graph = folder / "ind.cora.graph"
    graph.chmod(0o644)
    graph.write_bytes(pickle.dumps(Touch(planted)))
    with pytest.raises(DataFileError, match=r"ind.cora.graph"):
        planetoid("cora")
    assert not planted.exists()


def test_malicious_files_are_refused_before_they_are_unpickled(tmp_path, monkeypatch):
    monkeypatch.setenv("GAT_DATA", str(tmp_path))
    (tmp_path / "planetoid").mkdir()
    planted = tmp_path / "planted"
    attack = pickle.dumps(Touch(planted))
    for part in SHA256["cora"]:
        (tmp_path / "planetoid" / f"ind.cora.{part}").write_bytes(attack)
    with pytest.raises(DataFileError, match=f"ind.cora.x .*{SHA256['cora']['x']}"):
        planetoid("cora")
    assert not planted.exists()
    pickle.loads(attack)  # the attack itself works
    assert planted.exists()


def test_unpickler_builds_nothing_but_the_known_types(tmp_path):
    planted = tmp_path / "planted"
    with pytest.raises(pickle.UnpicklingError, match="no place in a Planetoid file"):
        _Unpickler(io.BytesIO(pickle.dumps(Touch(planted)))).load()
    assert not planted.exists()


def test_missing_local_file(tmp_path, monkeypatch):
    monkeypatch.setenv("GAT_DATA", str(tmp_path))
    missing = tmp_path / "planetoid" / "ind.pubmed.x"
    with pytest.raises(DataFileError, match=f"{re.escape(str(missing))} does not exist.*GAT_DATA"):
        planetoid("pubmed")


def test_unknown_name():
    with pytest.raises(ValueError, match=r"name must be one of 'cora'.* got 'nell'"):
        planetoid("nell")
