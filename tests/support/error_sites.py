"""The texts of every error that trtq raises, read from its source as templates.

A template is a message with ``{name}`` in place of each value. Names are followed as far as the
text needs it: to local variables, module constants, the callers of a helper, and what it returns.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import trtq
from trtq import errors
from trtq.error_codes import OR, PLACEHOLDER

ROOT = Path(trtq.__file__).parent
CLASSES = [
    name
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, errors.TrtqError)
]
LEFT_OUT = ("testing", "templates")
# What another program or library says, as a text of errors.py.
OTHERS_WORDS = ("reason", "first_line", "last_line", "said_by", "words_of")
DEEPEST, MOST = 5, 8  # steps that a name is followed, alternatives of one text
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Texts(NamedTuple):
    """What one raise site says."""

    kind: str
    message: str
    reason: str
    hint: str

    @property
    def fixed(self) -> tuple[str, ...]:
        """The texts without the names of their values, which may change at any time."""
        return tuple(PLACEHOLDER.sub("{}", t) for t in self)

    @property
    def key(self) -> tuple[str, ...]:
        """What tells one error from another: all but the hint."""
        return self.fixed[:3]


@dataclass(eq=False)
class Scope:
    """A function or a module, and what its names are bound to in one call."""

    module: Module
    node: Function | ast.Module
    parent: Scope | None = None
    given: dict[str, tuple[ast.expr, Scope]] = field(default_factory=dict)
    chosen: dict[int, int] = field(default_factory=dict)


@dataclass(eq=False)
class Module:
    """One parsed file: functions by name, assignments by scope."""

    name: str
    tree: ast.Module
    functions: dict[str, list[Function]] = field(default_factory=lambda: defaultdict(list))
    owner: dict[ast.AST, Function | ast.Module] = field(default_factory=dict)
    bound: dict[ast.AST, dict[str, list[ast.AST]]] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)
    spots: dict[ast.AST, dict[int, int]] = field(default_factory=dict)
    returns: dict[ast.AST, list[ast.expr]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._walk(self.tree, self.tree)
        self._place(self.tree, {})

    def _place(self, node: ast.AST, spots: dict[int, int]) -> None:
        """Note the blocks that a node is in, and its place in each of them."""
        self.spots[node] = spots
        for _, value in ast.iter_fields(node):
            for i, child in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(child, ast.stmt):
                    self._place(child, {**spots, id(value): i})
                elif isinstance(child, ast.AST):
                    self._place(child, spots)

    def reaching(self, statements: list[ast.AST], use: ast.AST) -> list[ast.AST]:
        """Return the assignments that a use may see: the last sure one, and others after it."""
        at = self.spots.get(use)
        if at is None or any(self.owner.get(s) is not self.owner.get(use) for s in statements):
            return statements
        before = [s for s in statements if getattr(s, "lineno", 0) <= getattr(use, "lineno", 0)]
        sure = [
            i
            for i, s in enumerate(before)
            if not isinstance(s, ast.AugAssign)
            and (own := list(self.spots.get(s, {}).items())[-1:])
            and own[0][0] in at
            and own[0][1] < at[own[0][0]]
        ]
        return before[sure[-1] :] if sure else before or statements

    def _walk(self, node: ast.AST, owner: Function | ast.Module) -> None:
        names = self.bound.setdefault(owner, defaultdict(list))
        for child in ast.iter_child_nodes(node):
            self.owner[child] = owner
            if isinstance(child, Function):
                self.functions[child.name].append(child)
                self._walk(child, child)
                continue
            if isinstance(child, ast.Return) and child.value is not None:
                self.returns[owner].append(child.value)
            if isinstance(child, ast.ImportFrom):
                for alias in child.names:
                    self.imported[alias.asname or alias.name] = (child.module or "", alias.name)
            if isinstance(child, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                for target in targets:
                    for name in ast.walk(target):
                        if isinstance(name, ast.Name):
                            names[name.id].append(child)
            elif isinstance(child, ast.For | ast.comprehension):
                for name in ast.walk(child.target):
                    if isinstance(name, ast.Name):
                        names[name.id].append(child)
            self._walk(child, owner)


class Package:
    """All modules of trtq, and the calls of each function."""

    def __init__(self) -> None:
        self.modules: dict[str, Module] = {}
        self.named: dict[str, list[tuple[Module, Function]]] = defaultdict(list)
        self.calls: dict[str, list[tuple[Module, ast.Call]]] = defaultdict(list)
        for path in sorted(ROOT.rglob("*.py")):
            place = path.relative_to(ROOT.parent).with_suffix("").parts
            if not set(LEFT_OUT) & set(place):
                name = ".".join(place).removesuffix(".__init__")
                module = Module(name, ast.parse(path.read_text()))
                self.modules[name] = module
                for function in itertools.chain.from_iterable(module.functions.values()):
                    self.named[function.name].append((module, function))
                for call in ast.walk(module.tree):
                    if isinstance(call, ast.Call):
                        self.calls[_called(call)].append((module, call))

    def functions(self, call: ast.expr, module: Module) -> list[tuple[Module, Function]]:
        """Return the functions of trtq that a call may mean."""
        if isinstance(call, ast.Name):
            if call.id in module.imported:
                place, name = module.imported[call.id]
                other = self.modules.get(place)
                return [(other, f) for f in other.functions.get(name, [])] if other else []
            return [(module, f) for f in module.functions.get(call.id, [])]
        if not isinstance(call, ast.Attribute):
            return []
        own = [(module, f) for f in module.functions.get(call.attr, [])]
        if isinstance(call.value, ast.Name) and call.value.id in ("self", "cls"):
            return own
        every = self.named[call.attr]
        return every if len(every) == 1 else []

    def callers(self, module: Module, function: Function) -> list[tuple[Module, ast.Call]]:
        """Return the calls of a function that can be told."""
        return [
            (place, call)
            for place, call in self.calls[function.name]
            if (module, function) in self.functions(call.func, place)
        ]


def _called(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def _label(node: ast.AST) -> str:
    """Return a short name for a value."""
    if isinstance(node, ast.Name):
        name = node.id.lstrip("_").lower()
        return {"exc": "cause", "error": "cause", "said": "cause"}.get(name, name)
    if isinstance(node, ast.Attribute):
        name = node.attr.strip("_").lower()
        return "type" if node.attr == "__name__" else name
    if isinstance(node, ast.Subscript | ast.Await | ast.Starred | ast.FormattedValue):
        return _label(node.value)
    if isinstance(node, ast.Call):
        if _called(node) in ("suggest", "get_close_matches"):
            return "suggestion"
        if _called(node) in OTHERS_WORDS:
            return "cause"
        if isinstance(node.func, ast.Attribute) and _called(node) not in ("quote", "join"):
            return _label(node.func.value)
        return _label(node.args[0] if node.args else node.func)
    if isinstance(node, ast.GeneratorExp | ast.ListComp):
        return _label(node.generators[0].iter)
    parts = {
        ast.IfExp: lambda n: [n.body, n.orelse],
        ast.BoolOp: lambda n: n.values,
        ast.BinOp: lambda n: [n.left, n.right],
        ast.JoinedStr: lambda n: [v for v in n.values if isinstance(v, ast.FormattedValue)],
        ast.UnaryOp: lambda n: [n.operand],
    }.get(type(node), lambda n: [])(node)
    return next((label for p in parts if (label := _label(p)) != "value"), "value")


class Reader:
    """Renders expressions as templates."""

    def __init__(self, package: Package) -> None:
        self.package = package

    def texts(self, node: ast.AST, scope: Scope, depth: int = 0) -> list[str]:
        """Return what an expression may be, as templates."""
        rendered = list(dict.fromkeys(self._texts(node, scope, depth)))
        return rendered if 0 < len(rendered) <= MOST else [f"{{{_label(node)}}}"]

    def _texts(self, node: ast.AST, scope: Scope, depth: int) -> Iterator[str]:
        if depth > DEEPEST:
            yield f"{{{_label(node)}}}"
        elif isinstance(node, ast.Constant):
            yield str(node.value) if node.value else ""
        elif isinstance(node, ast.JoinedStr):
            parts = [self._part(v, scope, depth) for v in node.values]
            yield "".join(parts)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            both = (self.texts(n, scope, depth) for n in (node.left, node.right))
            yield from map("".join, itertools.product(*both))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            yield from self._percent(node, scope, depth)
        elif isinstance(node, ast.IfExp):
            for branch in (node.body, node.orelse):
                yield from self.texts(branch, scope, depth)
        elif isinstance(node, ast.BoolOp):
            for value in node.values:
                yield from self.texts(value, scope, depth)
        elif isinstance(node, ast.Name):
            yield from self._name(node, scope, depth + 1)
        elif isinstance(node, ast.Call):
            yield from self._call(node, scope, depth + 1)
        elif isinstance(node, ast.Attribute) and _label(node.value) == "self":
            yield from self._returned(node, [], [], scope, depth + 1)
        elif isinstance(node, ast.Subscript) and (rows := self.rows(node, scope)):
            for value, place in rows:
                yield from self.texts(value, place, depth + 1)
        else:
            yield f"{{{_label(node)}}}"

    def _part(self, node: ast.expr, scope: Scope, depth: int) -> str:
        if not isinstance(node, ast.FormattedValue):
            return self.texts(node, scope, depth)[0]
        is_given = isinstance(node.value, ast.Name) and node.value.id in scope.given
        texts = [] if is_given else self.texts(node.value, scope, depth + 1)
        if len(texts) == 1 and node.conversion == -1 and not re.fullmatch(r"[\d.]*", texts[0]):
            return texts[0]
        return f"{{{_label(node.value)}}}"

    def _percent(self, node: ast.BinOp, scope: Scope, depth: int) -> Iterator[str]:
        values = node.right.elts if isinstance(node.right, ast.Tuple) else [node.right]
        labels = iter([_label(v) for v in values])
        for text in self.texts(node.left, scope, depth):
            yield re.sub(r"%0?\d*[sdo]", lambda _: f"{{{next(labels, 'value')}}}", text)

    def _name(self, node: ast.Name, scope: Scope, depth: int) -> Iterator[str]:
        place: Scope | None = scope
        while place is not None:
            if node.id in place.given:
                texts = self.texts(*place.given[node.id], depth)
                yield from ([f"{{{_label(node)}}}"] if any(texts) and _is_blank(texts) else texts)
                return
            statements = place.module.bound.get(place.node, {}).get(node.id)
            if statements:
                statements = place.module.reaching(statements, node)
                yield from self._bound(node, statements, place, depth)
                return
            place = place.parent
        other = self.package.modules.get(scope.module.imported.get(node.id, ("", ""))[0])
        if other is not None:
            name = scope.module.imported[node.id][1]
            statements = other.bound[other.tree].get(name, [])
            if statements:
                yield from self._bound(ast.Name(name), statements, Scope(other, other.tree), depth)
                return
        yield f"{{{_label(node)}}}"

    def _bound(
        self, node: ast.Name, statements: list[ast.AST], place: Scope, depth: int
    ) -> Iterator[str]:
        added = any(isinstance(s, ast.AugAssign) for s in statements)
        for statement in statements:
            if isinstance(statement, ast.AugAssign):
                continue
            value = getattr(statement, "value", None)
            target = getattr(statement, "targets", [getattr(statement, "target", None)])[0]
            if value is None:
                yield f"{{{_label(node)}}}"
            elif isinstance(target, ast.Tuple):
                yield from self._unpacked(node, target, value, place, depth)
            else:
                texts = self.texts(value, place, depth)
                texts = [f"{{{_label(node)}}}"] if any(texts) and _is_blank(texts) else texts
                yield from (f"{t}{{value}}" if added else t for t in texts)

    def _unpacked(
        self, node: ast.Name, target: ast.Tuple, value: ast.expr, place: Scope, depth: int
    ) -> Iterator[str]:
        index = [_label(e) for e in target.elts].index(_label(node))
        rows = self.rows(value, place)
        if id(value) in place.chosen:
            rows = rows[place.chosen[id(value)] :][:1]
        fitting = [
            (row.elts[index], where)
            for row, where in rows
            if isinstance(row, ast.Tuple) and len(row.elts) == len(target.elts)
        ]
        for element, where in fitting:
            yield from self.texts(element, where, depth)
        if not fitting:
            yield f"{{{_label(node)}}}"

    def rows(self, node: ast.AST, scope: Scope) -> list[tuple[ast.expr, Scope]]:
        """Return what a call, a table's entry or a choice may be, as expressions."""
        if isinstance(node, ast.Tuple):
            return [(node, scope)]
        if isinstance(node, ast.IfExp):
            return [*self.rows(node.body, scope), *self.rows(node.orelse, scope)]
        if isinstance(node, ast.Name):
            table = self._constant(node, scope)
            return [table] if table and isinstance(table[0], ast.Tuple) else []
        if isinstance(node, ast.Subscript):
            return self._entries(node.value, scope, ast.unparse(node.slice))
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr == "get":
                default = [(a, scope) for a in node.args[1:]]
                return [*self._entries(node.func.value, scope), *default]
            return list(self._returns(node.func, node.args, node.keywords, scope))
        return []

    def _constant(self, node: ast.Name, scope: Scope) -> tuple[ast.expr, Scope] | None:
        place: Scope | None = scope
        while place is not None:
            for statement in place.module.bound.get(place.node, {}).get(node.id, []):
                value = getattr(statement, "value", None)
                return (value, place) if value is not None else None
            place = place.parent
        return None

    def _entries(
        self, node: ast.AST, scope: Scope, wanted: str = ""
    ) -> list[tuple[ast.expr, Scope]]:
        table = self._constant(node, scope) if isinstance(node, ast.Name) else None
        if table is None or not isinstance(table[0], ast.Dict):
            return []
        keys = [ast.unparse(k) if k is not None else "" for k in table[0].keys]
        if wanted in keys:
            return [(table[0].values[keys.index(wanted)], table[1])]
        return [(value, table[1]) for value in table[0].values]

    def _call(self, node: ast.Call, scope: Scope, depth: int) -> Iterator[str]:
        entries = self.rows(node, scope) if _called(node) == "get" else []
        if entries:
            for value, place in entries:
                yield from self.texts(value, place, depth)
            return
        yield from self._returned(node.func, node.args, node.keywords, scope, depth)

    def _returned(
        self,
        node: ast.expr,
        args: list[ast.expr],
        keywords: list[ast.keyword],
        scope: Scope,
        depth: int,
    ) -> Iterator[str]:
        empty = ast.Call(node, args, keywords)
        if _called(empty) in ("suggest", *OTHERS_WORDS):
            yield f"{{{_label(empty)}}}"
            return
        returns = list(self._returns(node, args, keywords, scope))
        for value, place in returns:
            yield from self.texts(value, place, depth)
        if not returns:
            yield f"{{{_label(empty if args else node)}}}"

    def _returns(
        self,
        node: ast.expr,
        args: list[ast.expr],
        keywords: list[ast.keyword],
        scope: Scope,
    ) -> Iterator[tuple[ast.expr, Scope]]:
        for module, function in self.package.functions(node, scope.module):
            call = ast.Call(node, args, keywords)
            inner = Scope(module, function, Scope(module, module.tree), bind(function, call, scope))
            for value in module.returns[function]:
                yield value, inner


