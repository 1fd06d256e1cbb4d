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


@pytest.mark.parametrize("name", ["minimal", "production"])
def test_examples_can_be_planned(name: str, initialised: Path) -> None:
    words = ["-no-color", "-filter=tests/example.tftest.hcl", f"-var-file=examples/{name}.tfvars"]
    assert terraform(initialised, "test", *words).splitlines()[-1] == "Success! 1 passed, 0 failed."


@pytest.mark.infra
def test_terraforms_tests(initialised: Path) -> None:
    assert "0 failed" in terraform(initialised, "test", "-no-color").splitlines()[-1]


def test_checkov_finds_nothing_beyond_the_reasoned_skips() -> None:
    program = os.environ.get("CHECKOV") or shutil.which("checkov") or str(ROOT / ".venv-checkov" / "bin" / "checkov")
    if not Path(program).exists():
        pytest.skip("checkov is not on PATH, nor named by CHECKOV, nor in .venv-checkov; `make test-infra` installs it")
    command = [program, "--directory", str(INFRA), "--framework", "terraform", "--output", "json", "--compact",
               "--quiet", "--skip-download"]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    report = json.loads(run.stdout)
    failed = [f"{check['check_id']} {check['resource']}" for check in report["results"]["failed_checks"]]
    assert failed == []
    assert report["summary"]["passed"] > 100, "checkov looked at nearly nothing"
    skips = [
        line.strip() for path in INFRA.rglob("*.tf") for line in path.read_text().splitlines() if "checkov:skip" in line
    ]
    assert [skip for skip in skips if not re.fullmatch(r"#checkov:skip=CKV2?_AWS_\d+:.{10,}", skip)] == []
