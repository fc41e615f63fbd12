"""Rules that rewrite the values of labels by regular expressions (O-25), with bounds that Go's engine does not need.

Dapr's rules are written for RE2, whose time is linear in the text. Python's engine goes back and tries again, and what
it reads here comes from callers. So expressions that could make it try exponentially often are refused, and values are
cut at ``MAX_VALUE`` characters before they are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from tieline.telemetry.families import Rewrite, Rule, metric_key

MAX_VALUE: Final = 128
"""Characters of a value that rules see; what is beyond is cut off."""
MAX_PATTERN: Final = 1024
MAX_WANDERING: Final = 2
"""Repeats in one expression whose end is open, such as ``.*`` before more: the time grows by a power with each.

The worst that these bounds let pass takes some 50 ms, once for each new value."""

_WORDS: Final = {
    "missing ), unterminated subpattern": "missing closing )",
    "unbalanced parenthesis": "unexpected )",
    "unterminated character set": "missing closing ]",
    "nothing to repeat": "missing argument to repetition operator",
    "multiple repeat": "invalid nested repetition operator",
}
"""What the same mistakes are called in Go."""
_ESCAPES: Final = frozenset("dDwWsSbBAaftnrvx")
"""Letters behind a backslash that mean the same to both engines; ``z`` is written ``Z`` in Python."""
_COUNT: Final = re.compile(r"\{(\d+)(?:(,)(\d*))?\}")
_REFERENCE: Final = re.compile(r"\$(?:(\$)|\{(\w+)\}|(\w+))", re.ASCII)

LabelRules = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
"""For each label: its name, and pairs of replacement and expression."""


class BadRule(Exception):
    """An expression cannot be used."""


def compile_rules(rules: Iterable[tuple[str, LabelRules]]) -> tuple[list[Rule], list[str]]:
    """Return the rules that can be used, and for each other one why not."""
    made: list[Rule] = []
    problems: list[str] = []
    for name, labels in rules:
        metric = metric_key(name)
        for label, pairs in labels:
            for replacement, pattern in pairs:
                try:
                    made.append(Rule(metric, label, rewriter(pattern, replacement)))
                except BadRule as problem:
                    problems.append(f"failed to compile regex for rule {metric}{label}/{replacement}: {problem}")
    return made, problems


def rewriter(pattern: str, replacement: str) -> Rewrite:
    """Return the function that puts ``replacement`` in place of every match.

    In the replacement ``$1``, ``${name}`` stand for groups, ``$$`` for a dollar, as in Go.

    Raises:
        BadRule: The expression is none, differs between the engines, or could take too long.
    """
    try:
        find = re.compile(_translated(pattern), re.ASCII)
    except re.error as error:
        raise _bad(_WORDS.get(error.msg, error.msg), pattern) from error
    except (OverflowError, RecursionError) as error:
        raise _bad("expression too large", pattern) from error
    template = _template(replacement, find)

    def rewrite(value: str) -> str:
        return find.sub(template, value[:MAX_VALUE])

    return rewrite


def _bad(problem: str, pattern: str) -> BadRule:
    return BadRule(f"error parsing regexp: {problem}: `{pattern}`")


def _template(replacement: str, find: re.Pattern[str]) -> Callable[[re.Match[str]], str]:
    """Return what a match becomes; a group that is not there is nothing."""
    pieces: list[str | int] = []
    at = 0
    for reference in _REFERENCE.finditer(replacement):
        pieces.append(replacement[at : reference.start()])
        at = reference.end()
        dollar, *names = reference.groups()
        name = dollar or names[0] or names[1]
        if dollar:
            pieces.append("$")
        elif name.isdigit():
            if int(name) <= find.groups:
                pieces.append(int(name))
        elif name in find.groupindex:
            pieces.append(find.groupindex[name])
    pieces.append(replacement[at:])

    def expand(match: re.Match[str]) -> str:
        return "".join(piece if isinstance(piece, str) else match[piece] or "" for piece in pieces)

    return expand


class _Group:
    """An open parenthesis, and what was met in it that makes repeating it dangerous."""

    __slots__ = ("branches", "repeats")

    def __init__(self) -> None:
        self.repeats = False
        self.branches = False


def _translated(pattern: str) -> str:
    """Return an expression as Python writes it, after a walk over it that refuses what is not safe."""
    if len(pattern) > MAX_PATTERN:
        raise _bad(f"longer than {MAX_PATTERN} characters", pattern[:40] + "…")
    walk = _Walk(pattern)
    return walk.translate()


class _Walk:
    """One pass over an expression, an atom at a time."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._out: list[str] = []
        self._groups = [_Group()]
        self._wandering = 0

    def translate(self) -> str:
        pattern = self._pattern
        while self._at < len(pattern):
            begin = self._at
            closed = self._atom()
            atom = pattern[begin : self._at]
            self._repeat(atom, closed)
        return "".join(self._out)

    def _refuse(self, problem: str) -> BadRule:
        return _bad(problem, self._pattern)

    def _atom(self) -> _Group | None:
        """Copy one atom; return the group that it closes."""
        pattern = self._pattern
        char = pattern[self._at]
        self._at += 1
        match char:
            case "\\":
                self._out.append(self._escape(in_set=False))
            case "[":
                self._out.append(self._set())
            case "(":
                self._out.append(self._opening())
                self._groups.append(_Group())
            case ")":
                self._out.append(char)
                if len(self._groups) == 1:
                    raise self._refuse("unexpected )")
                closed = self._groups.pop()
                self._groups[-1].repeats |= closed.repeats
                self._groups[-1].branches |= closed.branches
                return closed
            case "|":
                self._groups[-1].branches = True
                self._out.append(char)
            case "$":
                self._out.append(r"\Z")  # Python's would also match before a line feed at the end
            case _:
                self._out.append(char)
        return None

    def _opening(self) -> str:
        pattern = self._pattern
        if not pattern.startswith("?", self._at):
            return "("
        for written, meant in (("?:", "(?:"), ("?P<", "(?P<"), ("?<", "(?P<"), ("?i)", None), ("?s)", None)):
            if pattern.startswith(written, self._at):
                rest = pattern[self._at + len(written) :]
                if meant is None or (written == "?<" and rest[:1] in ("=", "!")):
                    break
                self._at += len(written)
                return meant
        raise self._refuse("this form of group is not supported")

    def _escape(self, *, in_set: bool) -> str:
        if self._at == len(self._pattern):
            raise self._refuse("trailing backslash at end of expression")
        char = self._pattern[self._at]
        self._at += 1
        if char == "z" and not in_set:
            return r"\Z"
        if char.isalnum() and char not in _ESCAPES:
            raise self._refuse(f"invalid escape sequence \\{char}")
        return "\\" + char

    def _set(self) -> str:
        """Copy a set of characters, from behind its bracket."""
        pattern = self._pattern
        out = ["["]
        if pattern.startswith("^", self._at):
            out.append("^")
            self._at += 1
        first = True
        while self._at < len(pattern):
            char = pattern[self._at]
            self._at += 1
            if char == "]" and not first:
                return "".join(out) + "]"
            first = False
            if char == "\\":
                out.append(self._escape(in_set=True))
            elif char == "[":
                if pattern.startswith(":", self._at):
                    raise self._refuse("named classes are not supported")
                out.append("\\[")
            else:
                # Doubled, these mean something to come in Python.
                out.append("\\" + char if char in "&~|" else char)
        raise self._refuse("missing closing ]")

    def _repeat(self, atom: str, closed: _Group | None) -> None:
        """Copy the repeat behind an atom, if there is one."""
        pattern = self._pattern
        count = _COUNT.match(pattern, self._at)
        sign = pattern[self._at : self._at + 1]
        if count is None and (sign == "" or sign not in "*+?"):
            return
        if atom in ("(", "|", "^", "$") or atom.startswith("(?"):
            raise self._refuse("missing argument to repetition operator")
        written = count[0] if count else sign
        self._at += len(written)
        self._out.append(written)
        if pattern.startswith("?", self._at):
            self._out.append("?")
            self._at += 1
        if pattern[self._at : self._at + 1] in ("*", "+", "?"):
            raise self._refuse("invalid nested repetition operator")
        self._weigh(written, count, atom, closed)

    def _weigh(self, written: str, count: re.Match[str] | None, atom: str, closed: _Group | None) -> None:
        """Refuse a repeat that could take too long together with what is in it and what came before."""
        group = self._groups[-1]
        if count is not None and max(int(count[1]), int(count[3] or 0)) > 1000:
            raise self._refuse("invalid repeat count")
        fixed = count is not None and count[2] is None
        if closed is not None and (closed.repeats or closed.branches) and written != "?":
            raise self._refuse("a repeat of what has a repeat or alternatives in it could take too long")
        if fixed:
            return
        group.repeats = True
        if not self._ends_itself(atom):
            self._wandering += 1
            if self._wandering > MAX_WANDERING:
                raise self._refuse(
                    f"more than {MAX_WANDERING} open repeats such as .* could take too long; [^/]* is none"
                )

    def _ends_itself(self, atom: str) -> bool:
        """Whether what follows a repeat cannot be taken for one more of it, so that there is nothing to try again."""
        rest = self._pattern[self._at :]
        if rest in ("", "$", "\\z"):
            return True
        following = rest[:2] if rest.startswith("\\") else rest[:1]
        if following[-1].isalnum() and following.startswith("\\"):
            return False
        if following in ("(", ")", "[", ".", "|", "^", "$") or rest[len(following) :][:1] in ("*", "?", "{"):
            return False
        if atom.startswith("(") or atom.endswith(")"):
            return False
        try:
            return re.fullmatch(_Walk(atom).translate(), following[-1], re.ASCII) is None
        except re.error:
            return False
