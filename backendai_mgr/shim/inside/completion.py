"""Completion of code, by what is alive in the kernel.

Loaded by `host` at the first request (see there for what holds of all modules in this folder).  As the
standard library's rlcompleter does, a match is a whole replacement of the dotted word before the cursor, with
"(" at its end if it can be called; but without that module's imports, `eval`, and calls of properties.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List

LIMIT = 200
SECONDS = 1.0
LONGEST = 200  # characters of a match
KEYWORDS = """False None True and as assert async await break class continue def del elif else except
finally for from global if import in is lambda nonlocal not or pass raise return try while with yield"""
SUFFIXES = ("", "py", "so")  # of what can be imported; more than one suffix counts by its last
MODULE_WORDS = ("import", "from")


class Completer:
    """`names` are the names of user code, `modules` is sys.modules."""

    def __init__(
        self,
        names: "Dict[str, Any]",
        builtin_names: "Dict[str, Any]",
        modules: "Dict[str, Any]",
        listdir: "Callable[[str], List[str]]",
        clock: "Callable[[], float]",
    ) -> None:
        self._names = names
        self._builtins = builtin_names
        self._modules = modules
        self._listdir = listdir
        self._clock = clock

    def matches(self, code: str, cursor: int) -> "List[str]":
        before = code[: max(cursor, 0)]
        line = before[before.rfind("\n") + 1 :]
        start = len(line)
        while start and (line[start - 1].isalnum() or line[start - 1] in "._"):
            start -= 1
        word = line[start:]
        if in_text(line[:start]):
            return []
        deadline = self._clock() + SECONDS
        found = set()
        for match in self._candidates(line[:start].replace(",", " ").split(), word):
            if type(match) is str and match.startswith(word) and len(match) <= LONGEST:
                found.add(match)
            if len(found) >= LIMIT or self._clock() > deadline:
                break
        return sorted(found)

    def _candidates(self, words: "List[str]", word: str) -> "Iterator[str]":
        if words and words[0] == "from" and "import" in words[2:]:
            return self._attributes(self._modules.get(words[1]), "", word)
        if words and words[0] in MODULE_WORDS and words[-1] != "as":
            return self._module_names(word)
        if "." in word:
            return self._of_object(word)
        return self._global_names(word)

    def _global_names(self, word: str) -> "Iterator[str]":
        for name in list(self._names):
            if type(name) is str and name.startswith(word) and (word or name[:1] != "_"):
                yield name + _ending(self._names.get(name))
        if not word:
            return
        for name in KEYWORDS.split():
            yield name
        for name in list(self._builtins):
            if type(name) is str and name.startswith(word):
                yield name + _ending(self._builtins[name])

    def _of_object(self, word: str) -> "Iterator[str]":
        first, *path = word.split(".")
        last = path.pop()
        if first in self._names:
            value = self._names[first]
        elif first in self._builtins:
            value = self._builtins[first]
        else:
            return iter(())
        for name in path:
            value = getattr(value, name)
        return self._attributes(value, word[: len(word) - len(last)], last)

    def _attributes(self, value: object, prefix: str, word: str) -> "Iterator[str]":
        if value is None and not prefix:
            return
        for name in sorted(name for name in dir(value) if type(name) is str and name.startswith(word)):
            if name[:1] == "_" and word[:1] != "_":
                continue
            if isinstance(getattr(type(value), name, None), property):
                yield prefix + name  # to look at it would run it
                continue
            try:
                yield prefix + name + _ending(getattr(value, name))
            except Exception:  # it is listed all the same
                yield prefix + name

    def _module_names(self, word: str) -> "Iterator[str]":
        level = word.count(".")
        parent = word.rpartition(".")[0]
        for name in list(self._modules):
            if type(name) is str and name.count(".") == level and name.startswith(word):
                yield name
        if parent:
            for name in self._attributes(self._modules.get(parent), parent + ".", word[len(parent) + 1 :]):
                yield name.rstrip("(")
        else:
            for name in self._importable():
                yield name

    def _importable(self) -> "List[str]":
        """Return the names of modules in the folders of sys.path, and of those built in."""
        names = list(sys.builtin_module_names)
        for folder in list(sys.path):
            try:
                entries = self._listdir(folder or ".")
            except (OSError, TypeError, ValueError):
                continue
            parts = [entry.partition(".") for entry in entries]
            names.extend([name for name, _, suffix in parts if suffix.rpartition(".")[2] in SUFFIXES])
        return [name for name in names if name.isidentifier()]


def _ending(value: object) -> str:
    return "(" if callable(value) else ""


def in_text(line: str) -> bool:
    """Whether a line ends within a string or a comment, as far as the line alone can tell."""
    quote = ""
    index = 0
    while index < len(line):
        letter = line[index]
        if quote:
            if letter == "\\":
                index += 1
            elif letter == quote:
                quote = ""
        elif letter == "#":
            return True
        elif letter in "'\"":
            quote = letter
        index += 1
    return bool(quote)
