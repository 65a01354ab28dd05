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
_EXITS = (*_ALWAYS_THERE, "_exit")
_ABSTRACT = "NotImplementedError"
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
        self._bodies: dict[str, list[Sequence[ast.AST]]] = {}
        """What runs of each function or class of this name that is called."""
        self._eager: dict[str, list[Sequence[ast.AST]]] = {}
        """Those of them that run at once: no generators or coroutines."""
        self._classes: set[str] = set()
        self._lazy: set[str] = set()
        """Names of generators and coroutines."""
        self._imported: dict[str, str] = {}
        """What is imported, and its name where it comes from."""
        self._assigned: set[str] = set()
        for node in _all_nodes(statements):
            self._note(node)
            # Only now: a yield that is not reached makes a generator all the same.
            _cut(node)
        self._lazy -= self._assigned | self._imported.keys()
        self._raising: set[str] = set()
        """Functions that always raise: a check where they are called, unless it is for a signal."""
        while self._find(self._raising, self._raises):
            pass
        self._checking: set[str] = set()
        """Definitions that check, if only by calling others that do."""
        self._checking_at_once: set[str] = set()
        """Those that do so where nothing waits for a coroutine or goes through a generator."""
        both = ((self._checking, self._is_one), (self._checking_at_once, self._is_at_once))
        while any(self._find(found, is_one) for found, is_one in both):
            pass

    def _note(self, node: ast.AST) -> None:
        match node:
            case ast.FunctionDef(name=name, body=body) | ast.AsyncFunctionDef(name=name, body=body):
                self._bodies.setdefault(name, []).append(body)
                if isinstance(node, ast.AsyncFunctionDef) or _has(body, ast.Yield, ast.YieldFrom):
                    self._lazy.add(name)
                else:
                    self._eager.setdefault(name, []).append(body)
            case ast.ClassDef(name=name):
                for bodies in (self._bodies, self._eager):
                    bodies.setdefault(name, []).extend(_what_runs_of(node))
                self._classes.add(name)
            case ast.alias(name=name, asname=asname):
                self._imported[asname or name.partition(".")[0]] = name
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                self._assigned.add(name)

    def _find(self, found: set[str], is_one: Callable[[str], bool]) -> bool:
        """Whether there are more of them than were found."""
        more = set()
        for name in self._bodies.keys() - found:
            with suppress(RecursionError):
                if is_one(name):
                    more.add(name)
        found |= more
        return bool(more)

    def always_fails(self, statement: ast.stmt) -> bool:
        """Whether it fails for every program: to exit is to fail, with code 0 too."""
        match statement:
            case ast.Assert(test=test):
                return not _value(test, unknown=True)
            case ast.Expr(value=ast.Call(func=ast.Name(id=name))) if name in self._assigned:
                return False
        return self._only_raises(statement)

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
            case ast.If(test=test) | ast.While(test=test) | ast.For(iter=test) if _is_never_true(test):
                return any(map(self._has_check, node.orelse))
            case ast.With(items=items) if any(map(_suppresses, items)):
                return any(map(self._has_check, items))
            case ast.Try() | ast.TryStar():
                return self._try_has_check(node)
            case ast.Expr(
                value=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=given, keywords=named)
            ) if name in self._lazy and name not in self._checking_at_once:
                return any(map(self._has_check, (*given, *named)))
            case ast.Expr(
                value=(
                    ast.Call(func=ast.Name(id="eval" as name), args=[ran, *_])
                    | ast.ListComp(elt=ast.Call(func=ast.Name(id="eval" as name), args=[ran, *_]))
                )
            ) if not isinstance(ran, ast.Constant) and name not in self._bodies:
                # Its value is of no use, so what it runs has to fail by itself.
                return True
            case ast.Call(func=ast.Attribute(attr="debug"), args=[], keywords=[]):
                # Of a test of unittest: unlike run, it raises.
                return True
            case ast.Call(func=ast.Name(id="exec" | "eval" as name), args=[ran, *_]) if (
                name not in self._bodies and self._text_has_check(name, ran)
            ):
                return True
            case ast.Call(func=function) if self._is_check(function):
                return True
            case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name, ctx=ast.Load()):
                # What is handed on by its name may be called there.
                if name in self._checking:
                    return True
        parts = ast.iter_child_nodes(node)
        return any(self._has_check(each) for each in parts if not self._is_handler(node, each))

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
            case ast.Name(id=name) if name in self._bodies:
                return name in self._checking or name in self._raising
            case ast.Attribute(value=value, attr=name) if name in self._bodies:
                may_raise = self._is_own(value) or _FAILS.search(name)
                return name in self._checking or bool(may_raise and name in self._raising)
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
        return any(map(self._always_checks, self._bodies[name]))

    def _is_at_once(self, name: str) -> bool:
        return any(any(map(self._has_check, body)) for body in self._eager.get(name, ()))

    def _always_checks(self, body: Sequence[ast.AST]) -> bool:
        """Whether it checks, other than by an error that it always raises, as for a signal."""
        raised = [each for each in body if self._only_raises(each)]
        may_be_left = bool(raised) and _has(body, ast.Return)
        return any(self._has_check(each) for each in body if may_be_left or each not in raised)

    def _raises(self, name: str) -> bool:
        return name not in self._classes and all(map(self._body_raises, self._bodies[name]))

    def _body_raises(self, body: Sequence[ast.AST]) -> bool:
        """Whether it can end in no other way, and is not there for others to write."""
        raised = any(self._only_raises(each) and not any(_names(each, _ABSTRACT)) for each in body)
        return raised and not _has(body, ast.Return)

    def _only_raises(self, statement: ast.AST) -> bool:
        match statement:
            case (
                ast.Expr(value=ast.Await(value=ast.Call(func=function)))
                | ast.Expr(
                    value=ast.Call(
                        func=ast.Attribute(attr="run" | "run_until_complete"),
                        args=[ast.Call(func=function), *_],
                    )
                )
            ):
                return self._call_raises(function)
            case ast.Expr(value=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name) as function)):
                return name not in self._lazy and self._call_raises(function)
        return isinstance(statement, ast.Raise)

    def _call_raises(self, function: ast.expr) -> bool:
        match function:
            case ast.Name(id=name) if name in self._bodies:
                return name in self._raising
            case ast.Name(id=name):
                return self._imported.get(name, name) in _EXITS
            case ast.Attribute(value=ast.Name(id="sys" | "os"), attr=name) if name in _EXITS:
                return True
            case ast.Attribute(value=value, attr=name):
                return name in self._raising and self._is_own(value)
        return False

    def _is_own(self, value: ast.expr) -> bool:
        """Whether it is of a class of these tests, whose methods are known."""
        match value:
            case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
                return name in ("self", "cls") or name in self._classes
        return False

    def _is_handler(self, node: ast.AST, part: ast.AST) -> bool:
        """Whether it is handed to a call to raise an error later, as for a signal."""
        if isinstance(node, ast.Call) and isinstance(part, ast.Lambda):
            return self._only_raises(ast.Expr(part.body))
        return False


