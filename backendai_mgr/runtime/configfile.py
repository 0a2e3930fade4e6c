"""Configuration files as operators use them: a file, and the environment over it, each value with its source.

Values come from the command line, else the environment, else the file, else they are defaults. Every key of
a file can be set by a variable: ``BACKENDAI_MGR__DB__NAME`` is ``name`` in ``[db]``, with two underscores
between names and one for a dash. What it holds is read as TOML; what is no TOML, or is not text where text is
wanted, is taken as text. Keys of other programs' files that are known to have no meaning here are told of,
and left out.
"""

import io
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs

from .config import (
    ConfigError,
    KeyPath,
    Problem,
    fields_of,
    find_config,
    nearest_of,
    parse_toml,
    read_table,
    read_text,
    table_class,
    without_none,
)

PREFIX = "BACKENDAI_MGR__"

T = TypeVar("T")


@attrs.frozen
class Setting:
    """A value that is not from the file; ``source`` is the variable or the option."""

    path: KeyPath
    value: Any
    source: str


@attrs.frozen
class Foreign:
    """A key of another program's file. ``says`` goes on after its name: why it is left out here."""

    says: str
    #: What is wrong with a value after all, None when nothing is.
    refuses: Callable[[Any], str | None] = lambda _: None


def _nothing(_: Any) -> Iterable[Problem]:
    return ()


def _no_settings(_: Mapping[str, str], __: Mapping[str, Any]) -> Iterable[Setting]:
    return ()


@attrs.frozen(kw_only=True)
class Schema(Generic[T]):
    """What a configuration file may hold: the keys of *cls*, those of plain types in the table *main*."""

    file_name: str
    main: str
    cls: type[T]
    #: Tables of our other file, whose variables are none of this one's business.
    elsewhere: frozenset[str] = frozenset()
    foreign: Mapping[KeyPath, Foreign] = attrs.Factory(dict)
    #: Keys with another name here.
    moved: Mapping[KeyPath, KeyPath] = attrs.Factory(dict)
    #: Settings of variables that are named otherwise, given the environment and the file's document.
    variables: Callable[[Mapping[str, str], Mapping[str, Any]], Iterable[Setting]] = _no_settings
    #: Variables that are known to have no meaning here.
    foreign_variables: Mapping[str, str] = attrs.Factory(dict)
    #: What in a configuration does not go together, and what may not be meant. A problem's path is the key's.
    contradictions: Callable[[T], Iterable[Problem]] = _nothing
    cautions: Callable[[T], Iterable[Problem]] = _nothing

    @property
    def keys(self) -> dict[KeyPath, "Key"]:
        """Every key of the file, in the order of the classes."""
        return dict(self._keys(self.cls, (self.main,), at_top=True))

    def _keys(self, cls: type[Any], path: KeyPath, *, at_top: bool) -> Iterator[tuple[KeyPath, "Key"]]:
        tables = []
        for name, (field, hint) in fields_of(cls).items():
            if inner := table_class(hint):
                tables.append((inner, (name,) if at_top else (*path, name)))
            else:
                yield (*path, name), Key(without_none(hint), secret=not field.repr)
        for inner, place in tables:
            yield from self._keys(inner, place, at_top=False)


@attrs.frozen
class Key:
    """A key's type without None, and whether its value is hidden."""

    type: Any
    secret: bool = attrs.field(kw_only=True)


@attrs.frozen(kw_only=True)
class Reading(Generic[T]):
    """What was found. ``config`` has defaults for keys with problems, and is None where they have none."""

    schema: Schema[T]
    path: Path | None
    text: str
    config: T | None
    #: Sentences.
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    #: Keys with problems; what follows from their values is not worth telling.
    wrong: frozenset[KeyPath]
    #: Key -> variable, option, or ``FILE:LINE``; defaults have none.
    sources: Mapping[KeyPath, str]

    def checked(self) -> T:
        """The configuration; `ConfigError` with all problems when there are some."""
        if self.problems or self.config is None:
            raise ConfigError(*self.problems)
        return self.config

    def sentence(self, problem: Problem) -> str:
        """The sentence about a key, with where its value comes from."""
        return _sentence(problem, self.sources, self.path)


