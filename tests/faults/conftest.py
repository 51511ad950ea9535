import pytest

from tests.virtual import Virtual, experiment


@pytest.fixture
def virtual(tmp_path):
    """Makes virtual runs, and closes their journals."""
    made: list[Virtual] = []

    def make(settings=None, **options) -> Virtual:
        made.append(Virtual(tmp_path / str(len(made)), settings or experiment(), **options))
        return made[-1]

    yield make
    for run in made:
        run.close()
