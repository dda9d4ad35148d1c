"""Files that are either whole or absent: models, training checkpoints, anything atomic."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from examples.shared.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where nothing can remove a file that is open: its own kind of lock
    fcntl = None  # type: ignore[assignment]

CHECKPOINT_FORMAT = 1
# What `write_atomically` writes to: a name that nobody else gives to a file
_TEMPORARY = re.compile(r"\..+\.part-\d+(\.\w+)?|\.checkpoint-\d+\.pt")


def _lock(file: IO[bytes]) -> bool:
    """Locks a file until it is closed, by whatever end of the process; False if another did."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # or a file system that knows no locks
        return False
    return fcntl is not None


def is_first_process() -> bool:
    """Whether this is the process that writes, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, then puts it in place in one step.

    Args:
        path: the file to write. Whatever happens, it holds the old content or the new. Of several
            processes the first one writes.
        write: called with the path of the temporary file, which has the ending of `path`.

    Raises:
        UserError: the file cannot be written (full disk, no permission).
    """
    if not is_first_process():
        return
    temporary = path.with_name(f".{path.stem}.part-{os.getpid()}{path.suffix}")
    try:
        with open(temporary, "ab") as guard:
            _lock(guard)  # which tells `sweep` that its writer lives
            write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # else a power cut could leave an empty file under the new name
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save: RuntimeError when full
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(
            f"cannot write {path}: {reason}; free the way or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # where nothing can be removed, the first error counts
            temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes the temporary files of processes that were killed while they wrote here."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            with contextlib.suppress(OSError), open(path, "rb+") as file:
                if _lock(file):  # nobody is writing it
                    path.unlink()


def remove(*paths: Path) -> None:
    """Removes files that may be missing.

    Raises:
        UserError: one of them cannot be removed.
    """
    for path in paths if is_first_process() else ():
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot remove {path}: {error.strerror}; free the way or choose another folder"
            ) from error


def write_text(path: Path, text: str) -> None:
    """Writes a text, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` as indented json, atomically."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Writes rows as comma-separated values, atomically."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)

    write_atomically(path, write)


def read_json(path: Path) -> dict[str, Any]:
    """Reads an object that was written by `write_json`.

    Raises:
        UserError: the file cannot be read or is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; choose another folder") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); start over with --restart") from error
    return content


def prepare_folder(folder: Path) -> None:
    """Creates `folder`, sweeps it, and proves that files can be written there, before any work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not is_first_process():
            return  # the first one may be writing
        sweep(folder)
    except OSError as error:
        raise UserError(
            f"cannot create the folder {folder}: {error.strerror}; choose another folder"
        ) from error
    probe = folder / "probe.tmp"
    write_atomically(probe, lambda temporary: temporary.write_bytes(bytes(1 << 20)))
    remove(probe)


def save_model(folder: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Writes model.safetensors and config.json; the second names the first by its sha256."""
    from safetensors.torch import save  # here, for benchmarks write files too and do without it

    content = save(weights)  # safetensors' own save_file makes files that only their owner can read
    write_atomically(folder / "model.safetensors", lambda temporary: temporary.write_bytes(content))
    digest = hashlib.sha256(content).hexdigest()
    write_json(folder / "config.json", {**config, "weights_sha256": digest})


