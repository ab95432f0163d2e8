"""Which way things point, and what every public thing says of itself, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("streaming", "backends", "adapters")
FORBIDDEN = {
    "streaming": {"backends", "adapters"},
    "adapters": {"backends"},
    "backends": {"adapters"},
}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
SHAPES = {"Float", "Int", "UInt8", "Bool", "Shaped", "Num", "Frames", "Latents", "Tokens", "Features"}


def names(path):
    return str(path.relative_to(ROOT))


def imports(tree):
    """(module, imported name) of every import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which way they point"
            for alias in node.names:
                yield node.module, alias.name


def wrong_arrows(package, source):
    return [m for m, _ in imports(ast.parse(source)) if m.split(".")[0] in FORBIDDEN[package]]


@pytest.mark.parametrize("path", FILES, ids=names)
def test_no_arrow_points_the_wrong_way(path):
    assert wrong_arrows(path.relative_to(ROOT).parts[0], path.read_text()) == []


def model_imports(source):
    """What a source takes from diffusers beside schedulers, and from transformers."""
    found = []
    for module, name in imports(ast.parse(source)):
        if module.split(".")[0] in ("transformers", "open_clip", "timm"):
            found.append(module)
        elif module.split(".")[0] == "diffusers" and not (module == "diffusers" and _is_scheduler(name)):
            found.append(f"{module}.{name}")
    return found


def _is_scheduler(name):
    return name is not None and name.endswith(("Scheduler", "SchedulerMixin"))


@pytest.mark.parametrize("path", [path for path in FILES if path.is_relative_to(ROOT / "streaming")], ids=names)
def test_the_contracts_know_no_model(path):
    assert model_imports(path.read_text()) == []


def undocumented(source):
    """Public functions, methods and classes without a docstring, and any function without a return annotation.

    The tests of a conformance suite say by their names what they are.
    """
    found = []

    def visit(node, public, inside_function):
        for child in ast.iter_child_nodes(node):
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function or isinstance(child, ast.ClassDef):
                named = public and not child.name.startswith("_") and not inside_function
                if named and not ast.get_docstring(child) and not child.name.startswith("test_"):
                    found.append(f"{child.name} (line {child.lineno}) has no docstring")
                if is_function and child.returns is None:
                    found.append(f"{child.name} (line {child.lineno}) has no return annotation")
                visit(child, named, inside_function or is_function)
            else:
                visit(child, public, inside_function)

    tree = ast.parse(source)
    if source.strip() and not ast.get_docstring(tree):
        found.append("the module has no docstring")
    visit(tree, True, False)
    return found


@pytest.mark.parametrize("path", FILES, ids=names)
def test_what_is_public_is_documented_and_typed(path):
    assert undocumented(path.read_text()) == []


def late_shapes(source):
    """Shape annotations that `from __future__ import annotations` would turn into unread strings."""
    tree = ast.parse(source)
    late = any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in ast.walk(tree))
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} & SHAPES
    return sorted(used) if late else []


@pytest.mark.parametrize("path", FILES, ids=names)
def test_shapes_are_annotated_where_they_can_be_checked(path):
    source = path.read_text()
    assert late_shapes(source) == []
    assert "@jaxtyped" not in source and "@beartype" not in source


def test_every_file_is_looked_at():
    for package in PACKAGES:
        assert any(path.relative_to(ROOT).parts[0] == package for path in FILES)
    assert len(FILES) > 20


def test_the_checks_find_what_they_are_for():
    assert wrong_arrows("streaming", "def f():\n    from backends.modelscope import ModelScope") == [
        "backends.modelscope"
    ]
    assert wrong_arrows("adapters", "import backends") == ["backends"]
    assert wrong_arrows("backends", "from streaming import keys\nimport adaptersx") == []
    assert model_imports("from diffusers import DDIMScheduler, UNet3DConditionModel") == [
        "diffusers.UNet3DConditionModel"
    ]
    assert model_imports("import diffusers") == ["diffusers.None"]
    assert model_imports("from diffusers.models import X") == ["diffusers.models.X"]
    assert undocumented('"""A."""\ndef f():\n    pass') == [
        "f (line 2) has no docstring",
        "f (line 2) has no return annotation",
    ]
    assert undocumented('"""A."""\nclass C:\n    """B."""\n    def _p(self) -> None: ...') == []
    assert late_shapes("from __future__ import annotations\nx: Float") == ["Float"]


def test_no_module_hides_what_the_package_exports():
    """An imported submodule becomes an attribute of its package and would stand before a function of the same name."""
    import streaming

    assert not {path.stem for path in (ROOT / "streaming").iterdir()} & set(streaming.__all__)