def _cut(node: ast.AST) -> None:
    """Takes out the statements that are never reached, behind one that leaves."""
    for name in ("body", "orelse", "finalbody"):
        statements = getattr(node, name, None)
        if isinstance(statements, list):
            left = (place for place, each in enumerate(statements) if isinstance(each, (*_LEAVES, ast.Raise)))
            del statements[next(left, len(statements)) + 1 :]


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


def _what_runs_of(made: ast.ClassDef) -> Iterator[Sequence[ast.AST]]:
    """What Python itself may call of an object, such as __init__ and __exit__, here or in a base class."""
    yield made.bases
    for each in made.body:
        if isinstance(each, _FUNCTIONS) and each.name.startswith("__") and each.name.endswith("__"):
            yield each.body


def _is_always_true(test: ast.expr) -> bool:
    return bool(_value(test, unknown=False))


def _is_never_true(test: ast.expr) -> bool:
    """Constants aside, the program is no script where tests follow it."""
    is_script = isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq)
    return (is_script and any(_names(test, "__name__"))) or not _value(test, unknown=True)


def _value(expression: ast.expr, *, unknown: bool) -> Any:
    """Of what is made of literals alone, or is true whatever is in it."""
    try:
        match expression:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not _value(operand, unknown=not unknown)
            case ast.BoolOp(op=joined, values=values):
                of_all = (bool(_value(each, unknown=unknown)) for each in values)
                return any(of_all) if isinstance(joined, ast.Or) else all(of_all)
            case ast.Lambda() | ast.GeneratorExp():
                return True
            case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts) if parts:
                return unknown or not all(isinstance(each, ast.Starred) for each in parts)
            case ast.JoinedStr(values=parts):
                return unknown or any(isinstance(each, ast.Constant) for each in parts)
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


def _names(expression: ast.AST, *wanted: str) -> Iterator[bool]:
    return (isinstance(node, ast.Name) and node.id in wanted for node in ast.walk(expression))
