"""Nothing in the package reads a format that can run code, or hands words to a shell."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "neat_backend"
NEVER = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "joblib.load",
    "marshal.loads",
    "marshal.load",
    "shelve.open",
    "pickle.load",
    "pickle.loads",
    "dill.load",
    "dill.loads",
}


def dangers(source: str) -> list[str]:
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = ast.unparse(call.func)
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if (
            name in NEVER
            or (name == "torch.load" and given.get("weights_only") != "True")
            or given.get("allow_pickle", "False") != "False"
            or given.get("shell", "False") != "False"
        ):
            found.append(f"line {call.lineno}: {ast.unparse(call)}")
    return found


@pytest.mark.parametrize(
    "source",
    ["eval(x)", "torch.load(f)", "np.load(f, allow_pickle=True)", "run(x, shell=True)", "pickle.loads(b)"],
)
def test_the_scan_sees(source: str) -> None:
    assert dangers(source)


def test_the_package_has_none_of_them() -> None:
    found = {str(path): dangers(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert {path: lines for path, lines in found.items() if lines} == {}
