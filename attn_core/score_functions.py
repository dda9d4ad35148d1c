"""A score given as a short function of one query and one key.

`score_function` makes a class of it, a `Score` like all others: over dense supports and windows the
function runs as it is written; over edges it is compiled with its derivatives
(`attn_core.backends.generated`). An op knows a score by name, since it takes plain tensors:
`name_of` gives it one, `known` finds it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import types
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, overload

import torch
from torch import Tensor

from attn_core.compat import fields_of, replaced
from attn_core.registry import register
from attn_core.scores import Prepared, Score, _needs_query

_GIVEN = "query", "key", "pair", "head", "query_position", "key_position"
_Shapes = Callable[[int, int], dict[str, tuple[int, ...]]]


class ScoreFunction(Score):
    """What `score_function` makes; a call of the class hands it its parameters."""

    compiles: ClassVar[bool] = True
    function: ClassVar[Callable[..., Tensor]]
    takes: ClassVar[frozenset[str]]
    shapes: ClassVar[_Shapes | None] = None

    @classmethod
    def parameter_shapes(
        cls, heads: int, size: int, max_length: int | None
    ) -> dict[str, tuple[int, ...]]:
        if cls.shapes is not None:
            return cls.shapes(heads, size)
        names = [f.name for f in dataclasses.fields(cls)]
        needed = [name for name in names if name != "position"]
        if needed:
            raise ValueError(
                f"score {cls.__name__} is asked for by name, but the shapes of "
                f"{', '.join(needed)} are not known: give score_function(shapes=...), or pass an "
                "instance"
            )
        return {}

    def to(self, dtype: torch.dtype) -> Any:
        """The same with its parameters in `dtype`, but for those that are no real numbers."""
        given = {n: x for n, x in fields_of(self).items() if _is_real(x) and x.dtype != dtype}
        return replaced(self, {name: x.to(dtype) for name, x in given.items()}) if given else self

    def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
        return self.of_pairs(query, key, None)

    def pair_width(self, key: Tensor, pair_key: Tensor) -> int:
        return pair_key.shape[-1] if "pair" in self.takes else key.shape[-1]

    def of_pairs(self, query: Tensor | None, key: Tensor, pair_key: Tensor | None) -> Tensor:
        query, takes = _needs_query(self, query), self.takes
        given = {name: value for name, value in fields_of(self).items() if name != "position"}
        if "pair" in takes:
            given["pair"] = pair_key
        elif pair_key is not None:
            key = key + pair_key
        if "head" in takes:
            given["head"] = torch.arange(key.shape[-2], device=key.device)
        if _positioned(takes):
            width = self.position  # type: ignore[attr-defined]
            if not isinstance(width, int):  # outside of `attend`, which prepares
                raise ValueError(
                    f"score {type(self).__name__} has positions, which attend joins to the query "
                    "and the key: call attend, weights or logits"
                )
            for name, x in (("query", query), ("key", key)):
                if f"{name}_position" in takes:
                    given[f"{name}_position"] = x[..., x.shape[-1] - width :]
            query, key = (x[..., : x.shape[-1] - width] for x in (query, key))
        return type(self).function(query, key, **given)

    def prepare(self, query: Tensor | None, key: Tensor, pair_key: Tensor | None) -> Prepared:
        query = _needs_query(self, query)
        if "pair" in self.takes and pair_key is None:
            raise ValueError(
                f"score {type(self).__name__} takes pair; got pair_key=None: pass attend the "
                "features of each pair as pair_key"
            )
        if not _positioned(self.takes) or isinstance(position := self.position, int):  # type: ignore[attr-defined]
            return Prepared(self, query, key, pair_key)
        if position is None:
            raise ValueError(
                f"score {type(self).__name__} takes positions; give it position=, [N, P] for all "
                "nodes, or a pair (of queries, of keys)"
            )
        of_query, of_key = (position, position) if isinstance(position, Tensor) else position
        query, key = _join("query", query, of_query), _join("key", key, of_key)
        width = of_key.shape[-1]
        if pair_key is not None and "pair" not in self.takes:
            pair_key = torch.nn.functional.pad(pair_key, (0, width))
        return Prepared(replaced(self, {"position": width}), query, key, pair_key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(fields_of(self))})"


def _is_real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _positioned(takes: frozenset[str]) -> bool:
    return "query_position" in takes or "key_position" in takes


def _join(name: str, token: Tensor, position: Tensor) -> Tensor:
    """A token with its position as further channels of each head."""
    if position.dim() < 2 or position.shape[-2] != token.shape[-3]:
        raise ValueError(
            f"position of {name} has shape {list(position.shape)}; expected [..., N, P] with "
            f"N = {token.shape[-3]}, one row for each"
        )
    batch = torch.broadcast_shapes(token.shape[:-3], position.shape[:-2])
    rows = *batch, *token.shape[-3:-1]
    position = position.to(token.dtype).unsqueeze(-2).expand(*rows, position.shape[-1])
    return torch.cat([token.expand(*rows, token.shape[-1]), position], -1)


@overload
def score_function(function: Callable[..., Tensor]) -> type[Any]: ...
@overload
def score_function(
    *, name: str | None = None, shapes: _Shapes | None = None
) -> Callable[[Callable[..., Tensor]], type[Any]]: ...
def score_function(
    function: Callable[..., Tensor] | None = None,
    *,
    name: str | None = None,
    shapes: _Shapes | None = None,
) -> Any:
    """Make a score of a function of one query and one key; over edges it is compiled.

    The function is written for tensors that broadcast against each other and returns one logit per
    head. It is handed what it names:

    - `query`, `key`: `[..., H, D]`, always first;
    - `pair`: `[..., H, P]`, what `attend` was given as `pair_key`, of any width P (a function that
      does not name it gets a `pair_key` added to its key, as every score does);
    - `head`: `[H]`, the number of each head, from 0;
    - `query_position`, `key_position`: `[..., H, P]`, rows of the score's `position`;
    - whatever else it names are parameters, which the class takes: tensors that broadcast,
      such as `[H]` or `[H, D]`, of which gradients come out, or Python numbers, which are constants
      of the compiled code (each other value is compiled anew).

    Python numbers that the function finds around it, by name, are constants too; a tensor that it
    takes from around it, and not as an argument, is not compiled, and no more is a parameter of
    integers or truth values.

    Args:
        function: the function; or use it as a decorator.
        name: by which every layer takes the score. Default: none.
        shapes: of heads H and channels D, the shapes of the parameters that a layer makes for a
            score by name. Default: a score by name has none.

    Returns:
        The class: a `Score` whose arguments are the function's parameters, and `position`, `[N, P]`
        or a pair of these (of queries, of keys), if it names positions.

    Raises:
        TypeError: a function that does not begin with query and key, or a parameter by the name of
            something that every score has.
        ValueError: a name that is taken.

    >>> from attn_core import Edges, attend
    >>> @score_function
    ... def distance(query, key, width):
    ...     "`-width ‖q - k‖²`, with a width per head."
    ...     return -width * (query - key).square().sum(-1)
    >>> x = torch.eye(3)[:, None]  # three nodes, one head, three channels
    >>> ring = Edges(torch.tensor([[0, 1, 2], [1, 2, 0]]))
    >>> attend(x, x, x, score=distance(torch.ones(1)), support=ring).output[1]
    tensor([[1., 0., 0.]])
    """
    if function is None:
        return lambda function: _class_of(function, name, shapes)
    return _class_of(function, name, shapes)


def _class_of(
    function: Callable[..., Tensor], name: str | None, shapes: _Shapes | None
) -> type[ScoreFunction]:
    arguments = inspect.signature(function).parameters
    names = list(arguments)
    kinds = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    if names[:2] != ["query", "key"] or kinds & {x.kind for x in arguments.values()}:
        raise TypeError(
            f"function {function.__name__} takes ({', '.join(names)}); expected (query, key, ...), "
            "then whatever else it names"
        )
    takes = frozenset(names) & frozenset(_GIVEN)
    fields: list[Any] = []
    for key, argument in arguments.items():
        if key in _GIVEN:
            continue
        if key == "position":
            raise TypeError(
                f"function {function.__name__} takes position; name query_position or key_position"
            )
        if hasattr(ScoreFunction, key) or key in ScoreFunction.__annotations__:
            raise TypeError(
                f"function {function.__name__} takes {key}, which every score has already as "
                "something else: give the parameter another name"
            )
        default = argument.default
        required = default is inspect.Parameter.empty
        fields.append((key, Any) if required else (key, Any, dataclasses.field(default=default)))
    if _positioned(takes):
        fields.append(("position", Any, dataclasses.field(default=None, kw_only=True)))
    body = {
        "function": staticmethod(function),
        "takes": takes,
        "shapes": None if shapes is None else staticmethod(shapes),
        "__doc__": function.__doc__,
        "__module__": function.__module__,
        "__qualname__": function.__qualname__,
    }
    made: Any = types.new_class(function.__name__, (ScoreFunction,), {}, lambda of: of.update(body))
    made.__annotations__ = {field[0]: field[1] for field in fields}
    for field in fields:
        if len(field) == 3:
            setattr(made, field[0], field[2])
    made = dataclasses.dataclass(frozen=True, eq=False, repr=False)(made)
    register(Score.named, name, made)
    return made


class Known(NamedTuple):
    """What an op's name of a score stands for: all but its tensors."""

    cls: type[Score]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    constants: tuple[tuple[str, Any], ...]
    heads: int

    def score(self, tensors: Sequence[Tensor]) -> Score:
        """The score with these tensors."""
        score = object.__new__(self.cls)
        score.__dict__.update(self.constants, **dict(zip(self.names, tensors, strict=True)))
        return score

    def parts(self, flat: Tensor | None) -> list[Tensor]:
        """The tensors, of one that holds the numbers of all."""
        if flat is None:
            return []
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = flat.split(sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


FUNCTION = "function "
_CONSTANT = int, float, bool, str, type(None)
_known: dict[str, Known] = {}
_names: dict[Any, str] = {}


def name_of(score: Score, heads: int) -> tuple[str, Tensor | None] | None:
    """The name of a score by which an op finds it again, and the numbers of its tensors.

    None if something else than tensors of real numbers and plain constants is in it.
    """
    fields = fields_of(score)
    tensors = [name for name, x in fields.items() if isinstance(x, Tensor)]
    constants = tuple((name, x) for name, x in fields.items() if not isinstance(x, Tensor))
    if not all(_is_real(x) or isinstance(x, _CONSTANT) for x in fields.values()):
        return None
    shapes = tuple(tuple(int(n) for n in fields[name].shape) for name in tensors)
    flat = torch.cat([fields[name].reshape(-1) for name in tensors]) if tensors else None
    return _name(type(score), tuple(tensors), shapes, constants, heads), flat


@torch.compiler.assume_constant_result
def _name(
    cls: type[Score],
    names: tuple[str, ...],
    shapes: tuple[tuple[int, ...], ...],
    constants: tuple[tuple[str, Any], ...],
    heads: int,
) -> str:
    key: Any = cls, names, shapes, tuple((name, type(x), x) for name, x in constants), heads
    if issubclass(cls, ScoreFunction):
        key = *key, _numbers_around(cls.function)
    name = _names.get(key)
    if name is None:
        name = _names.setdefault(
            key, f"{FUNCTION}{cls.__module__}.{cls.__qualname__} {len(_names)}"
        )
        _known[name] = Known(cls, names, shapes, constants, heads)
    return name


def _numbers_around(function: Any) -> tuple[tuple[str, str], ...]:
    """The plain constants that a function, and those of its module that it calls, find around them.

    They are constants of what is compiled, and may be others at the next call.
    """
    found, seen, todo = [], set(), [function]
    while todo:
        one = todo.pop()
        if one in seen or not isinstance(one, types.FunctionType):
            continue
        seen.add(one)
        codes = [one.__code__]
        for code in codes:
            codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
        around: dict[str, Any] = {}
        for name in {name for code in codes for name in code.co_names}:
            if name in one.__globals__:
                around[name] = one.__globals__[name]
        for name, cell in zip(one.__code__.co_freevars, one.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # a cell that is empty as yet
                around[name] = cell.cell_contents
        for name, value in sorted(around.items()):
            if isinstance(value, _CONSTANT):
                found.append((name, repr(value)))
            elif getattr(value, "__module__", None) == one.__module__:
                todo.append(value)
    return tuple(found)


def known(name: str) -> Known:
    """The score that an op knows by this name."""
    return _known[name]


__all__ = ["FUNCTION", "Known", "ScoreFunction", "known", "name_of", "score_function"]
