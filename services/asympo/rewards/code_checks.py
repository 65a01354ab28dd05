"""Whether Python that tests a program can fail by what the program does: whether it asserts anything."""

import ast
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

_FAILS = re.compile(r"assert|raises|fail|^(_?exit|quit|eq_|ok_)$", re.IGNORECASE)
"""What libraries call that which fails: assert_allclose, assertEqual, raises, exit."""
_ALWAYS_THERE = ("exit", "quit")
_CATCH_ALL = ("AssertionError", "Exception", "BaseException")
_LEAVES = (ast.Return, ast.Break, ast.Continue)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_SCOPES = (*_FUNCTIONS, ast.Lambda, ast.ClassDef)
_COMPARED = {
    **{ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Is: operator.is_, ast.IsNot: operator.is_not},
    **{ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge},
}


class Checks:
    """What checks in the tests of one row, which share a namespace."""

    def __init__(self, statements: Iterable[ast.stmt]) -> None:
        self._definitions: dict[str, list[ast.AST]] = {}
        """What runs when a function or class of this name is called."""
        self._classes: set[str] = set()
        self._lazy: set[str] = set()
        """Names of nothing but functions that run nothing when they are called: generators and coroutines."""
        self._imported: dict[str, str] = {}
        """What is imported, and its name where it comes from."""
        self._assigned: set[str] = set()
        eager = {name for node in _all_nodes(statements) if (name := self._note(node))}
        self._lazy -= eager | self._assigned | self._imported.keys()
        self._failing: set[str] = set()
        """Functions that check where they are called; one that always raises may be meant for a signal."""
        self._checking: set[str] = set()
        """Definitions that check, if only by calling others that do."""
        while self._find(self._failing, self._fails) or self._find(self._checking, self._is_one):
            pass

    def _note(self, node: ast.AST) -> str | None:
        """The name of what runs when it is called, if this defines such."""
        match node:
            case ast.FunctionDef(name=name, body=body) | ast.AsyncFunctionDef(name=name, body=body):
                self._definitions.setdefault(name, []).extend(body)
                if not isinstance(node, ast.AsyncFunctionDef) and not _has(body, ast.Yield, ast.YieldFrom):
                    return name
                self._lazy.add(name)
            case ast.ClassDef(name=name):
                self._definitions.setdefault(name, []).extend(_what_runs_of(node))
                self._classes.add(name)
                return name
            case ast.alias(name=name, asname=asname):
                self._imported[asname or name.partition(".")[0]] = name
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                self._assigned.add(name)
        return None

    def _find(self, found: set[str], is_one: Callable[[str], bool]) -> bool:
        """Whether there are more of them than were found."""
        more = set()
        for name in self._definitions.keys() - found:
            with suppress(RecursionError):
                if is_one(name):
                    more.add(name)
        found |= more
        return bool(more)

    def has_check(self, node: ast.AST) -> bool:
        """Whether it fails where the program is wrong, when it runs."""
        try:
            return self._has_check(node)
        except RecursionError:
            return False

    def _has_check(self, node: ast.AST) -> bool:
        match node:
            case ast.Constant() | ast.expr_context():
                # Most of a large table, and quick to tell.
                return False
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return any(map(self._has_check, node.decorator_list))
            case ast.ClassDef():
                return any(map(self._has_check, (*node.body, *node.decorator_list)))
            case ast.Assert(test=test):
                return not _is_always_true(test)
            case ast.Raise():
                return True
            case ast.If(test=test) if _is_never_true(test):
                return any(map(self._has_check, node.orelse))
            case ast.With(items=items) if any(map(_suppresses, items)):
                return any(map(self._has_check, items))
            case ast.Try() | ast.TryStar():
                return self._try_has_check(node)
            case ast.Expr(value=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name))) if (
                name in self._lazy
            ):
                return False
            case ast.Call(func=ast.Attribute(attr="debug"), args=[], keywords=[]):
                # Of a test of unittest: unlike run, it raises.
                return True
            case ast.Call(func=ast.Name(id="exec" | "eval" as name), args=[ran, *_]) if (
                name not in self._definitions and self._text_has_check(name, ran)
            ):
                return True
            case ast.Call(func=function) if self._is_check(function):
                return True
            case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name, ctx=ast.Load()):
                # What is handed on by its name may be called there.
                if name in self._checking:
                    return True
        return any(map(self._has_check, ast.iter_child_nodes(node)))

    def _text_has_check(self, runs: str, text: ast.expr) -> bool:
        """Whether `exec` or `eval` of it checks: what is not known may."""
        if isinstance(text, ast.Constant):
            return any(map(self._has_check, _parsed(runs, text.value)))
        return runs == "exec" or bool(self._checking)

    def _try_has_check(self, node: ast.Try | ast.TryStar) -> bool:
        if any(isinstance(each, _LEAVES) for each in node.finalbody):
            return any(map(self._has_check, node.finalbody))
        body = [] if any(map(self._swallows, node.handlers)) else node.body
        return any(map(self._has_check, (*body, *node.orelse, *node.finalbody))) or any(
            self._always_checks(handler.body) for handler in node.handlers
        )

    def _swallows(self, handler: ast.ExceptHandler) -> bool:
        """Whether it hides what an assert says."""
        caught = handler.type is None or any(_names(handler.type, *_CATCH_ALL))
        return caught and not any(map(self._has_check, handler.body))

    def _is_check(self, function: ast.expr) -> bool:
        match function:
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in self._definitions:
                return name in self._checking or name in self._failing
            case ast.Name(id=name) if name in self._assigned:
                return bool(_FAILS.search(name) or self._checking)
            case ast.Name(id=name):
                is_there = bool(self._imported.keys() & {name, "*"}) or name in _ALWAYS_THERE
                fails = _FAILS.search(name) or _FAILS.search(self._imported.get(name, ""))
                return bool(is_there and fails)
            case ast.Attribute(attr=name):
                return bool(_FAILS.search(name))
            case ast.Call(func=ast.Name(id=name)) if name in self._classes:
                return name in self._checking
        return bool(self._checking)

    def _is_one(self, name: str) -> bool:
        return self._always_checks(self._definitions[name])

    def _fails(self, name: str) -> bool:
        return name not in self._classes and any(map(self._has_check, self._definitions[name]))

    def _always_checks(self, body: Sequence[ast.AST]) -> bool:
        """Whether it checks, other than by an error that it always raises, as for a signal."""
        raised = [each for each in body if self._only_raises(each)]
        may_be_left = bool(raised) and _has(body, ast.Return)
        return any(self._has_check(each) for each in body if may_be_left or each not in raised)

    def _only_raises(self, statement: ast.AST) -> bool:
        match statement:
            case ast.Expr(value=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name))):
                return name in self._failing - self._checking
        return isinstance(statement, ast.Raise)


