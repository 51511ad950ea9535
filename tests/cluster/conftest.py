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
    from tests.cluster.controllers import all_controllers
    from tests.cluster.controllers.nodes import add, node
    from tests.cluster.hollow import HollowNodes
    from tests.cluster.kubelet.kubelet import Kubelet
    from tests.cluster.kubelet.network import Network, why_not
    from tests.cluster.kubelet.proxy import Proxy

    @pytest.fixture
    def cluster(tmp_path):
        """An API server with its garbage collector, gone after the test."""
        made = Cluster(tmp_path)
        made.start()
        yield made
        made.stop()

    @pytest.fixture
    def hollow(cluster):
        """Lets the cluster have controllers and two nodes, whose pods run without processes."""
        made = HollowNodes()

        def fill(api):
            cluster.parts[:] = [*all_controllers(), made]
            add(api, node("alpha"), node("beta", zone="north"))

        cluster.call(fill)
        return made

    @pytest.fixture(scope="session")
    def namespaces():
        """Skips where pods cannot have namespaces of their own."""
        if reason := why_not():
            pytest.skip(reason)

    @pytest.fixture
    def network(namespaces):
        made = Network()
        made.start()
        yield made
        made.stop()

    @pytest.fixture
    def kubelet(network, tmp_path):
        """A cluster whose pods are processes, on one node; all of it is gone after the test."""
        made = Cluster(tmp_path, addresses=[network.gateway])
        kubelet, proxy = Kubelet(made, network), Proxy()
        made.parts[:] = [*all_controllers(), kubelet, proxy]
        made.api.service_addresses = iter(network.service_address, None)
        made.start()
        made.server.endpoints.logs = kubelet.logs
        made.call(lambda api: add(api, node("alpha")))
        yield kubelet
        made.run(kubelet.stop())
        made.run(proxy.stop())
        made.stop()

    @pytest.fixture
    def pods(kubelet):
        """The API of that cluster."""
        with Rest.of(kubelet.cluster) as client:
            yield client

    @pytest.fixture
    def admin(cluster):
        with Rest.of(cluster) as client:
            yield client

    @pytest.fixture
    def kubectl(cluster):
        return Kubectl.of(cluster)
