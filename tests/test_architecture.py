"""Who may import whom, and how long things may get. The table is the design; a change to it is a change of design."""

from __future__ import annotations

import ast
import inspect
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import xai_callbacks

PACKAGE = "xai_callbacks"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE

TO_THE_LEFT_OF_AUDIT = {
    "errors", "files", "randomness", "tasks", "probes", "questions", "access", "gradients", "record", "history",
    "interventions", "explainers", "novelty", "metrics", "trials", "measures",
}  # fmt: skip
UP_TO_CALLBACKS = TO_THE_LEFT_OF_AUDIT | {"audit", "rules", "render", "gallery", "sinks", "_lightning"}

# Every room may import these three; they import nothing of ours.
FOUNDATIONS = {"errors", "files", "randomness"}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "randomness": set(),
    "record": {"errors", "files"},
    "history": {"record"} | FOUNDATIONS,
    "tasks": FOUNDATIONS,
    "probes": {"tasks"} | FOUNDATIONS,
    "questions": {"tasks"} | FOUNDATIONS,
    "access": {"tasks"} | FOUNDATIONS,
    "gradients": {"access"} | FOUNDATIONS,
    "explainers": {"questions", "access"} | FOUNDATIONS,
    "novelty": {"access", "explainers", "gradients", "questions", "tasks"} | FOUNDATIONS,
    "interventions": {"probes"} | FOUNDATIONS,
    "metrics": {"interventions", "probes", "record", "tasks"} | FOUNDATIONS,
    "trials": {"interventions", "metrics", "probes", "record", "tasks"} | FOUNDATIONS,
    "measures": {
        "metrics", "record", "history", "probes", "interventions", "explainers", "questions", "access", "tasks",
    } | FOUNDATIONS,
    "audit": TO_THE_LEFT_OF_AUDIT,
    "rules": {"record", "history"} | FOUNDATIONS,
    "render": FOUNDATIONS,
    "gallery": {"metrics", "render", "history", "record", "probes", "tasks"} | FOUNDATIONS,
    "sinks": {"gallery", "history", "record"} | FOUNDATIONS,
    "canary": TO_THE_LEFT_OF_AUDIT | {"audit", "rules"},
    "compare": {"history", "metrics", "probes", "record"} | FOUNDATIONS,
    "report": {"compare", "gallery", "history", "metrics", "probes", "record", "render", "tasks"} | FOUNDATIONS,
    "_lightning": FOUNDATIONS,
    # Modules to train, ready made.
    "reference": {"novelty", "_lightning"} | FOUNDATIONS,
    # Short trainings, of any callback.
    "doctor": {"_lightning"} | FOUNDATIONS,
    "checkpoints": FOUNDATIONS,
    "callbacks": UP_TO_CALLBACKS | {"checkpoints"},
    "demo": UP_TO_CALLBACKS | {"callbacks"},
    "cli": UP_TO_CALLBACKS | {"callbacks", "checkpoints", "compare", "demo", "doctor", "report"},
    "__init__": UP_TO_CALLBACKS
    - {"_lightning"} | {"canary", "callbacks", "checkpoints", "compare", "doctor", "report"},
}  # fmt: skip

LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}
NEVER = {"cv2", "matplotlib"}
NOT_WHEN_IMPORTED = {"captum", "mlflow", "pandas", "scipy", "sklearn", "timm", "transformers", "wandb"} | LIGHTNING

LONGEST_MODULE = 400
LONGEST_FUNCTION = 60
MOST_PARAMETERS = 10


class Import(NamedTuple):
    """One imported module, or one name from a module, as a dotted path."""

    target: str
    line: int
    when_imported: bool  # it runs as the module is imported: neither in a function nor under TYPE_CHECKING


