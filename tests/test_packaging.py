"""The files around the library agree: pyproject.toml, constraints.txt, environment.yml, the Makefile, .ci/run."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import adaback_lite

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("test", "dask", "trl")  # what `make env` installs besides the dependencies
DEFAULT = PROJECT["dependencies"] + [r for extra in EXTRAS for r in PROJECT["optional-dependencies"][extra]]
EVERYTHING = DEFAULT + [r for extra in PROJECT["optional-dependencies"].values() for r in extra]


def pins(lines) -> dict[str, str]:
    """{canonical name: version} of lines like 'name==version'."""
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if re.match(r"[\w.-]+==", line))}


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text().splitlines())


@pytest.mark.parametrize("line", sorted(set(EVERYTHING)))
def test_constraints_pin_each_dependency_within_its_range(line):
    requirement = Requirement(line)
    assert Version(CONSTRAINTS[canonicalize_name(requirement.name)]) in requirement.specifier


def test_constraints_are_exact_and_name_no_place():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)  # no ranges, no +cpu, no files, no addresses
    assert len(CONSTRAINTS) == len(lines)


def test_torch_is_pinned_exactly_and_nothing_heavy_comes_with_it():
    assert [r for r in DEFAULT if r.startswith("torch")] == [f"torch=={CONSTRAINTS['torch']}"]
    assert not [name for name in CONSTRAINTS if name.startswith("nvidia") or name == "triton"]


def test_environment_yml_agrees():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"] and environment["channels"] == ["conda-forge"]
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (through_pip,) = (d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    python = next(d for d in conda if d.startswith("python=")).partition("=")[2]
    assert Version(python) in Requirement(f"python{PROJECT['requires-python']}").specifier
    assert "pip" in conda and "--constraint constraints.txt" in through_pip and "--editable ." in through_pip
    names = {canonicalize_name(Requirement(line).name) for line in DEFAULT}
    assert pins(through_pip) == {name: CONSTRAINTS[name] for name in names}


def test_make_env_installs_the_extras_that_the_tests_need():
    makefile = (ROOT / "Makefile").read_text()
    assert f"-e '.[{','.join(EXTRAS)}]' -c constraints.txt" in makefile
    assert "hypothesis" in "".join(PROJECT["dependencies"])  # the course uses it, not only the tests


def closure(lines) -> set[str]:
    """Canonical names of all that is installed with these requirements, by what the installed packages themselves say."""
    found: set[tuple[str, str]] = set()
    waiting = [(Requirement(line), "") for line in lines]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in {"", *map(canonicalize_name, requirement.extras)}:
            if (name, wanted) not in found:
                found.add((name, wanted))
                waiting += [(Requirement(line), wanted) for line in metadata.requires(name) or []]
    return {name for name, _ in found if not name.startswith(("nvidia", "triton", "cuda"))}  # torch's CUDA build brings these, its CPU build none


def test_tested_versions_are_the_pinned_ones():
    """`make test` installs by constraints.txt; elsewhere this tells what differs."""
    different = {}
    for name in closure(DEFAULT):
        here, pinned = metadata.version(name).partition("+")[0], CONSTRAINTS.get(name, "not at all")
        if here != pinned:
            different[name] = (here, pinned)
    assert not different


def imports(code: str) -> set[str]:
    """Names of the modules that Python code imports, without those of its own package."""
    nodes = list(ast.walk(ast.parse(code)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in names}


def test_all_that_is_imported_comes_with_the_dependencies():
    """With `pip install adaback-lite` alone, also what is imported late, and in the notebooks."""
    sources = {path: path.read_text() for path in (ROOT / "adaback_lite").rglob("*.py")}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [c["source"] for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        sources[path] = "\n".join("".join(c) for c in cells)
    assert len(sources) > 20
    comes, homes = closure(PROJECT["dependencies"]), metadata.packages_distributions()
    assert {"torch", "huggingface-hub", "pyarrow", "sympy", "antlr4-python3-runtime"} <= comes and not {"pytest", "trl"} & comes
    missing = set()
    for path, code in sources.items():
        for name in imports(code) - set(sys.stdlib_module_names) - {"adaback_lite"}:
            if not comes & {canonicalize_name(home) for home in homes.get(name, [])}:
                missing.add((path.name, name))
    assert missing == {("trl_train.py", "trl"), ("08_scaling_out.ipynb", "trl")}  # which runs where TRL is installed only, as trl.check_version says


def test_the_trl_extra_is_what_the_module_was_tested_with():
    from adaback_lite.trl import OLDEST, TOO_NEW

    assert PROJECT["optional-dependencies"]["trl"] == [f"trl>={OLDEST},<{TOO_NEW}"]


def test_version_is_the_same_everywhere():
    assert PROJECT["version"] == adaback_lite.__version__ == yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]


def test_licence_and_citation():
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == PROJECT["license"] == "MIT" and citation["title"] and citation["authors"]
    assert "2506.18110" in str(citation["references"])


@pytest.mark.parametrize("target", ["help", "env", "demo", "test", "lab", "bench", "clean"])
def test_makefile_has_the_target(target):
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE)
    assert re.search(rf"^\.PHONY:.*\b{target}\b", makefile, re.MULTILINE)


def test_makefile_refuses_an_old_or_missing_python(tmp_path):
    """In a folder of its own, so that the stamp is missing and nothing here is touched."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\nexit 1\n')
    old.chmod(0o755)
    result = subprocess.run(["make", "env", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2 and "Python 3.9.1 is too old: adaback-lite needs Python 3.11 or newer." in result.stderr
    result = subprocess.run(["make", "env", "PYTHON=no-such-python"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2 and "There is no 'no-such-python' here" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_make_test_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert commands == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]


def test_all_public_names_load_and_unknown_ones_do_not():
    for name in adaback_lite.__all__:
        assert getattr(adaback_lite, name) is not None
    assert set(adaback_lite.__all__) <= set(dir(adaback_lite))
    assert adaback_lite.curricula.AdaBack is adaback_lite.AdaBack
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = adaback_lite.trian


def test_public_names_stand_in_all_three_places():
    """__all__, the table of their homes, and the imports for editors."""
    module = ast.parse((ROOT / "adaback_lite" / "__init__.py").read_text())
    (for_editors,) = (node.body for node in module.body if isinstance(node, ast.If))
    homes = {alias.name: node.module for node in for_editors for alias in node.names}
    assert homes == adaback_lite._HOME and set(homes) == set(adaback_lite.__all__)
    assert {"PRESETS", "TextTask", "compare_runs", "evaluate_run", "preset", "train"} <= set(homes)


def test_import_is_light():
    """`import adaback_lite`, the presets and the command line's help load no torch, and nothing else that takes seconds."""
    heavy = "{'torch', 'transformers', 'datasets', 'pandas', 'rich', 'huggingface_hub', 'reasoning_gym', 'math_verify'}"
    code = f"import sys, adaback_lite as ab, adaback_lite.cli; ab.preset('cpu'), ab.PRESETS; ab.cli.make_parsers(); sys.exit(sorted({heavy} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_console_script_is_main():
    assert PROJECT["scripts"] == {"adaback": "adaback_lite.cli:main"}
