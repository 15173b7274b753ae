"""Files are the nouns of the theory, and imports point down only: read off the source, nothing is run."""

import ast
import importlib
import inspect
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ppl_vae
from ppl_vae import presets

ROOT = Path(ppl_vae.__file__).parent
FLOORS = [
    {"errors", "parts", "data", "distributions", "networks", "history", "plots", "capture", "devices", "modes"},
    {"priors", "likelihoods", "encoders", "conditions", "model"},
    {"objectives", "presets", "batches", "semisupervised"},
    {"evaluation", "checkpoint", "state", "epochs", "settings"},
    {"training"},
    {"cli", "posthoc"},
    {"__main__", "__init__"},
]
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))


def module(path):
    """The dotted name inside the package: ``data.sources`` for data/sources.py, ``data`` for data/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


TREES = {module(path): ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in FILES}
PACKAGES = {module(path) for path in FILES if path.name == "__init__.py"}


def typing_only(tree):
    """The nodes under ``if TYPE_CHECKING:``, which never run."""
    guarded = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    return {id(inner) for node in guarded for inner in ast.walk(node)}


def imports(name):
    """What a module imports at any depth: dotted names, those of this package relative to it with a leading dot."""
    tree = TREES[name]
    skipped = typing_only(tree)
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
                continue
            here = [] if name == "__init__" else name.split(".")
            here = here if name in PACKAGES else here[:-1]
            base = here[: len(here) - (node.level - 1)] + (node.module.split(".") if node.module else [])
            yield from ("." + ".".join([*base, alias.name]) for alias in node.names)


def inside(name):
    """The modules of this package that a module imports."""
    for target in imports(name):
        target = target.removeprefix("ppl_vae.") if target.startswith("ppl_vae.") else target
        parts = target.removeprefix(".").split(".")
        if target.startswith(".") or parts[0] in FLOOR:
            found = [".".join(parts[:k]) for k in (len(parts), len(parts) - 1) if ".".join(parts[:k]) in TREES]
            yield from found[:1]


GRAPH = {name: set(inside(name)) - {name} for name in TREES}


def noun(name):
    return name.split(".")[0]


def test_the_reader_of_imports_reads():
    # A test of absence proves nothing if it cannot see presence.
    assert {"parts", "errors", "data"} <= {noun(n) for n in GRAPH["likelihoods.base"]}
    assert "model" in GRAPH["presets.systems"]
    assert {"priors", "likelihoods", "encoders"} <= {noun(name) for name in GRAPH["presets.tables"]}


def test_every_file_has_a_floor():
    assert {noun(name) for name in TREES} <= set(FLOOR)


@pytest.mark.parametrize("name", sorted(TREES))
def test_imports_point_down(name):
    above = [target for target in GRAPH[name] if FLOOR[noun(target)] > FLOOR[noun(name)]]
    assert not above, f"{name} (floor {FLOOR[noun(name)]}) imports {above}"


def test_the_graph_has_no_cycle():
    # `from . import sibling` inside a package imports the package first; its siblings are what counts.
    graph = {name: {t for t in targets if not name.startswith(f"{t}.")} for name, targets in GRAPH.items()}
    TopologicalSorter(graph).prepare()


def test_the_graph_of_nouns_has_no_cycle():
    graph = {n: {noun(t) for name in TREES if noun(name) == n for t in GRAPH[name]} - {n} for n in FLOOR}
    TopologicalSorter(graph).prepare()


def test_the_model_knows_no_concrete_part():
    def reach(name):
        return GRAPH[name] | {far for near in GRAPH[name] for far in reach(near)}

    assert not {noun(name) for name in reach("model")} & {"priors", "likelihoods", "encoders", "presets"}


def users_of(library):
    return {noun(name) for name in TREES for target in imports(name) if target.split(".")[0] == library}


def test_zuko_is_imported_in_one_place():
    assert users_of("zuko") == {"distributions"}


def test_pictures_know_no_model_and_only_pictures_know_matplotlib():
    assert users_of("matplotlib") <= {"plots"}
    known = {noun(t) for name in TREES if noun(name) == "plots" for t in GRAPH[name]}
    assert known <= {"plots", "errors", "history"}


def test_capture_knows_only_pyro_and_torch():
    assert {noun(t) for name in TREES if noun(name) == "capture" for t in GRAPH[name]} <= {
        "capture",
        "devices",
        "errors",
    }


@pytest.mark.parametrize("name", sorted(TREES))
def test_no_pickle(name):
    forbidden = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    assert not {target.split(".")[0] for target in imports(name)} & forbidden
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in {"torch.load", "torch.save", "torch.hub", "torch.jit"}, node.lineno
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant), node.value.lineno
            assert node.value.value is False, node.value.lineno


@pytest.mark.parametrize("name", sorted(TREES))
def test_errors_are_raised_and_never_swallowed(name):
    for node in ast.walk(TREES[name]):
        assert not isinstance(node, ast.Assert), f"assert in line {node.lineno}: users run python -O"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"


@pytest.mark.parametrize("name", sorted(TREES))
def test_no_code_is_run_from_strings(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec", "compile", "__import__"}, node.lineno


@pytest.mark.parametrize("name", sorted(TREES))
def test_nothing_global_is_set_at_import(name):
    setters = {"set_default_dtype", "manual_seed", "seed", "enable_validation", "set_num_threads", "filterwarnings"}
    setters |= {"simplefilter", "basicConfig", "clear_param_store", "set_printoptions", "set_default_device"}
    for node in TREES[name].body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = ast.unparse(node.value.func).split(".")[-1]
            assert called not in setters, node.lineno


def test_every_fork_of_the_generators_names_its_devices():
    """Torch warns of one that does not where there are several, and a warning is an error in a test."""
    here = Path(__file__).parent
    for path in [*FILES, *here.glob("*.py"), here.parent / "conftest.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "fork_rng":
                assert node.args or node.keywords, f"{path}, line {node.lineno}"


@pytest.mark.parametrize("name", sorted(TREES))
def test_every_file_opens_with_its_docstring(name):
    assert ast.get_docstring(TREES[name])


@pytest.mark.parametrize("name", sorted(set(TREES) - {"__main__"}))
def test_what_is_public_is_listed_and_exists(name):
    module = importlib.import_module("ppl_vae" if name == "__init__" else f"ppl_vae.{name}")
    listed = getattr(module, "__all__", None)
    assert listed is not None or noun(name) != name
    assert not [public for public in listed or () if not hasattr(module, public)]


PARTS = {
    f"{kind} {name}": part
    for kind, table in (presets.TABLES | {"network": presets.NETWORKS, "objective": presets.OBJECTIVES}).items()
    for name, part in table.items()
    if part.__module__.startswith("ppl_vae.")
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_part_says_its_formula_its_arguments_where_it_is_from_and_how_it_is_used(part):
    doc = inspect.getdoc(part)
    assert "math:" in doc
    assert "Arguments:" in doc
    assert "Reference" in doc
    assert ">>> " in doc
