"""Toy networks that a fixture describes by a formula, `v = (0.6 + 0.4 t/1000) x + y`, read and evaluated."""

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

FUNCTIONS: Mapping[str, Callable[[Any], Tensor]] = {
    name: lambda value, name=name: getattr(torch, name)(torch.as_tensor(value))
    for name in ("sin", "cos", "tanh", "exp", "sqrt", "abs", "sigmoid")
}
_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}
_FORMULA = re.compile(
    r"\b(x0|v|eps|out(?:put)?|model|f)\s*(?:\([^()]*\))?\s*=\s*([^;=]+)|\b(returns|gives)\s+(?![^;=]*=)([^;=]+)"
)
NAMES = {"x", "z", "t", "y", "k", "i", "c", "chunk", "chunk_index", "alpha", "sigma", *FUNCTIONS}
"""What a formula may speak of; an equation with other names is none of a network."""
_TOKEN = re.compile(r"\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+|[A-Za-z_]\w*|\*\*|[-+*/()]")
_SPELLED = {"chunk index": "chunk_index", "chunk_idx": "chunk_index", "x_chunk": "x", "x_t": "x", "xt": "x",
            "^": "**", "·": "*", "×": "*", "torch.": ""}  # fmt: skip


def find_formula(text: str, extra: Iterable[str] = ()) -> tuple[str, ast.expr] | None:
    """What is given (x0, v or eps) and by which formula; None if a text holds none that can be read."""
    for spelled, plain in _SPELLED.items():
        pattern = re.escape(spelled)
        text = re.sub(rf"\b{pattern}\b" if spelled[-1].isalpha() else pattern, plain, text)
    for match in _FORMULA.finditer(text):
        for end in _ends(match[2] or match[4]):
            try:
                found = ast.parse(_explicit(end), mode="eval").body
            except (SyntaxError, ValueError):
                continue
            named = {node.id for node in ast.walk(found) if isinstance(node, ast.Name)}
            if named & {"x", "z"} and named <= NAMES | set(extra):
                return {"model": "v", "f": "v", None: "v"}.get(match[1], match[1]), found
    return None


def _ends(text: str) -> list[str]:
    """Where a formula in a sentence may end, the longest first."""
    cuts = [len(text), *(m.start() for m in re.finditer(r"[,.](?=\s)|\bwith\b|\bwhere\b|\bfor\b|\(with|\(where", text))]
    return [text[:cut].rstrip(" .,") for cut in sorted(cuts, reverse=True)]


def _explicit(text: str) -> str:
    """With a sign between what is to be multiplied. Raises ValueError for anything that is no formula."""
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != re.sub(r"\s", "", text):
        raise ValueError(text)
    parts: list[str] = []
    for token in tokens:
        if parts and (token[0].isalnum() or token[0] in "_(.") and (parts[-1][-1].isalnum() or parts[-1][-1] in "_)."):
            if not (token == "(" and parts[-1] in FUNCTIONS):
                parts.append("*")
        parts.append(token)
    return " ".join(parts)


def evaluate(formula: ast.expr, names: Mapping[str, Any]) -> Any:
    """The formula's value. Raises KeyError for a name that is not given, ValueError for what is no arithmetic."""
    if isinstance(formula, ast.Constant):
        return formula.value
    if isinstance(formula, ast.Name):
        return names[formula.id]
    if isinstance(formula, ast.UnaryOp) and isinstance(formula.op, ast.USub):
        return -evaluate(formula.operand, names)
    if isinstance(formula, ast.BinOp) and type(formula.op) in _OPERATORS:
        return _OPERATORS[type(formula.op)](evaluate(formula.left, names), evaluate(formula.right, names))
    if isinstance(formula, ast.Call) and isinstance(formula.func, ast.Name) and len(formula.args) == 1:
        return FUNCTIONS[formula.func.id](evaluate(formula.args[0], names))
    raise ValueError(f"no arithmetic: {ast.unparse(formula)}")