def read_file(
    schema: Schema[T],
    path: Path | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    given: Sequence[Setting] = (),
) -> Reading[T]:
    """The file at *path*, or the first found in the usual places, under the environment and what was *given*
    on the command line. `ConfigError` when the file is no TOML."""
    path = path or find_config(schema.file_name, environ=environ)
    text = "" if path is None else read_text(path)
    document = {} if path is None else parse_toml(text, path)
    return read(schema, document, path=path, text=text, environ=environ, given=given)


def read(
    schema: Schema[T],
    document: Mapping[str, Any],
    *,
    path: Path | None = None,
    text: str = "",
    environ: Mapping[str, str] = {},
    given: Sequence[Setting] = (),
) -> Reading[T]:
    """The same from a parsed file."""
    settings = [*schema.variables(environ, document), *_general(schema, environ), *given]
    stray = _stray(schema, environ)
    lines = lines_of(text)
    sources = {place: f"{path}:{line}" for place, line in lines.items()} if path is not None else {}
    document, refused, warnings = _without_foreign(schema, document)
    document = _moved(schema, document, sources)
    for setting in settings:
        document = _with(document, setting.path, setting.value)
    sources |= {setting.path: setting.source for setting in settings}
    config, problems = read_table(schema.cls, document, main=schema.main)
    problems = [*refused, *problems]
    wrong = frozenset(problem.path for problem in problems)
    if config is not None:
        problems += [problem for problem in schema.contradictions(config) if problem.path not in wrong]
        warnings += [problem for problem in schema.cautions(config) if problem.path not in wrong]
    place = partial(_nearest, sources=lines)
    problems.sort(key=lambda problem: place(problem.path) or 0)
    warnings.sort(key=lambda warning: place(warning.path) or 0)
    useless = [f"`{name}`{says}." for name, says in schema.foreign_variables.items() if name in environ]
    return Reading(
        schema=schema,
        path=path,
        text=text,
        config=config,
        problems=(*stray, *(_sentence(problem, sources, path) for problem in problems)),
        warnings=(*(_sentence(warning, sources, path) for warning in warnings), *useless),
        wrong=frozenset(problem.path for problem in problems),
        sources={key: source for key in schema.keys if (source := _source(key, document, sources))},
    )


def _source(key: KeyPath, document: Mapping[str, Any], sources: Mapping[KeyPath, str]) -> str | None:
    """Where the key's value comes from; None for a default."""
    value: Any = document
    for name in key:
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return _nearest(key, sources)


def _nearest(key: KeyPath, sources: Mapping[KeyPath, T]) -> T | None:
    """The source (or line) of the key, or of what holds it."""
    for length in range(len(key), 0, -1):
        if source := sources.get(key[:length]):
            return source
    return None


def _sentence(problem: Problem, sources: Mapping[KeyPath, str], path: Path | None) -> str:
    source = _nearest(problem.path, sources)
    if path is None or (source is not None and not source.startswith(f"{path}:")):
        return problem.sentence(source)
    return f"{source or path}: {problem.sentence()}"


# ---------------------------------------------------------------- the environment


def variable_of(path: KeyPath) -> str:
    """The variable that sets a key."""
    return PREFIX + "__".join(path).replace("-", "_").upper()


