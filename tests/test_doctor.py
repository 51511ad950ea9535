"""The doctor: healthy here, and every ill has a remedy, also when what it needs is missing."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.signalserver import PASSWORD, TOKEN, USER, serving
from uncurtail.doctor import TESTED, examine, installed

HERE = Path(__file__).parent.parent


def findings(**options):
    """(healthy, {what: finding}) as a script sees them."""
    healthy, text = examine(as_json=True, **options)
    body = json.loads(text)
    assert body["healthy"] is healthy
    found = {item["what"]: item for item in body["findings"]}
    assert len(found) == len(body["findings"]), "each thing is named once"
    assert healthy is not any(item["remedy"] for item in found.values())
    return healthy, found


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("UNCURTAIL_", "WATTTIME_", "ELECTRICITYMAPS_")):
            monkeypatch.delenv(name)


def test_a_run_can_start_here():
    healthy, found = findings()
    assert healthy, {what: item for what, item in found.items() if item["remedy"]}
    assert {"python", "state server", "GPU", "disk here", "command flwr", *TESTED} <= found.keys()
    assert found["torch"]["found"] == installed("torch")


def test_a_person_reads_the_next_step():
    healthy, text = examine(as_json=False)
    assert healthy
    assert text.splitlines()[-1] == "Next: uncurtail run experiments/demo.toml"
    assert all(line.startswith("✓ ") for line in text.splitlines()[:-1])


@pytest.mark.parametrize("package", sorted(TESTED))
def test_a_missing_package_has_a_remedy(package):
    _, found = findings(version_of=lambda name: None if name == package else installed(name))
    assert found[package]["found"] == "missing"
    assert found[package]["remedy"] == "pip install -c constraints.txt -e ."
    ill = [what for what, item in found.items() if item["remedy"]]
    assert ill == [package]


def test_a_person_reads_the_remedy_below_what_is_missing():
    healthy, text = examine(
        as_json=False, version_of=lambda name: None if name == "vessim" else installed(name)
    )
    assert not healthy
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("! "))
    assert lines[at].split() == ["!", "vessim", "missing"]
    assert lines[at + 1] == "  → pip install -c constraints.txt -e ."
    assert lines[-1] == "Mend what is marked with !"


@pytest.mark.parametrize(
    ("version", "fits"),
    [("1.41", True), ("1.41.7", True), ("1.410.0", False), ("1.42.0", False), ("2.41", False)],
)
def test_another_version_line_than_the_tested_is_said(version, fits):
    _, found = findings(version_of=lambda name: version if name == "flwr" else installed(name))
    assert found["flwr"]["found"] == version
    remedy = "" if fits else "tested with 1.41: pip install -c constraints.txt -e ."
    assert found["flwr"]["remedy"] == remedy


def test_every_other_declared_package_that_is_missing_is_said_too():
    _, found = findings(version_of=lambda name: None if name == "tiktoken" else installed(name))
    assert found["tiktoken"]["remedy"]
    _, found = findings()
    assert "tiktoken" not in found, "what is fine and of any version is not worth a line"


def test_what_is_tested_is_what_is_declared():
    text = (HERE / "pyproject.toml").read_text(encoding="utf-8")
    declared = tomllib.loads(text)["project"]["dependencies"]
    for name, version in TESTED.items():
        (line,) = [line for line in declared if line.startswith(name)]
        assert version in line


def test_a_missing_command_has_a_remedy(monkeypatch):
    which = shutil.which

    def without_flwr(name, path):
        return None if name == "flwr" else which(name, path=path)

    monkeypatch.setattr(shutil, "which", without_flwr)
    _, found = findings()
    assert found["command flwr"]["found"] == "missing"
    assert found["command flwr"]["remedy"]


def test_a_full_disk_has_a_remedy(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=5e8))
    healthy, found = findings()
    assert not healthy
    assert found["disk here"]["found"] == "0.5 GB free"
    assert found["disk here"]["remedy"] == "make room: a run needs 1 GB"


def test_a_state_server_that_does_not_answer_has_a_remedy(monkeypatch):
    monkeypatch.setenv("UNCURTAIL_REDIS_URL", "redis://127.0.0.1:1/0")
    _, found = findings()
    assert found["state server"]["remedy"] == "start it, or unset UNCURTAIL_REDIS_URL"


def test_a_secret_file_that_is_not_there_has_a_remedy(monkeypatch):
    monkeypatch.setenv("UNCURTAIL_REDIS_URL_FILE", "/nowhere/url")
    _, found = findings()
    assert found["state server"]["remedy"] == (
        "UNCURTAIL_REDIS_URL_FILE: /nowhere/url: No such file or directory: name a file"
    )


def test_energy_sources_without_credentials_are_fine_and_nobody_is_asked(monkeypatch):
    monkeypatch.setattr("httpx.Client", lambda **_options: pytest.fail("it called out"))
    _, found = findings()
    assert found["energy, watttime"] == {
        "what": "energy, watttime",
        "found": "no credentials (WATTTIME_USERNAME is not set)",
        "remedy": "",
    }
    monkeypatch.setenv("WATTTIME_USERNAME", USER)
    monkeypatch.setenv("WATTTIME_PASSWORD", PASSWORD)
    monkeypatch.setenv("ELECTRICITYMAPS_TOKEN", TOKEN)
    _, found = findings()
    for source in ("watttime", "electricitymaps"):
        assert found[f"energy, {source}"]["found"] == "credentials are set"


def test_half_of_an_accounts_credentials_has_a_remedy(monkeypatch):
    monkeypatch.setenv("WATTTIME_USERNAME", USER)
    healthy, found = findings()
    assert not healthy
    assert found["energy, watttime"]["remedy"] == "set WATTTIME_USERNAME and WATTTIME_PASSWORD"
    monkeypatch.setenv("WATTTIME_PASSWORD_FILE", "/nowhere/word")
    _, found = findings()
    assert found["energy, watttime"]["remedy"].startswith("WATTTIME_PASSWORD_FILE: /nowhere/word")


def test_an_energy_source_is_asked_on_request_what_the_account_may_read(monkeypatch):
    monkeypatch.setenv("WATTTIME_USERNAME", USER)
    monkeypatch.setenv("WATTTIME_PASSWORD", PASSWORD)
    monkeypatch.setenv("ELECTRICITYMAPS_TOKEN", TOKEN)
    with serving() as server:
        addresses = {"watttime_url": server.url, "electricitymaps_url": server.url}
        healthy, found = findings(online=True, addresses=addresses)
        assert healthy
        assert found["energy, watttime"]["found"] == "reads CAISO_NORTH"
        assert found["energy, electricitymaps"]["found"] == "reads DE, FR"
        monkeypatch.setenv("WATTTIME_PASSWORD", "another")
        healthy, found = findings(online=True, addresses=addresses)
        assert not healthy
        assert "check WATTTIME_USERNAME and" in found["energy, watttime"]["remedy"]


@pytest.mark.parametrize("package", ["redis", "obstore"])
def test_the_doctor_works_where_packages_are_really_missing(package):
    script = f"""
