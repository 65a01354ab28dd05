"""Whether Python that tests a program can fail by what the program does: whether it asserts anything."""

import ast
import re
from collections.abc import Iterable, Iterator

_FAILS = re.compile(r"assert|raises|fail|^(_?exit|quit)$", re.IGNORECASE)
"""What libraries call that which fails: assert_allclose, assertEqual, raises, exit."""
_ALWAYS_THERE = ("exit", "quit")
_CATCH_ALL = ("AssertionError", "Exception", "BaseException")
_WHEN_MADE = ("__init__", "__new__", "__post_init__")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Checks:
    """What checks in the tests of one row, which share a namespace."""

    def __init__(self, statements: Iterable[ast.stmt]) -> None:
        self._definitions: dict[str, list[ast.stmt]] = {}
        """What runs when a function or class of this name is called."""
        self._imported: set[str] = set()
        self._assigned: set[str] = set()
        for node in (node for statement in statements for node in ast.walk(statement)):
            if isinstance(node, _FUNCTIONS):
                self._definitions.setdefault(node.name, []).extend(node.body)
            elif isinstance(node, ast.ClassDef):
                self._definitions.setdefault(node.name, []).extend(_body_when_made(node))
            elif isinstance(node, ast.alias):
                self._imported.add((node.asname or node.name).partition(".")[0])
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self._assigned.add(node.id)
            elif isinstance(node, ast.arg):
                self._assigned.add(node.arg)
        self._known: dict[str, bool] = {}

    def has_check(self, node: ast.AST) -> bool:
        """Whether it fails where the program is wrong, when it runs."""
        try:
            return self._has_check(node)
        except RecursionError:
            return False

    def _has_check(self, node: ast.AST) -> bool:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.Lambda():
                return False
            case ast.Assert(test=test):
                return not _is_always_true(test)
            case ast.Raise():
                return True
            case ast.If(test=test) if any(_names(test, "__name__")):
                # The program is no script where tests follow it.
                return False
            case ast.Try() if any(map(self._swallows, node.handlers)):
                return any(map(self._has_check, (*node.handlers, *node.orelse, *node.finalbody)))
            case ast.Call(func=function) if self._is_check(function):
                return True
        return any(map(self._has_check, ast.iter_child_nodes(node)))

    def _swallows(self, handler: ast.ExceptHandler) -> bool:
        """Whether it hides what an assert says."""
        caught = handler.type is None or any(_names(handler.type, *_CATCH_ALL))
        return caught and not any(map(self._has_check, handler.body))

    def _is_check(self, function: ast.expr) -> bool:
        match function:
            case ast.Name(id=name) if name in self._definitions:
                return self._is_checking(name)
            case ast.Name(id=name) if name in self._assigned:
                return bool(_FAILS.search(name)) or self._some_definition_checks()
            case ast.Name(id=name):
                is_there = bool(self._imported & {name, "*"}) or name in _ALWAYS_THERE
                return is_there and bool(_FAILS.search(name))
            case ast.Attribute(attr=name) if name in self._definitions:
                return self._is_checking(name)
            case ast.Attribute(attr=name):
                return bool(_FAILS.search(name))
        return self._some_definition_checks()

    def _is_checking(self, name: str) -> bool:
        if name not in self._known:
            # What calls itself says nothing new.
            self._known[name] = False
            self._known[name] = any(map(self._has_check, self._definitions[name]))
        return self._known[name]

    def _some_definition_checks(self) -> bool:
        return any(map(self._is_checking, self._definitions))


def _body_when_made(made: ast.ClassDef) -> list[ast.stmt]:
    methods = [each for each in made.body if isinstance(each, _FUNCTIONS) and each.name in _WHEN_MADE]
    return [statement for method in methods for statement in method.body]


def _is_always_true(test: ast.expr) -> bool:
    if isinstance(test, ast.Tuple):
        return bool(test.elts)
    if isinstance(test, ast.Constant):
        return bool(test.value)
    return not any(isinstance(node, ast.Name) for node in ast.walk(test))


def _names(expression: ast.expr, *wanted: str) -> Iterator[bool]:
    return (isinstance(node, ast.Name) and node.id in wanted for node in ast.walk(expression))
