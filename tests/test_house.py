"""The order of the rooms, and their measures."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "dimat_jax"
ORDER = """registry config types metrics jaxprs partition topology datasets models tasks symmetries
spectral matching execution training merging algorithms simulation estimate checkpoints report
runs""".split()
"""Rooms and flat modules; each imports only from those before it."""
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
MAX_FLAT = 8
MAX_FUNCTION_LINES = 60
MAX_CODE_LINES = 350


def room_of(path: pathlib.Path) -> str:
    """The room, or flat module, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: pathlib.Path) -> set[str]:
    """The rooms that a file imports from, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "dimat_jax":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("dimat_jax."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("dimat_jax.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_room_imports_one_after_it(path):
    allowed = ORDER[: ORDER.index(room_of(path)) + 1]
    assert imported_rooms(path) <= set(allowed)


def test_every_room_has_its_place_and_says_what_it_is_for():
    rooms = {room_of(path) for path in MODULES}
    assert rooms == set(ORDER)
    for room in rooms:
        init = PACKAGE / room / "__init__.py"
        if init.exists():
            said = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
            assert "ay import" in said, f"{room} does not say what it may import"


def test_few_files_lie_flat():
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_FLAT


def code_lines(path: pathlib.Path, node: ast.AST | None = None) -> int:
    """Lines of code of a file, or of a function: no blank lines, comments or docstrings."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    silent = set()
    for found in ast.walk(tree):
        body = getattr(found, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            silent |= set(range(first.lineno, first.end_lineno + 1))
    start, end = (1, len(text.splitlines())) if node is None else (node.lineno, node.end_lineno)
    lines = enumerate(text.splitlines(), 1)
    return sum(
        start <= number <= end
        and number not in silent
        and bool(line.strip())
        and not line.strip().startswith("#")
        for number, line in lines
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path):
    assert code_lines(path) <= MAX_CODE_LINES
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert code_lines(path, node) <= MAX_FUNCTION_LINES, node.name


def test_no_test_module_imports_another():
    tests = pathlib.Path(__file__).parent
    for path in tests.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.module.split(".")[-1].startswith("test_"), path