import sys
gone = dict.fromkeys([{package!r}, "torch"])
sys.modules.update(gone)  # importing them fails
from uncurtail.doctor import examine, installed
print(*examine(as_json=False, version_of=lambda name: None if name in gone else installed(name)))
"""
    env = {**os.environ, "PYTHONPATH": str(HERE / "src")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("False")
    assert f"! {package}" in done.stdout
    assert "! torch" in done.stdout


def test_a_token_of_exalsius_needs_its_package(monkeypatch):
    _, found = findings()
    assert found["fleet, exalsius"]["found"] == ("no token (UNCURTAIL_EXALSIUS_TOKEN is not set)")
    monkeypatch.setenv("UNCURTAIL_EXALSIUS_TOKEN", TOKEN)
    healthy, found = findings(
        version_of=lambda name: None if name == "exalsius-api-client" else installed(name)
    )
    assert not healthy
    assert found["fleet, exalsius"]["remedy"] == "pip install 'uncurtail[exalsius]'"


def test_exalsius_is_asked_on_request_which_clusters_there_are(monkeypatch):
    pytest.importorskip("exalsius_api_client", reason="the extra `exalsius` is not installed")
    from tests import exalsiusserver

    monkeypatch.setenv("UNCURTAIL_EXALSIUS_TOKEN", exalsiusserver.TOKEN)
    with exalsiusserver.serving() as server:
        _, found = findings()
        assert found["fleet, exalsius"]["found"].startswith("the token is set, exalsius-api-cl")
        assert server.requests == []
        addresses = {"exalsius_url": server.url}
        _, found = findings(online=True, addresses=addresses)
        assert found["fleet, exalsius"]["found"] == "clusters: north (READY)"
        server.token = "another"
        healthy, found = findings(online=True, addresses=addresses)
    assert not healthy
    assert "refuses the token (401)" in found["fleet, exalsius"]["remedy"]
