"""Arrows never point back: kernels ← pipeline ← train ← tools, and heavy imports enter at one place."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["kernels", "pipeline", "train", "tools"]
FIXED = {"pyproject.toml", "README.md", *LAYERS, "tests"}
VAGUE = {"utils", "helpers", "common", "base", "core"}


def tracked() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [ROOT / name for name in names.splitlines() if (ROOT / name).exists()]


def modules() -> list[Path]:
    scripts = [p for p in tracked() if p.parent == ROOT / "tools" and p.read_text(errors="replace").startswith("#!")]
    python = [p for p in scripts if "python3" in p.read_text().splitlines()[0]]
    return [p for p in tracked() if p.suffix == ".py" and p.relative_to(ROOT).parts[0] in LAYERS] + python


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its layer"
            yield node.module or ""


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_its_layer_and_those_below(path: Path) -> None:
    layer = LAYERS.index(path.relative_to(ROOT).parts[0])
    above = [name for name in imports(path) if name.split(".")[0] in LAYERS[layer + 1 :]]
    assert not above, f"{path.relative_to(ROOT)} imports {above} from a layer above"
    if layer == 0:
        assert not [name for name in imports(path) if name.split(".")[0] in LAYERS[1:]]


@pytest.mark.parametrize(
    ("dependency", "home"),
    [
        ("numba", "kernels/jit.py"),
        ("typer", "pipeline/console.py"),
        ("matplotlib", "pipeline/pictures.py"),
        ("nvidia.dali", "pipeline/loaders/dali.py"),
        ("ffcv", "pipeline/loaders/ffcv.py"),
        ("webdataset", "pipeline/loaders/webdataset.py"),
        ("ray", "pipeline/ray_engine.py"),
        ("fsspec", "pipeline/storage.py"),
    ],
)
def test_a_heavy_dependency_enters_at_one_place(dependency: str, home: str) -> None:
    users = [
        str(path.relative_to(ROOT))
        for path in modules()
        if "benchmarks" not in path.parts  # which measure our parts beside the libraries themselves
        and any(name == dependency or name.startswith(dependency + ".") for name in imports(path))
    ]
    assert [user for user in users if user != home] == []


def test_the_walk_sees_the_code_it_judges() -> None:
    assert {"numba"} <= {name for path in modules() for name in imports(path)}
    assert len(modules()) > 30


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [path for path in modules() if path.stem in VAGUE or VAGUE & set(path.relative_to(ROOT).parts)] == []


def test_the_top_level_is_the_one_that_was_agreed() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert {name for name in top if not name.startswith(".")} == FIXED


def test_commands_start_without_torch() -> None:
    # torch takes seconds to import; help texts and usage errors must not wait for it.
    code = "import sys, train.cli, pipeline.builder, pipeline.sources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