@contextlib.contextmanager
def saved_model(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """The config and the weights that `save_model` wrote; what is inside builds a model of them.

    Raises:
        UserError: a file is missing or damaged, or weights and config do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from datasets import VocabularyError

    paths = folder / "config.json", folder / "model.safetensors"
    try:
        config = json.loads(paths[0].read_text(encoding="utf-8"))
        content = paths[1].read_bytes()
        if hashlib.sha256(content).hexdigest() != config["weights_sha256"]:
            raise UserError(
                f"{paths[1]} is damaged or belongs to another model: its sha256 is not the one in"
                " config.json; train again, or copy all files together"
            )
        yield config, load(content)
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename}: {error.strerror}; --model must name the --out folder"
            " of a training"
        ) from error
    except VocabularyError:  # says what to do
        raise
    except (ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"{paths[0]} is damaged or not a model's ({error!r}); train again"
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"{paths[1]} does not fit the architecture in config.json: {one_line(error)}"
        ) from error


def one_line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a training's state (tensors and plain python values only), atomically."""
    content = {"format": CHECKPOINT_FORMAT, **state}
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def load_checkpoint(path: Path, kind: Any = dict) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote, without unpickling anything but tensors and values.

    Args:
        path: the file.
        kind: what the state must look like, see `check_kind`.

    Raises:
        UserError: the file is missing, damaged or no such checkpoint.
    """
    if not path.is_file():
        raise UserError(
            f"nothing to resume: there is no {path} (a training that has finished removes it);"
            " leave out --resume to start one"
        )
    with damage_told(path, "or not a checkpoint of this program"):
        if damaged := zipfile.ZipFile(path).testzip():  # checksums, which torch.load ignores
            raise ValueError(f"{damaged} has another checksum")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state.pop("format") != CHECKPOINT_FORMAT:
            raise ValueError("made by another version of this program")
        check_kind(state, kind)
    return state


@contextlib.contextmanager
def damage_told(path: Path | str, what: str) -> Iterator[None]:
    """Turns whatever the damage of a saved state leads to into one line."""
    try:
        yield
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, RuntimeError):  # of load_state_dict: the interesting part comes later
            reason = one_line(error)
        raise UserError(
            f"{path} is damaged {what} ({reason}); start over with --restart"
        ) from error


def check_kind(value: Any, kind: Any, where: str = "it") -> None:
    """Raises ValueError unless a value is of a kind.

    Args:
        value: anything that came out of a file.
        kind: a type (a whole number is a float too); a tuple of kinds, of which one must fit; a
            list with the kind of all elements; a dict with the kind of each value, or with `str`
            for its only key, the kind of all values.
        where: names the value in the error.

    >>> check_kind({"loss": [0.5, 1]}, {"loss": [float]})
    >>> check_kind({"loss": [0.5, "1"]}, {str: [float]})
    Traceback (most recent call last):
    ValueError: loss has an element '1', which is no float
    """
    if isinstance(kind, tuple):
        for one in kind:
            with contextlib.suppress(ValueError):
                return check_kind(value, one, where)
        raise ValueError(f"{where} is {str(value)[:40]!r}")
    if isinstance(kind, list):
        check_kind(value, list, where)
        for element in value:
            check_kind(element, kind[0], f"{where} has an element")
    elif isinstance(kind, dict):
        check_kind(value, dict, where)
        if str in kind:
            kind = {str(key): kind[str] for key in value}
        if kind.keys() != value.keys():
            odd = ", ".join(map(str, kind.keys() ^ value.keys()))
            raise ValueError(f"{where} lacks or has too much: {odd}")
        for key, one in kind.items():
            check_kind(value[key], one, str(key))
    else:
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind in (int, float)):
            verb = "" if where.endswith("element") else " is"
            raise ValueError(f"{where}{verb} {str(value)[:40]!r}, which is no {kind.__name__}")
    return None


def check_settings(path: Path, before: Any, now: Mapping[str, Any], **hidden: str) -> None:
    """Refuses what was saved in `path` by a training with other settings.

    Args:
        path: for the error.
        before: its settings.
        now: those of the training that is to go on.
        hidden: settings that would say nothing to a reader, such as hashes, and what to say.

    Raises:
        UserError: they differ.
    """
    before = before if isinstance(before, dict) else {}
    names = [name for name, value in now.items() if before.get(name) != value]
    changed = [
        f"--{name.replace('_', '-')} was {before.get(name)}, is now {now[name]}"
        for name in names
        if name not in hidden
    ] or list(dict.fromkeys(hidden[name] for name in names))
    if changed:
        raise UserError(
            f"{path} was made with other settings: {'; '.join(changed)}. Use those, choose another"
            " --out, or start over with --restart"
        )