def imports(tree: ast.AST, when_imported: bool = True) -> Iterator[Import]:
    """Every import below a node, wherever it hides; `from a import b` gives `a.b`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, when_imported) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            yield from (Import(f"{source}.{alias.name}", node.lineno, when_imported) for alias in node.names)
        elif isinstance(node, ast.Call) and (target := _dynamic_target(node)):
            yield Import(target, node.lineno, when_imported)
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_type_checking(node)
        yield from imports(node, when_imported and not deferred)


def _dynamic_target(call: ast.Call) -> str | None:
    called = ast.unparse(call.func)
    if called not in {"__import__", "import_module", "importlib.import_module"} or not call.args:
        return None
    argument = call.args[0]
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else None


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def violations(room: str, source: str) -> list[str]:
    """What is wrong with one module of a room, one sentence each."""
    tree = ast.parse(source)
    found = [message for used in imports(tree) if (message := _import_violation(room, used))]
    lines = len(source.splitlines())
    if lines > LONGEST_MODULE:
        found.append(f"the module has {lines} lines, more than {LONGEST_MODULE}")
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return found + [
        f"line {function.lineno}: `{function.name}` has {_length(function)} lines, more than {LONGEST_FUNCTION}"
        for function in functions
        if _length(function) > LONGEST_FUNCTION
    ]


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    length = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        length -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return length


def _import_violation(room: str, used: Import) -> str | None:
    where = f"line {used.line}: `{used.target}`"
    top, _, rest = used.target.partition(".")
    if not top:
        return f"{where} is a relative import"
    if top == PACKAGE:
        return _room_violation(room, rest.partition(".")[0], where)
    if top in LIGHTNING and room != "_lightning":
        return f"{where}: only `_lightning` imports Lightning"
    if top in NEVER:
        return f"{where} is never imported by the package"
    if top in NOT_WHEN_IMPORTED and used.when_imported and room != "_lightning":
        return f"{where} is heavy: import it where it is used"
    return None


def _room_violation(room: str, other: str, where: str) -> str | None:
    if room not in MAY_IMPORT:
        return f"room `{room}` is not in the table of this test"
    if other == room:
        return None
    if other not in MAY_IMPORT:
        return f"{where}: a room imports from rooms, but `{other}` is none"
    if other not in MAY_IMPORT[room]:
        allowed = ", ".join(sorted(MAY_IMPORT[room])) or "nothing of ours"
        return f"{where}: `{room}` may import {allowed}"
    return None


MODULES = sorted(ROOT.rglob("*.py"))


def _room_of(module: Path) -> str:
    return module.relative_to(ROOT).parts[0].removesuffix(".py")


def test_the_package_is_found():
    assert ROOT / "errors.py" in MODULES


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_module_keeps_to_the_design(module: Path):
    assert _room_of(module) in MAY_IMPORT, f"room `{_room_of(module)}` is not in the table of this test"
    assert violations(_room_of(module), module.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("room", "source", "complaint"),
    [
        ("probes", "from xai_callbacks.render import overlay", "`probes` may import errors"),
        ("probes", "from xai_callbacks import render", "`probes` may import errors"),
        ("probes", "import xai_callbacks.render.overlay as o", "`probes` may import errors"),
        ("probes", "def f():\n    from xai_callbacks.audit import Auditor", "`probes` may import errors"),
        ("errors", "import importlib\nimportlib.import_module('xai_callbacks.probes')", "may import nothing of ours"),
        ("metrics", "if TYPE_CHECKING:\n    from xai_callbacks.audit import Auditor", "`metrics` may import"),
        ("audit", "from xai_callbacks import _lightning", "`audit` may import"),
        ("sinks", "from xai_callbacks import AuditCallback", "`AuditCallback` is none"),
        ("callbacks", "from xai_callbacks.compare import compare", "`callbacks` may import"),
        ("callbacks", "import pytorch_lightning", "only `_lightning` imports Lightning"),
        ("audit", "def f():\n    from lightning.pytorch import Callback", "only `_lightning` imports Lightning"),
        ("render", "def f():\n    import matplotlib.pyplot as plt", "never imported"),
        ("explainers", "try:\n    import captum\nexcept ImportError:\n    pass", "import it where it is used"),
        ("probes", "from .files import load", "is a relative import"),
        ("helpers", "from xai_callbacks.errors import AuditError", "room `helpers` is not in the table"),
        ("probes", "x = 1\n" * 401, "the module has 401 lines"),
        ("probes", "def f():\n" + "    x = 1\n" * 60, "`f` has 61 lines"),
    ],
)
def test_the_check_sees_a_breach(room: str, source: str, complaint: str):
    found = violations(room, source)

    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("probes", "from xai_callbacks.probes.files import load"),
        ("sinks", "from xai_callbacks import errors, gallery"),
        ("callbacks", "from xai_callbacks._lightning import Callback"),
        ("_lightning", "import pytorch_lightning"),
        ("explainers", "def f():\n    import captum"),
        ("explainers", "if TYPE_CHECKING:\n    import captum"),
        ("probes", 'def f():\n    """Doc.\n' + "\n" * 50 + '    """\n' + "    x = 1\n" * 59),
    ],
)
def test_the_check_lets_the_design_pass(room: str, source: str):
    assert violations(room, source) == []


# ---- constructors

# The builder of probes takes all that is known of them; a record is a result, which nobody writes out.
NOT_COUNTED = {"ProbeSet", "AuditRecord"}


def crowded(classes: dict[str, type]) -> dict[str, int]:
    """How many parameters the constructors have that have more than are readable."""
    counts = {name: len(inspect.signature(each).parameters) for name, each in classes.items() if _is_made(each)}
    return {name: count for name, count in counts.items() if count > MOST_PARAMETERS}


def _is_made(cls: type) -> bool:
    """Whether a class says how it is made; errors have the constructor of Python."""
    return not issubclass(cls, BaseException)


def test_public_constructors_take_few_parameters():
    public = {name: getattr(xai_callbacks, name) for name in xai_callbacks.__all__}
    classes = {name: each for name, each in public.items() if isinstance(each, type) and name not in NOT_COUNTED}

    assert len(classes) > 70
    assert crowded(classes) == {}
    assert public.keys() >= NOT_COUNTED


def test_the_linter_counts_as_this_test_does():
    settings = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["ruff"]["lint"]["pylint"]["max-args"] == MOST_PARAMETERS


def test_the_count_sees_a_crowd():
    class Few:
        def __init__(self, a, b, c, d, e, /, f, g, *, h, i, j): ...

    class Crowd(Few):
        def __init__(self, a, b, c, d, e, /, f, g, *, h, i, j, k=0): ...

    class Heir(Crowd):
        pass

    assert crowded({"Few": Few, "Crowd": Crowd, "Heir": Heir, "KeyError": KeyError}) == {"Crowd": 11, "Heir": 11}
