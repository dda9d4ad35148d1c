"""Files are whole or absent."""

import pytest
import torch

from examples.shared.files import UserError, load_checkpoint, save_checkpoint, write_atomically


def test_the_old_content_survives_a_failure(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*file.txt: No space left on device"):
        write_atomically(path, write)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_interruption_leaves_no_trace(tmp_path):
    def write(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file.txt", write)
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_file_has_the_same_ending(tmp_path):
    seen = []
    write_atomically(tmp_path / "a.png", lambda path: (seen.append(path), path.write_text("new")))
    assert seen[0].suffix == ".png" and seen[0].parent == tmp_path
    assert (tmp_path / "a.png").read_text() == "new"


def test_a_checkpoint_comes_back_bit_by_bit(tmp_path):
    state = {"weights": torch.randn(3, dtype=torch.float64), "loss": float("inf"), "n": (1, None)}
    save_checkpoint(tmp_path / "c.pt", state)
    found = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(found.pop("weights"), state["weights"])
    assert found == {"loss": float("inf"), "n": (1, None)}