def environment_value(kind: Any, text: str) -> Any:
    """What a variable's text means for a key of that type."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    if parsed.keys() != {"value"} or (_is_text(kind) and not isinstance(parsed["value"], str)):
        return text
    return parsed["value"]


def _is_text(kind: Any) -> bool:
    return kind in (str, Path)


def _general(schema: Schema[Any], environ: Mapping[str, str]) -> Iterator[Setting]:
    for path, key in schema.keys.items():
        name = variable_of(path)
        if name in environ:
            yield Setting(path, environment_value(key.type, environ[name]), name)


def _stray(schema: Schema[Any], environ: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each variable of ours that sets nothing, or cannot be read."""
    known = {variable_of(path).removeprefix(PREFIX) for path in schema.keys}
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        own = name.removeprefix(PREFIX)
        if own not in known and own.partition("__")[0].lower() not in schema.elsewhere:
            yield f"`{name}` names no key{nearest_of(own, known, prefix=PREFIX)}."
        elif not environ[name].isascii() and any(0xD800 <= ord(letter) < 0xE000 for letter in environ[name]):
            yield f"`{name}` is not UTF-8 text."


# ---------------------------------------------------------------- the document


def _without_foreign(
    schema: Schema[Any], document: Mapping[str, Any]
) -> tuple[Mapping[str, Any], list[Problem], list[Problem]]:
    """(the document without keys of other programs, what is refused of them, what is said of the others)."""
    refused, told = [], []
    for path, foreign in schema.foreign.items():
        value: Any = document
        for name in path:
            value = value.get(name, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if value is _ABSENT:
            continue
        document = _without(document, path)
        if wrong := foreign.refuses(value):
            refused.append(Problem(path, wrong))
        elif foreign.says:
            told.append(Problem(path, foreign.says))
    return document, refused, told


_ABSENT = object()


def _moved(
    schema: Schema[Any], document: Mapping[str, Any], sources: dict[KeyPath, str]
) -> Mapping[str, Any]:
    """The document with keys under their names here. *sources* learns of that."""
    for old, new in schema.moved.items():
        table = document.get(old[0])
        if not isinstance(table, Mapping) or old[1] not in table:
            continue
        value = table[old[1]]
        document = _without(document, old)
        target = document.get(new[0], {})
        if isinstance(target, Mapping) and new[1] not in target:
            document = _with(document, new, value)
            sources[new] = sources.get(old, "")
    return document


def _with(document: Mapping[str, Any], path: KeyPath, value: Any) -> Mapping[str, Any]:
    """The document with that value; what is no table stays, to be told of."""
    name, *rest = path
    if not rest:
        return {**document, name: value}
    table = document.get(name, {})
    if not isinstance(table, Mapping):
        return document
    return {**document, name: _with(table, tuple(rest), value)}


def _without(document: Mapping[str, Any], path: KeyPath) -> Mapping[str, Any]:
    name, *rest = path
    if rest:
        return {**document, name: _without(document[name], tuple(rest))}
    return {key: value for key, value in document.items() if key != name}


def statements(text: str) -> Iterator[tuple[int, str, KeyPath, dict[str, Any]]]:
    """(first line's number, text, table, parsed) of each statement of valid TOML; of a heading *parsed* is
    empty, and so it is of comments and empty lines."""
    table: KeyPath = ()
    first, held = 1, ""
    for number, line in enumerate(io.StringIO(text), 1):
        held += line
        try:
            parsed = tomllib.loads(held)
        except tomllib.TOMLDecodeError:
            continue  # the value goes on in the next line
        if held.lstrip().startswith("["):
            table, parsed = _heading(parsed), {}
        yield first, held, table, parsed
        first, held = number + 1, ""


def _heading(parsed: Any) -> KeyPath:
    path = []
    while isinstance(parsed, dict) and parsed:
        ((name, parsed),) = parsed.items()
        path.append(name)
    return tuple(path)


def lines_of(text: str) -> dict[KeyPath, int]:
    """The line of each table and key of valid TOML."""
    found: dict[KeyPath, int] = {}
    for line, _, table, parsed in statements(text):
        found.setdefault(table, line)
        found |= dict.fromkeys(_leaves(parsed, table), line)
    found.pop((), None)
    return found


def _leaves(value: Mapping[str, Any], path: KeyPath) -> Iterator[KeyPath]:
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, Mapping):
            yield from _leaves(inner, (*path, key))
