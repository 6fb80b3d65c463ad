"""What docs/security.md promises about the code itself: nothing that is read is ever run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(file for folder in ("dcae_core", "dcae_cli") for file in (ROOT / folder).rglob("*.py"))
NEVER = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "input"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "marshal.load", "shelve.open"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "joblib.load", "tarfile.TarFile.extractall"),
    *("torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
}
REQUIRED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
REQUIRED["numpy.load"] = REQUIRED["np.load"]
FORBIDDEN_METHODS = {"extractall", "read_pickle", "to_pickle"}


def faults_in(tree: ast.AST) -> Iterator[str]:
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name in NEVER or name.rpartition(".")[2] in FORBIDDEN_METHODS:
            yield f"line {call.lineno}: {name}"
        if keywords.get("shell", "False") != "False":
            yield f"line {call.lineno}: {name} with a shell"
        if keywords.get("allow_pickle", "False") != "False":
            yield f"line {call.lineno}: {name} with pickles"
        if name in REQUIRED and keywords.get(REQUIRED[name][0]) != str(REQUIRED[name][1]):
            yield f"line {call.lineno}: {name} without {REQUIRED[name][0]}={REQUIRED[name][1]}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(file: Path) -> None:
    assert not list(faults_in(ast.parse(file.read_text())))


@pytest.mark.parametrize(
    "code",
    [
        *("eval(x)", "exec(x)", "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p)", "yaml.load(x)"),
        *("np.load(p, allow_pickle=True)", "subprocess.run(x, shell=True)", "os.system(x)", "pickle.loads(x)"),
        *("np.savez(p, allow_pickle=True)", "archive.extractall(p)", "torch.load(p, weights_only=trusted)"),
    ],
)
def test_a_broken_promise_is_seen(code: str) -> None:
    assert list(faults_in(ast.parse(code)))


@pytest.mark.parametrize("code", ["torch.load(p, weights_only=True)", "np.load(p, allow_pickle=False)", "model.eval()"])
def test_a_kept_promise_is_seen(code: str) -> None:
    assert not list(faults_in(ast.parse(code)))
