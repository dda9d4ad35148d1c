"""Files that are either whole or absent: models, training checkpoints, anything atomic."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save

CHECKPOINT_FORMAT = 1


class UserError(Exception):
    """Something that the person at the keyboard can mend; the message says how."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, then puts it in place in one step.

    Args:
        path: the file to write. Whatever happens, it holds the old content or the new.
        write: called with the path of the temporary file, which has the ending of `path`.

    Raises:
        UserError: the file cannot be written (full disk, no permission).
    """
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # else a power cut could leave an empty file under the new name
        os.replace(temporary, path)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save: RuntimeError when full
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(
            f"cannot write {path}: {reason}; free the way or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes `content` as indented json, atomically."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def prepare_folder(folder: Path) -> None:
    """Creates `folder` and proves that files can be written there, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot create the folder {folder}: {error.strerror}; choose another folder"
        ) from error
    probe = folder / "probe.tmp"
    write_atomically(probe, lambda temporary: temporary.write_bytes(bytes(1 << 20)))
    probe.unlink(missing_ok=True)


def save_model(folder: Path, weights: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes model.safetensors and config.json; the second names the first by its sha256."""
    path = folder / "model.safetensors"
    # safetensors' own save_file makes files that nobody but their owner can read
    write_atomically(path, lambda temporary: temporary.write_bytes(save(weights)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    write_json(folder / "config.json", {**config, "weights_sha256": digest})


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a training's state (tensors and plain python values only), atomically."""
    content = {"format": CHECKPOINT_FORMAT, **state}
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote, without unpickling anything but tensors and values.

    Raises:
        UserError: the file is missing, damaged or no such checkpoint.
    """
    if not path.is_file():
        raise UserError(
            f"nothing to resume: there is no {path} (a training that has finished removes it);"
            " leave out --resume to start one"
        )
    try:
        if damaged := zipfile.ZipFile(path).testzip():  # checksums, which torch.load ignores
            raise ValueError(f"{damaged} has another checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state.pop("format") != CHECKPOINT_FORMAT:
            raise ValueError("made by another version of this program")
    except Exception as error:  # torch.load raises whatever the damage leads to
        raise UserError(
            f"{path} is damaged or not a checkpoint of this program"
            f" ({str(error).splitlines()[0] if str(error) else type(error).__name__});"
            " start over with --restart"
        ) from error
    return state
