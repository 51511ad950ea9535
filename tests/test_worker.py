"""The worker of a site: what it does with an order when the world around it is gone."""

import hashlib

import pytest

from tests.virtual import experiment
from uncurtail.adapters.blobs import BlobError, ObjectStore
from uncurtail.adapters.redis import SiteState
from uncurtail.adapters.redis_server import free_port
from uncurtail.core.orders import Desired
from uncurtail.core.rounds import Order
from uncurtail.lm.data import Corpus, DataSection, prepare
from uncurtail.lm.sections import ModelSection
from uncurtail.lm.trainer import Trainer
from uncurtail.site.link import Link, Wish
from uncurtail.site.worker import Worker

MODEL = {"depth": 1, "vocab_size": 400, "sequence_length": 16}


@pytest.fixture
def worker(tmp_path):
    """A worker whose state server nobody can reach, and whose coordinator is silent."""
    config = experiment(
        fleet={"orphan_after_wall_s": 1.0},
        model=MODEL,
        train={"budget_tokens": 10_000, "batch_sequences": 2, "val_sequences": 2},
    )
    data = DataSection(source="grammar", documents=60, val_share=0.1)
    prepare(data, ModelSection.model_validate(MODEL), tmp_path / "data")
    corpus = Corpus.open(tmp_path / "data")
    home = tmp_path / "sites" / "duck"
    home.mkdir(parents=True)
    nobody = SiteState(f"redis://127.0.0.1:{free_port()}", "run-1", "duck")
    return Worker(
        config=config,
        folder=home,
        site="duck",
        session=1,
        link=Link(nobody, "duck", 1),
        blobs=ObjectStore(None, tmp_path),
        trainer=Trainer(config.model, config.train, corpus, 0),
    )


def order(**changes) -> Order:
    fields = {
        "run": "run-1",
        "epoch": 1,
        "round": 3,
        "site": "duck",
        "session": 1,
        "attempt": 1,
        "base_version": None,
        "base": None,
        "intervals": ((0, 0, 5),),
        "train_for_wall_s": 60.0,
        "not_after_wall": 4e9,
        "tokens_at_start": 0,
        "sites": 1,
        "evaluate": False,
    }
    return Order(**{**fields, **changes})


@pytest.mark.timeout(30)  # without its coordinator a stand-by order would wait ten minutes
def test_a_stand_by_order_waits_no_longer_than_its_site_without_a_coordinator(worker):
    reply = worker.execute(order())
    assert (reply.steps, reply.error, reply.update) == (0, None, None)
    assert worker.orphaned()


class Flaky(ObjectStore):
    """A store that refuses the first so many writes below `updates/`, then works."""

    refuse = 0

    def put(self, key: str, data: bytes) -> None:
        if key.startswith("updates/") and self.refuse:
            self.refuse -= 1
            raise BlobError(f"cannot write {key}: out of reach")
        super().put(key, data)


def consumed(worker):
    return (worker.folder / "consumed.jsonl").read_text().splitlines()


def test_a_base_that_cannot_be_read_now_can_be_asked_for_again(worker):
    from uncurtail.lm.checkpoint import encode_weights

    data = encode_weights(worker.trainer.weights())
    base = f"objects/{hashlib.sha256(data).hexdigest()}"
    reply = worker.execute(order(base=base, base_version=0))
    assert reply.error == f"UnusableError: {base} is not there"
    worker.blobs.put_hashed(data)
    reply = worker.execute(order(base=base, base_version=0, attempt=2))
    assert (reply.steps, reply.error) == (5, None)


def test_an_update_is_handed_in_as_soon_as_the_store_is_back(worker, tmp_path):
    from uncurtail.lm.checkpoint import encode_weights

    base = worker.blobs.put_hashed(encode_weights(worker.trainer.weights()))
    worker.config = experiment(fleet={"orphan_after_wall_s": 50.0})
    worker.blobs = Flaky(None, tmp_path)
    worker.blobs.refuse = 2
    reply = worker.execute(order(base=base, base_version=0))
    assert (reply.steps, reply.error) == (5, None)
    assert worker.blobs.get(reply.update or "")
    assert len(consumed(worker)) == 1


def test_what_was_trained_and_cannot_be_handed_in_is_not_trained_again(worker, tmp_path):
    from uncurtail.lm.checkpoint import encode_weights

    base = worker.blobs.put_hashed(encode_weights(worker.trainer.weights()))
    worker.blobs = Flaky(None, tmp_path)
    worker.blobs.refuse = 1000
    reply = worker.execute(order(base=base, base_version=0))
    assert reply.error is not None
    assert "out of reach" in reply.error
    worker.blobs.refuse = 0
    again = worker.execute(order(base=base, base_version=0, attempt=2))
    assert (again.steps, again.error) == (0, reply.error)
    assert len(consumed(worker)) == 1


def test_an_order_in_hand_is_carried_out_without_a_state_server(worker):
    from uncurtail.lm.checkpoint import encode_weights

    base = worker.blobs.put_hashed(encode_weights(worker.trainer.weights()))
    reply = worker.execute(order(base=base, base_version=0))
    assert (reply.steps, reply.error) == (5, None)
    again = worker.execute(order(base=base, base_version=0, attempt=2))
    assert again.attempt == 2
    assert again.update_sha256 == reply.update_sha256
    assert len((worker.folder / "consumed.jsonl").read_text().splitlines()) == 1


def test_a_stand_by_order_that_was_dropped_leaves_its_round_to_another_order(worker):
    from uncurtail.lm.checkpoint import encode_weights

    base = worker.blobs.put_hashed(encode_weights(worker.trainer.weights()))
    worker.config = experiment(fleet={"orphan_after_wall_s": 50.0})
    worker.link.wish = Wish(desired=Desired(epoch=1, session=1, train=False))  # the window shut
    dropped = worker.execute(order())
    worker.link.wish = Wish(desired=Desired(epoch=1, session=1, train=True))
    assert (dropped.steps, dropped.error) == (0, None)
    reply = worker.execute(order(base=base, base_version=0))
    assert (reply.steps, reply.error) == (5, None), "the same round, another lease"
