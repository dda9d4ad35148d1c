"""Scores and normalisers by name."""

from __future__ import annotations

from typing import Any


def register(named: dict[str, Any], name: str | None, cls: type) -> None:
    """Give a class its name, if it has one.

    Raises:
        ValueError: another class has the name.
    """
    if name is None:
        return
    taken = named.get(name)
    # A dataclass with slots is made twice, under one name
    if taken is not None and taken.__qualname__ != cls.__qualname__:
        raise ValueError(f"name is {name!r}, which is that of {taken.__qualname__}: choose another")
    named[name] = cls


def check_part(kind: str, given: object, base: Any) -> None:
    """Raise unless this is an instance of a Score or Normalizer, or the name of one.

    Raises:
        ValueError: no class has the name.
        TypeError: what is given is neither.
    """
    named = base.named
    if isinstance(given, base) or (isinstance(given, str) and given in named):
        return
    expected = f"known ones are {', '.join(named)}, or pass an attn_core.{base.__name__}"
    if isinstance(given, type) and issubclass(given, base):
        raise TypeError(f"{kind} is the class {given.__name__}; pass an instance of it")
    error = ValueError if isinstance(given, str) else TypeError
    raise error(f"{kind} is {given!r}; {expected}")


def look_up(kind: str, given: Any, base: Any) -> Any:
    """The class of a name; what `check_part` raises for anything else."""
    check_part(kind, given, base)
    return base.named[given]
