import importlib.util

import pytest

_NEEDED = {
    "aiohttp": "test",
    "jsonpatch": "test",
    "jsonschema": "test",
    "kubernetes_validate": "test",
    "cel": "test",
    "yaml": "kubernetes",
    "kopf": "kubernetes",
    "lightkube": "kubernetes",
}
_MISSING = sorted({extra for name, extra in _NEEDED.items() if not importlib.util.find_spec(name)})

# Without its packages nothing here can even be imported: what is skipped is said below.
collect_ignore_glob = ["test_*.py"] if _MISSING else []


def pytest_terminal_summary(terminalreporter):
    if _MISSING:
        extras = ",".join(_MISSING)
        terminalreporter.write_line(f"tests/cluster skipped: pip install 'uncurtail[{extras}]'")


if not _MISSING:
    from tests.cluster.clients import Kubectl, Rest
    from tests.cluster.cluster import Cluster

    @pytest.fixture
    def cluster(tmp_path):
        """An API server with its garbage collector, gone after the test."""
        made = Cluster(tmp_path)
        made.start()
        yield made
        made.stop()

    @pytest.fixture
    def admin(cluster):
        with Rest.of(cluster) as client:
            yield client

    @pytest.fixture
    def kubectl(cluster):
        return Kubectl.of(cluster)
