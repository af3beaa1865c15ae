"""Nothing reads files with what could run them. The allow-list reader is no exception: it has no unpickler either."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("server", "probes", "routing_policies", "offline", "docker")
NEVER_IMPORTED = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve", "skops"}
NEVER_CALLED = {
    "eval", "exec", "read_pickle", "joblib.load", "torch.hub.load", "torch.jit.load", "yaml.full_load", "yaml.load",
    "yaml.unsafe_load",
}  # fmt: skip
NEEDS = {"torch.load": "weights_only", "from_pretrained": "use_safetensors"}
"""Calls that are safe only where this argument is True."""
FORBIDS = {"np.load": "allow_pickle", "numpy.load": "allow_pickle"}
"""Calls that are safe only without it, or where it is False."""
DECLINES = {"from_pretrained": "trust_remote_code"}
"""Calls that are safe only where this argument is given as False: without it, Transformers asks on the terminal."""
NO_WEIGHTS = ("AutoConfig.", "AutoTokenizer.")


def faults(source: str) -> Iterator[str]:
    """What could run a file, in some Python source."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module, names):
                modules = [str(module), *(f"{module}.{alias.name}" for alias in names)]
            case ast.Call():
                modules = []
                yield from _call_faults(node)
            case _:
                continue
        for module in modules:
            if module.partition(".")[0] in NEVER_IMPORTED or module in {*NEVER_CALLED, *NEEDS, *FORBIDS}:
                yield f"line {node.lineno}: imports {module}"


def _call_faults(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    arguments = {keyword.arg: keyword.value for keyword in call.keywords}
    for called in {name, name.rpartition(".")[2]} - ({"eval", "exec"} - {name}):  # model.eval() is harmless
        if called in NEVER_CALLED:
            yield f"line {call.lineno}: calls {name}"
        if called in NEEDS and not name.startswith(NO_WEIGHTS) and not _is(arguments.get(NEEDS[called]), True):
            yield f"line {call.lineno}: calls {name} without {NEEDS[called]}=True"
        if called in FORBIDS and not _is(arguments.get(FORBIDS[called]), None, False):
            yield f"line {call.lineno}: calls {name} with {FORBIDS[called]}"
        if called in DECLINES and not _is(arguments.get(DECLINES[called]), False):
            yield f"line {call.lineno}: calls {name} without {DECLINES[called]}=False"


def _is(argument: ast.expr | None, *values: bool | None) -> bool:
    """Whether an argument is one of some constants; one that is not given is None."""
    constant = argument.value if isinstance(argument, ast.Constant) else argument
    return any(constant is value for value in values)


def test_nothing_unpickles() -> None:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 50
    found = [f"{file.relative_to(ROOT)}: {fault}" for file in files for fault in faults(file.read_text("utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import joblib.numpy_pickle",
        "from pickle import Unpickler",
        "from joblib import load",
        "from torch import load",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=safe)",
        "np.load(file, allow_pickle=True)",
        "numpy.load(file, allow_pickle=trusted)",
        "yaml.load(text, Loader=yaml.Loader)",
        "pandas.read_pickle(file)",
        "exec(text)",
        "eval(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
        "AutoModel.from_pretrained(name, use_safetensors=True)",
        "AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=True)",
        "AutoTokenizer.from_pretrained(name, trust_remote_code=True)",
        "AutoTokenizer.from_pretrained(name)",
    ],
)
def test_faults_are_found(source: str) -> None:
    assert list(faults(source))


def test_what_is_harmless_is_let_pass() -> None:
    harmless = """
model.eval()
json.load(file)
np.load(file)
np.load(file, allow_pickle=False)
yaml.safe_load(text)
torch.load(file, weights_only=True)
AutoTokenizer.from_pretrained(name, trust_remote_code=False)
AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
"""
    assert not list(faults(harmless))
