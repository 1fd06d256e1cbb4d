"""Terraform's own checks of infra/, without an account: form, types, its tests with a mocked provider, checkov."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.infra.conftest import INFRA, ROOT, terraform


def test_files_are_in_terraforms_form() -> None:
    if not shutil.which("terraform"):
        pytest.skip("terraform is not on PATH")
    terraform(INFRA, "fmt", "-check", "-recursive", "-diff")


def test_configuration_is_valid(initialised: Path) -> None:
    assert json.loads(terraform(initialised, "validate", "-json"))["diagnostics"] == []
    locked = re.findall(r'provider "(.+?)" \{\s+version\s+= "(\d+)', (initialised / ".terraform.lock.hcl").read_text())
    assert locked == [("registry.terraform.io/hashicorp/aws", "5")]


@pytest.mark.parametrize("name", ["minimal", "production"])
def test_examples_can_be_planned(name: str, initialised: Path) -> None:
    words = ["-no-color", "-filter=tests/example.tftest.hcl", f"-var-file=examples/{name}.tfvars"]
    assert terraform(initialised, "test", *words).splitlines()[-1] == "Success! 1 passed, 0 failed."


def test_terraforms_tests(initialised: Path) -> None:
    names = sorted({path.name for path in (initialised / "tests").glob("*.tftest.hcl")} - {"example.tftest.hcl"})
    assert names == ["refused.tftest.hcl", "safe.tftest.hcl", "storage.tftest.hcl"]
    told = terraform(initialised, "test", "-no-color", *(f"-filter=tests/{name}" for name in names))
    assert told.splitlines()[-1] == "Success! 5 passed, 0 failed."


def checker(name: str) -> str:
    """A program of .venv-checkov, on PATH or named by a variable; skips where it is nowhere."""
    found = os.environ.get(name.upper()) or shutil.which(name) or str(ROOT / ".venv-checkov" / "bin" / name)
    if not Path(found).exists():
        pytest.skip(f"{name} is not on PATH, named by {name.upper()} or in .venv-checkov; `make test` installs it")
    return found


def test_checkov_finds_nothing_beyond_the_reasoned_skips() -> None:
    command = [checker("checkov"), "--directory", str(INFRA), "--framework", "terraform", "dockerfile",
               "--output", "json", "--compact", "--quiet", "--skip-download"]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    reports = {report["check_type"]: report for report in json.loads(run.stdout)}
    failed = [
        f"{check['check_id']} {check['resource']}"
        for report in reports.values()
        for check in report["results"]["failed_checks"]
    ]
    assert failed == []
    passed = {kind: report["summary"]["passed"] for kind, report in reports.items()}
    assert passed["terraform"] > 100, "checkov looked at nearly nothing"
    assert passed["dockerfile"] > 10, "checkov looked at nearly nothing"
    skips = [
        line.strip() for path in INFRA.rglob("*.tf") for line in path.read_text().splitlines() if "checkov:skip" in line
    ]
    assert [skip for skip in skips if not re.fullmatch(r"#checkov:skip=CKV2?_AWS_\d+:.{10,}", skip)] == []
