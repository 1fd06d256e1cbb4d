"""The code that travels with a registered model: a module with all of ours that it imports, and pins of the rest.

It gets a package name of its own that its content decides, so it meets neither this checkout, nor another package
called `models`, nor the code of another version in the same process.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path

OURS = ("models", "pipeline")
IMPORT = re.compile(rf"^(\s*from )({'|'.join(OURS)})(?=[.\s])", re.MULTILINE)


@dataclass(frozen=True)
class Packed:
    """A package that was written, and what it needs."""

    folder: Path
    module: str
    """Name by which the packed module is imported once the folder's parent is on the path."""
    requirements: tuple[str, ...]
    """Distributions that the code imports, pinned to what is installed here: "torch==2.13.0"."""


def pack(module: str, parent: Path) -> Packed:
    """Write the module of ours, and those of ours that it imports, as a package below the parent folder."""
    sources, foreign = _closure(module)
    text = {name: source.read_text() for name, source in sorted(sources.items())}
    content = "\0".join(f"{name}\0{text[name]}" for name in text)
    package = f"pixelcnn_ray_{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    for name, source in sources.items():
        path = parent / package / Path(*name.split("."))
        path = path / "__init__.py" if source.name == "__init__.py" else path.with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(IMPORT.sub(rf"\1{package}.\2", text[name]))
    (parent / package / "__init__.py").touch()
    return Packed(parent / package, f"{package}.{module}", _pins(foreign))


def _closure(module: str) -> tuple[dict[str, Path], set[str]]:
    """Files by name of the module and of all of ours below it, and the top packages of others that they import."""
    waiting, sources, foreign = [module], dict[str, Path](), set[str]()
    while waiting:
        name = waiting.pop()
        if name in sources:
            continue
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        assert spec.origin is not None, name
        sources[name] = Path(spec.origin)
        if "." in name:
            waiting.append(name.rpartition(".")[0])
        for imported in _imports(sources[name]):
            if imported.split(".")[0] in OURS:
                waiting.append(imported)
            else:
                foreign.add(imported.split(".")[0])
    return sources, foreign - sys.stdlib_module_names


def _imports(source: Path) -> set[str]:
    """Names of the modules that a file imports; ours must be imported by `from MODULE import NAME`, so as to move."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{source}: a relative import can't be packed"
            assert node.module not in OURS, f"{source}: `from {node.module} import` names no module"
            names.add(node.module)
        elif isinstance(node, ast.Import):
            plain = {alias.name for alias in node.names}
            assert not any(name.split(".")[0] in OURS for name in plain), f"{source}: `import {plain}` can't be packed"
            names |= plain
    return names


def _pins(packages: set[str]) -> tuple[str, ...]:
    """The installed distributions of the packages; a build's own suffix (+cpu) is on no index, so it is left out."""
    distributions = importlib.metadata.packages_distributions()
    # mlflow and mlflow-skinny both bring `mlflow`: the one of the package's name is meant.
    names = sorted(
        {package if package in distributions[package] else distributions[package][0] for package in packages}
    )
    return tuple(f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names)