def _all_nodes(statements: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Also of texts that are run."""
    left = [*statements]
    while left:
        node = left.pop()
        yield node
        left += ast.iter_child_nodes(node)
        match node:
            case ast.Call(func=ast.Name(id="exec" | "eval" as name), args=[ast.Constant(value=text), *_]):
                left += _parsed(name, text)


def _parsed(runs: str, text: Any) -> list[ast.AST]:
    """What `exec` or `eval` runs of it; nothing if it is no Python."""
    if not isinstance(text, str | bytes):
        return []
    try:
        # As eval does.
        return [ast.parse(text.strip() if runs == "eval" else text, mode=runs)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _what_runs_of(made: ast.ClassDef) -> Iterator[ast.AST]:
    """What Python itself may call of an object, such as __init__ and __exit__, here or in a base class."""
    yield from made.bases
    for each in made.body:
        if isinstance(each, _FUNCTIONS) and each.name.startswith("__") and each.name.endswith("__"):
            yield from each.body


def _is_always_true(test: ast.expr) -> bool:
    if isinstance(test, ast.Tuple | ast.List | ast.Set):
        return not all(isinstance(each, ast.Starred) for each in test.elts)
    return bool(_value(test, unknown=False))


def _is_never_true(test: ast.expr) -> bool:
    """Constants aside, the program is no script where tests follow it."""
    is_script = isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq)
    return (is_script and any(_names(test, "__name__"))) or not _value(test, unknown=True)


def _value(expression: ast.expr, *, unknown: bool) -> Any:
    """Of what is made of literals alone."""
    try:
        match expression:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not _value(operand, unknown=not unknown)
            case ast.Compare(left=left, ops=[compared], comparators=[right]) if type(compared) in _COMPARED:
                return _COMPARED[type(compared)](ast.literal_eval(left), ast.literal_eval(right))
        return ast.literal_eval(expression)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return unknown


def _suppresses(item: ast.withitem) -> bool:
    """Whether it is contextlib's suppress, of what an assert raises."""
    match item.context_expr:
        case ast.Call(func=ast.Name(id="suppress") | ast.Attribute(attr="suppress"), args=caught):
            return any(any(_names(each, *_CATCH_ALL)) for each in caught)
    return False


def _has(body: Iterable[ast.AST], *kinds: type[ast.AST]) -> bool:
    """Whether it has one of its own, outside the functions and classes in it."""
    left = [*body]
    while left:
        node = left.pop()
        if isinstance(node, kinds):
            return True
        if not isinstance(node, _SCOPES):
            left += ast.iter_child_nodes(node)
    return False


def _names(expression: ast.expr, *wanted: str) -> Iterator[bool]:
    return (isinstance(node, ast.Name) and node.id in wanted for node in ast.walk(expression))
