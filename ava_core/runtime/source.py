"""A source file as a step's key sees it: the digest of its syntax tree, and its imports.

Two files that differ only in comments, docstrings, layout, type-checking imports or the words of a log line have the
same digest. It is the same under every Python that Ava supports, so work folders can be shared among them.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple

ROOT = __name__.partition(".")[0]
LOG_METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
CPP = (".cpp", ".h")
_CPP_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')|//[^\n]*|/\*.*?\*/', re.DOTALL)


class Import(NamedTuple):
    """`from module import name as alias`; without a name `import module`. `module` may be a name in a string."""

    module: str
    name: str = ""
    alias: str = ""


class Source(NamedTuple):
    """Attributes:
    digest: SHA-256 of the syntax tree (of a C++ file the text) without what can't change a result.
    imports: what a Python file imports of Ava, anywhere in it but for type checkers; in their order, each once.
    """

    digest: str
    imports: tuple[Import, ...] = ()


def read_source(content: bytes, path: str, package: str) -> Source:
    """The digest of a file, and its imports.

    Args:
        content: the file's bytes.
        path: its path; the ending tells the language. In a file that is neither Python nor C++ every byte counts.
        package: of a Python file, the package that its relative imports count from.

    Raises:
        SyntaxError: it isn't Python.
    """
    if path.endswith(".py"):
        tree = ast.parse(content, filename=path)
        normal = "".join(_normal_form(tree, logs=_has_logger(tree)))
        ours = (found for found in _imports(tree, package) if found.module.partition(".")[0] == ROOT)
        return Source(_sha256(normal.encode()), tuple(dict.fromkeys(ours)))
    return Source(_sha256(_without_cpp_comments(content) if path.endswith(CPP) else content))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _without_cpp_comments(content: bytes) -> bytes:
    text = _CPP_COMMENT.sub(lambda match: match[1] or " ", content.decode())
    return "\n".join(filter(None, map(str.strip, text.splitlines()))).encode()


def _normal_form(node: object, logs: bool) -> Iterator[str]:
    """The syntax tree as text. Not `ast.dump`, which differs between versions of Python."""
    if isinstance(node, list):
        yield "["
        for item in node:
            if not isinstance(item, ast.stmt):
                yield from _normal_form(item, logs)
                continue
            for kept in _what_counts(item, logs):
                yield from _normal_form(kept, logs)
        yield "]"
    elif isinstance(node, ast.AST):
        yield f"{type(node).__name__}("
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(node, ast.JoinedStr):  # Python 3.12.1 puts empty strings between the parts
                value = [part for part in node.values if getattr(part, "value", None) != ""]
            if value is not None and value != [] and name not in ("ctx", "kind"):
                yield f"{name}="
                yield from _normal_form(value, logs)
        yield ")"
    else:
        yield f"{type(node).__name__} {node!r},"


def _what_counts(statement: ast.stmt, logs: bool) -> list[ast.AST]:
    """The statement; nothing of a docstring; of a log line only what it calls to know what to say."""
    if isinstance(statement, ast.If) and _is_for_type_checkers(statement):
        return list(statement.orelse)
    if isinstance(statement, ast.Pass):  # or a function would differ from one with a docstring alone
        return []
    if not isinstance(statement, ast.Expr):
        return [statement]
    value = statement.value
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return []
    if logs and isinstance(value, ast.Call) and _is_log_line(value.func):
        return [
            node
            for argument in (*value.args, *value.keywords)
            for node in ast.walk(argument)
            if isinstance(node, ast.Call | ast.NamedExpr | ast.Await | ast.Yield)
        ]
    return [statement]


def _has_logger(tree: ast.Module) -> bool:
    """Whether `log` is the module's logger."""
    return any(
        isinstance(statement, ast.Assign) and ast.unparse(statement) == "log = logging.getLogger(__name__)"
        for statement in tree.body
    )


def _is_log_line(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "log"
        and function.attr in LOG_METHODS
    )


def _is_for_type_checkers(statement: ast.If) -> bool:
    return ast.unparse(statement.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _imports(node: ast.AST, package: str) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for name in node.names:
            yield Import(name.name)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        module = ".".join([*above, *([node.module] if node.module else [])])
        for name in node.names:
            yield Import(module, name.name, name.asname or name.name)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
        yield Import(node.value)  # for import_module and `python -m`; what is no module's name leads nowhere
    children = node.orelse if isinstance(node, ast.If) and _is_for_type_checkers(node) else ast.iter_child_nodes(node)
    for child in children:
        yield from _imports(child, package)
