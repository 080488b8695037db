"""The repository keeps its own habits: those that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pystreamlog"
MODULES = sorted(PACKAGE.rglob("*.py"))

SPECIAL_MODULES = {"__init__", "__main__"}

# A name that would fit any project says nothing about what lies in the file.
SHAPELESS_NAMES = {"base", "common", "core", "helper", "helpers", "impl", "manager", "new", "util", "utils"}

# Each of these can run code that its input names, and the input may be a directory from a stranger.
CODE_RUNNING_MODULES = {"cloudpickle", "dill", "marshal", "pickle", "shelve", "yaml"}
CODE_RUNNING_BUILTINS = {"__import__", "eval", "exec"}

LINE_LIMIT = 500
# Path below the package -> why it is one room and not two.
LONG_MODULES: dict[str, str] = {}

TEXT_SUFFIXES = {".cfg", ".ini", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}
TEXTS = sorted(
    path
    for top in ("pystreamlog", "tests", "examples", "benches", "docs", ".ci", ".github", "")
    for path in ((ROOT / top).rglob("*") if top else ROOT.glob("*"))
    if path.is_file() and (path.suffix in TEXT_SUFFIXES or path.parent.name == ".ci")
)
# Home directories, and the folders that build machines work in.
MACHINE_PATH = re.compile(r"(?<![\w.~*-])/(?:home|Users|root|work|workspaces?|builds?)/\w|[A-Z]:\\Users\\")
NOTE_TO_SELF = re.compile(r"\b(?:TO(?:DO)|FIX(?:ME)|XX(?:X))\b")

PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.is_file()]
PYTHON_BLOCK = re.compile(
    r"^(?P<indent>[ \t]*)```python\b[^\n]*\n(?P<code>.*?)^(?P=indent)```[ \t]*$", re.DOTALL | re.MULTILINE
)


def name_in_repository(path: Path) -> str:
    """The path as a reader of the repository knows it."""
    return path.relative_to(ROOT).as_posix()


def lines_matching(pattern: re.Pattern[str], text: str) -> list[str]:
    """Each line with a match, with its number."""
    return [f"{number}: {line}" for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


def assigned_at_top(tree: ast.Module, name: str) -> bool:
    """Whether the module itself, not a function in it, assigns the name."""
    targets = []
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            targets += statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets.append(statement.target)
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def imported_roots(tree: ast.Module) -> set[str]:
    """The top-level packages that the module imports, anywhere in it."""
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            roots.add(node.module.partition(".")[0])
    return roots


@pytest.fixture(params=MODULES, ids=name_in_repository)
def module(request):
    """Each module of the package."""
    return request.param


@pytest.fixture
def tree(module):
    """The module's syntax tree."""
    return ast.parse(module.read_text("utf-8"), str(module))


def test_the_package_has_modules():
    """A run that finds no module to look at would pass every other test here."""
    assert PACKAGE / "errors.py" in MODULES


def test_module_has_no_underscore(module):
    """What is private is left out of `__all__`; file names do not say it again."""
    assert module.stem in SPECIAL_MODULES or not module.stem.startswith("_")


def test_module_is_named_after_what_it_holds(module):
    """Neither a module nor a folder has a name that would fit anything."""
    relative = module.relative_to(PACKAGE)
    assert not SHAPELESS_NAMES & {relative.stem, *relative.parts[:-1]}


def test_folder_with_modules_is_a_package(module):
    """Without an `__init__.py` a folder has no `__all__`, and the import contracts do not see it."""
    assert (module.parent / "__init__.py").is_file()


def test_module_has_a_docstring(tree):
    """The first thing in a module is its purpose."""
    assert ast.get_docstring(tree)


def test_module_has_an_all(module, tree):
    """Every module that can be imported says what is public."""
    assert module.name == "__main__.py" or assigned_at_top(tree, "__all__")


def test_module_is_one_room(module):
    """A module past the limit is two rooms, or has its reason in `LONG_MODULES`; a reason not needed any more goes."""
    is_long = len(module.read_text("utf-8").splitlines()) > LINE_LIMIT
    assert is_long == (module.relative_to(PACKAGE).as_posix() in LONG_MODULES)


def test_long_modules_exist():
    """No reason stays behind for a module that was renamed or deleted."""
    assert {name for name in LONG_MODULES if not (PACKAGE / name).is_file()} == set()


def test_module_imports_nothing_that_runs_stored_code(tree):
    """A hostile directory must never execute code: no pickle or its like."""
    assert not CODE_RUNNING_MODULES & imported_roots(tree)


def test_module_logs_to_the_one_logger(module):
    """Who sets up the logger `pystreamlog` gets all there is."""
    names = re.findall(r"getLogger\(([^)]*)\)", module.read_text("utf-8"))
    assert set(names) <= {'"pystreamlog"'}


def test_importing_sets_up_no_logging():
    """A handler, a level and a filter are the program's to choose."""
    program = (
        "import logging, pystreamlog; it = logging.getLogger('pystreamlog'); print(it.handlers, it.level, it.filters)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[] 0 []\n"


def test_module_evaluates_no_text(tree):
    """Nor `eval`, `exec` or `__import__`, under any name."""
    assert not CODE_RUNNING_BUILTINS & {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


@pytest.mark.parametrize("path", TEXTS, ids=name_in_repository)
def test_text_names_no_machine(path):
    """A path of somebody's machine means nothing on another."""
    assert lines_matching(MACHINE_PATH, path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", TEXTS, ids=name_in_repository)
def test_text_has_no_note_to_self(path):
    """What is left to do stands in an issue, where somebody looks."""
    assert lines_matching(NOTE_TO_SELF, path.read_text("utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=name_in_repository)
def test_python_blocks_compile(page):
    """Every Python block of a page is a whole program; whether it runs is another test's matter."""
    text = page.read_text("utf-8")
    for block in PYTHON_BLOCK.finditer(text):
        # Blank lines in front keep the page's line numbers in a SyntaxError.
        lines_before = text.count("\n", 0, block.start("code"))
        compile("\n" * lines_before + textwrap.dedent(block["code"]), str(page), "exec", dont_inherit=True)
