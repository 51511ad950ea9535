import pytest

from tests.integration.stack import SmallRun


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory):
    """One prepared corpus for all runs of the session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def small_run(tmp_path, cache_home, monkeypatch):
    """Makes real runs, and leaves nothing of them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    made: list[SmallRun] = []

    def make(**options) -> SmallRun:
        made.append(SmallRun(tmp_path / str(len(made)), **options))
        return made[-1]

    yield make
    for run in made:
        run.clean_up()
