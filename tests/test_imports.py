"""Dependencies point one way, and what needs no torch does not load it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"server", "probes", "routing_policies", "offline"}
MAY_IMPORT = {
    "routing_policies": {"routing_policies"},
    "probes": {"probes"},
    "server": {"server", "probes", "routing_policies"},
    "offline": {"offline", "probes", "routing_policies"},
}
EXCEPTIONS = {"offline": {"server.config", "server.sections", "server.ledger"}}
HEAVY = {"torch", "transformers", "vllm", "pandas", "sklearn", "sqlalchemy", "alembic"}
IMPURE = {"torch", "transformers", "asyncio", "time", "os", "pathlib", "socket", "httpx", "subprocess", "pandas"}


def imported_modules(file: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


@pytest.mark.parametrize("package", sorted(OURS))
def test_import_direction(package: str) -> None:
    allowed = MAY_IMPORT[package]
    for file in (ROOT / package).rglob("*.py"):
        for module in imported_modules(file):
            top = module.partition(".")[0]
            excepted = any(module == one or module.startswith(one + ".") for one in EXCEPTIONS.get(package, ()))
            assert top not in OURS or top in allowed or excepted or module == "server", f"{file}: imports {module}"


def test_policies_are_pure() -> None:
    for file in (ROOT / "routing_policies").glob("*.py"):
        tops = {module.partition(".")[0] for module in imported_modules(file)}
        assert not tops & IMPURE, f"{file}: imports {tops & IMPURE}"


def test_the_server_package_is_ours() -> None:
    import server

    assert server.__file__ is not None
    assert Path(server.__file__).parent == ROOT / "server"


@pytest.mark.parametrize(
    "module",
    [
        "probes.base",
        "probes.artifact",
        "probes.calibration",
        "probes.engine.vllm_engine",
        "probes.engine.vllm_plugin",
        "routing_policies.utility",
        "server.app",
        "server.__main__",
        "server.commands.probe_server",
    ],
)
def test_loads_without_torch(module: str) -> None:
    script = f"import sys, {module}; heavy = {HEAVY} & set(sys.modules);sys.exit(str(heavy) if heavy else 0)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