@functools.cache
def _names(node: ast.AST) -> frozenset[str]:
    return frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name))


def _is_blank(texts: list[str]) -> bool:
    return all(not PLACEHOLDER.sub("", t).strip() for t in texts)


def bind(function: Function, call: ast.Call, scope: Scope) -> dict[str, tuple[ast.expr, Scope]]:
    """Return the arguments of a call by the names of the function's parameters."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    if names[:1] in (["self"], ["cls"]):
        names = names[1:]
    given = dict[str, tuple[ast.expr, Scope]]()
    defaults = function.args.defaults
    module = Scope(scope.module, scope.module.tree)
    for name, value in zip(names[len(names) - len(defaults) :], defaults, strict=False):
        given[name] = (value, module)
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if default is not None:
            given[argument.arg] = (default, module)
    for name, value in zip(names, call.args, strict=False):
        if isinstance(value, ast.Starred):
            break
        given[name] = (value, scope)
    given |= {k.arg: (k.value, scope) for k in call.keywords if k.arg is not None}
    return given


class Sites:
    """Finds where errors are made, once for each caller that gives a helper its words."""

    def __init__(self) -> None:
        self.package = Package()
        self.reader = Reader(self.package)

    def __iter__(self) -> Iterator[Texts]:
        for module in self.package.modules.values():
            for call in ast.walk(module.tree):
                if isinstance(call, ast.Call) and (kind := self._kind(call, module)):
                    for scope in self._scopes(module, call):
                        yield from self._made(kind, call, scope)
        yield from self._refusals_of_boards()

    def _kind(self, call: ast.Call, module: Module) -> str:
        name = _called(call)
        if name in CLASSES and (name in module.imported or module.name == "trtq.errors"):
            return name
        owner = module.owner.get(call)
        if (
            name == "error"
            and isinstance(owner, Function)
            and "type[TrtqError]" in ast.unparse(owner.args)
        ):
            return name
        return ""

    def _scopes(self, module: Module, call: ast.Call, depth: int = 0) -> list[Scope]:
        """Return the scope of a call, once for each way to it that changes what is said."""
        owner = module.owner[call]
        top = Scope(module, module.tree)
        if owner is module.tree or isinstance(owner, ast.Module):
            return [top]
        used = _names(call)
        for _ in range(3):
            bound = module.bound.get(owner, {})
            used = used.union(*(_names(s) for name in used for s in bound.get(name, [])))
        parameters = {a.arg for a in ast.walk(owner.args) if isinstance(a, ast.arg)}
        callers = self.package.callers(module, owner) if used & parameters else []
        if depth > 2 or not callers or owner.name.startswith("__"):
            return [self._scope(module, owner, {})]
        is_method = ast.unparse(owner.args).startswith(("self", "cls"))  # some calls are not told
        return [
            self._scope(module, owner, bind(owner, outer, scope))
            for place, outer in callers
            for scope in self._scopes(place, outer, depth + 1)
        ] + [self._scope(module, owner, {})] * is_method

    def _scope(
        self, module: Module, owner: Function, given: dict[str, tuple[ast.expr, Scope]]
    ) -> Scope:
        outer = module.owner.get(owner, module.tree)
        parent = Scope(module, module.tree)
        if isinstance(outer, Function):
            parent = self._scope(module, outer, {})
        return Scope(module, owner, parent, given)

    def _made(self, kind: str, call: ast.Call, scope: Scope) -> Iterator[Texts]:
        if kind == "error":
            given = scope.given.get("error")
            kind = _label_kind(given[0]) if given else "UsageError"
        for choice in self._choices(call, scope):
            part = Scope(scope.module, scope.node, scope.parent, scope.given, choice)
            for message, reason, hint in self._parts(call, part):
                yield Texts(kind, *(self._text(n, s) for n, s in (message, reason, hint)))

    def _choices(self, call: ast.Call, scope: Scope) -> list[dict[int, int]]:
        """Return each row of the tables that names of the call are unpacked from."""
        tables = dict[int, int]()
        for name in sorted(_names(call)):
            for statement in scope.module.bound.get(scope.node, {}).get(name, []):
                value = getattr(statement, "value", None)
                target = getattr(statement, "targets", [None])[0]
                if value is not None and isinstance(target, ast.Tuple):
                    rows = self.reader.rows(value, scope)
                    if len(rows) > 1:
                        tables[id(value)] = len(rows)
        every = itertools.product(*(range(n) for n in tables.values()))
        return [dict(zip(tables, numbers, strict=True)) for numbers in every]

    def _parts(self, call: ast.Call, scope: Scope) -> Iterator[tuple[tuple[ast.expr, Scope], ...]]:
        """Yield message, reason and hint; a starred argument has several forms."""
        named = {k.arg: (k.value, scope) for k in call.keywords}
        empty: tuple[ast.expr, Scope] = (ast.Constant(""), scope)
        forms: list[list[list[tuple[ast.expr, Scope]]]] = []
        for argument in call.args:
            if isinstance(argument, ast.Starred):
                rows = self.reader.rows(argument.value, scope)
                unknown: list[tuple[ast.expr, Scope]] = [(ast.Name("value"), scope)] * 2
                forms.append(
                    [
                        [(e, where) for e in row.elts]
                        for row, where in rows
                        if isinstance(row, ast.Tuple)
                    ]
                    or [unknown]
                )
            else:
                forms.append([[(argument, scope)]])
        for form in itertools.product(*forms):
            places = list(itertools.chain.from_iterable(form))[:3]
            places += [empty] * (3 - len(places))
            for i, name in enumerate(("message", "reason", "hint")):
                places[i] = named.get(name, places[i])
            yield tuple(places)

    def _text(self, node: ast.expr, scope: Scope) -> str:
        texts = self.reader.texts(node, scope)
        return OR.join(filter(None, texts))

    def _refusals_of_boards(self) -> Iterator[Texts]:
        """Yield what the agent refuses: its words, with the hints that it names."""
        agent = self.package.modules["trtq.agent"]
        hints = next(
            ast.literal_eval(s.value)
            for s in agent.tree.body
            if isinstance(s, ast.Assign) and ast.unparse(s.targets[0]) == "HINTS"
        )
        scope = Scope(agent, agent.tree)
        for _, call in self.package.calls["Refused"]:
            advice = call.args[1] if len(call.args) > 1 else None
            hint = ""
            if advice is not None:
                named = isinstance(advice, ast.Call) and _called(advice) == "hint"
                hint = hints[ast.literal_eval(advice.args[0])] if named else "{hint}"
            reason = self._text(call.args[0], scope)
            yield Texts("BoardError", "{name} refuses to {verb}", reason, hint)


def _label_kind(node: ast.expr) -> str:
    name = getattr(node, "id", "")
    return name if name in CLASSES else "TrtqError"


def sites() -> list[Texts]:
    """Return the texts of every raise site, without those that only repeat another program.

    Sites that differ in their hints alone are one error, and one that says a part of what another
    says is left out.
    """
    every = dict[tuple[str, ...], Texts]()
    for site in Sites():
        if _is_blank([site.message]) and _is_blank([site.reason]):
            continue
        same = every.setdefault(site.key, site)
        hints = dict.fromkeys(filter(None, [*same.hint.split(OR), *site.hint.split(OR)]))
        every[site.key] = same._replace(hint=OR.join(hints))
    alike = dict[tuple[str, ...], list[set[str]]]()  # reasons of errors with one message
    for kind, message, why in every:
        alike.setdefault((kind, message), []).append(set(why.split(OR)))
    kept = [
        t
        for (kind, message, why), t in every.items()
        if not any(set(why.split(OR)) < more for more in alike[kind, message])
    ]
    return sorted(kept, key=lambda t: (CLASSES.index(t.kind), t.fixed))


if __name__ == "__main__":
    for row in sites():
        print(*row, sep="\n    ")
