"""The worker of a site: what it does with an order when the world around it is gone."""

import hashlib
import time
from pathlib import Path

import pytest
import torch

from tests.virtual import experiment
from uncurtail.adapters import clock
from uncurtail.adapters.blobs import BlobError, ObjectStore
from uncurtail.adapters.redis import SiteState
from uncurtail.adapters.redis_server import free_port
from uncurtail.core.orders import Desired
from uncurtail.core.rounds import Order
from uncurtail.lm.checkpoint import encode_weights
from uncurtail.lm.data import Corpus, DataSection, prepare
from uncurtail.lm.sections import ModelSection
from uncurtail.lm.trainer import Trainer
from uncurtail.site.keeper import SnapshotKeeper
from uncurtail.site.link import Link, Wish
from uncurtail.site.throttle import Throttle
from uncurtail.site.worker import Worker

MODEL = {"depth": 1, "vocab_size": 400, "sequence_length": 16}


class Wanting(SiteState):
    """A state plane in memory, whose coordinator lives and wants training at some power.

    `capped` None: nobody says, as after a flush.
    """

    def __init__(self, *, capped: bool | None):
        self.capped = capped
        self.beats = 0
        self.hearts: list[dict[str, object]] = []

    def exchange(self, heart, steps):
        self.hearts.append(dict(heart))
        self.beats += 1
        capped = self.capped
        desired = None if capped is None else Desired(1, 1, train=True, capped=capped)
        return {"epoch": 1, "beat": self.beats}, desired, None, clock.wall()


class Ticking:
    """A clock that moves by a second whenever it is looked at; pauses are free and counted."""

    def __init__(self):
        self.now_s = 0.0
        self.paused_s = 0.0

    def now(self):
        self.now_s += 1.0
        return self.now_s

    def pause(self, seconds):
        self.now_s += seconds
        self.paused_s += seconds


def until(condition):
    for _ in range(1000):
        if condition():
            return
        clock.pause(0.01)
    raise AssertionError("waited in vain")


@pytest.fixture
def worker(tmp_path):
    """A worker whose state server nobody can reach, and whose coordinator is silent."""
    nobody = SiteState(f"redis://127.0.0.1:{free_port()}", "run-1", "duck")
    return working(tmp_path, nobody)


def working(tmp_path, state) -> Worker:
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
    return Worker(
        config=config,
        folder=home,
        site="duck",
        session=1,
        link=Link(state, "duck", 1),
        blobs=ObjectStore(None, tmp_path),
        tell=lambda _row: None,
        trainer=Trainer(config.model, config.train, corpus, 0),
        keeper=SnapshotKeeper(home / "snapshot"),
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

    def put(self, key: str, data: bytes | Path) -> None:
        if key.startswith("updates/") and self.refuse:
            self.refuse -= 1
            raise BlobError(f"cannot write {key}: out of reach")
        super().put(key, data)


def consumed(worker):
    return (worker.folder / "consumed.jsonl").read_text().splitlines()


def test_a_base_that_cannot_be_read_now_can_be_asked_for_again(worker):
    data = encode_weights(worker.trainer.weights())
    base = f"objects/{hashlib.sha256(data).hexdigest()}"
    reply = worker.execute(order(base=base, base_version=0))
    assert reply.error == f"UnusableError: {base} is not there"
    worker.blobs.put_hashed(data)
    reply = worker.execute(order(base=base, base_version=0, attempt=2))
    assert (reply.steps, reply.error) == (5, None)


def test_an_update_is_handed_in_as_soon_as_the_store_is_back(worker, tmp_path):
    base = worker.blobs.put_hashed(encode_weights(worker.trainer.weights()))
    worker.config = experiment(fleet={"orphan_after_wall_s": 50.0})
    worker.blobs = Flaky(None, tmp_path)
    worker.blobs.refuse = 2
    reply = worker.execute(order(base=base, base_version=0))
    assert (reply.steps, reply.error) == (5, None)
    assert worker.blobs.get(reply.update or "")
    assert len(consumed(worker)) == 1


def test_what_was_trained_and_cannot_be_handed_in_is_not_trained_again(worker, tmp_path):
    base = worker.blobs.put_hashed(encode_weights(worker.trainer.weights()))
    worker.config = experiment(fleet={"orphan_after_wall_s": 50.0}, rounds={"grace_wall_s": 0.1})
    soon = time.time() + 4.0
    worker.blobs = Flaky(None, tmp_path)
    worker.blobs.refuse = 1000
    reply = worker.execute(order(base=base, base_version=0, not_after_wall=soon))
    assert reply.error is not None
    assert "out of reach" in reply.error
    worker.blobs.refuse = 0
    again = worker.execute(order(base=base, base_version=0, attempt=2))
    assert (again.steps, again.error) == (0, reply.error)
    assert len(consumed(worker)) == 1


def test_an_order_in_hand_is_carried_out_without_a_state_server(worker):
    base = worker.blobs.put_hashed(encode_weights(worker.trainer.weights()))
    reply = worker.execute(order(base=base, base_version=0))
    assert (reply.steps, reply.error) == (5, None)
    again = worker.execute(order(base=base, base_version=0, attempt=2))
    assert again.attempt == 2
    assert again.update_sha256 == reply.update_sha256
    assert len((worker.folder / "consumed.jsonl").read_text().splitlines()) == 1


def test_a_trainer_slows_down_while_it_is_wanted_capped_and_says_so(tmp_path):
    state, time = Wanting(capped=True), Ticking()
    worker = working(tmp_path, state)
    worker.throttle = Throttle(0.5, None, time.now, time.pause)
    base = ObjectStore(None, tmp_path).put_hashed(encode_weights(worker.trainer.weights()))
    until(lambda: worker.link.wish.desired is not None)
    reply = worker.execute(order(base=base, base_version=0))
    assert (reply.steps, reply.error) == (5, None)
    slowed_s = time.paused_s
    assert slowed_s > 0.0
    until(lambda: any(heart["capped"] for heart in state.hearts))

    state.capped = False
    until(lambda: (desired := worker.link.wish.desired) is not None and not desired.capped)
    reply = worker.execute(order(base=base, base_version=0, round=4))
    assert (reply.steps, reply.error) == (5, None)
    assert time.paused_s == slowed_s
    until(lambda: not state.hearts[-1]["capped"])


def test_a_trainer_keeps_to_the_last_word_on_its_power_while_the_state_plane_knows_none(tmp_path):
    state, time = Wanting(capped=True), Ticking()
    worker = working(tmp_path, state)
    worker.throttle = Throttle(0.5, None, time.now, time.pause)
    base = ObjectStore(None, tmp_path).put_hashed(encode_weights(worker.trainer.weights()))
    until(lambda: worker.link.wish.desired is not None)
    worker.execute(order(base=base, base_version=0))
    state.capped, slowed_s = None, time.paused_s
    until(lambda: worker.link.wish.desired is None)
    worker.execute(order(base=base, base_version=0, round=4))
    assert time.paused_s > slowed_s


def test_a_stand_by_order_that_was_dropped_leaves_its_round_to_another_order(worker):
    base = worker.blobs.put_hashed(encode_weights(worker.trainer.weights()))
    worker.config = experiment(fleet={"orphan_after_wall_s": 50.0})
    worker.link.wish = Wish(desired=Desired(epoch=1, session=1, train=False))  # the window shut
    dropped = worker.execute(order())
    worker.link.wish = Wish(desired=Desired(epoch=1, session=1, train=True))
    assert (dropped.steps, dropped.error) == (0, None)
    reply = worker.execute(order(base=base, base_version=0))
    assert (reply.steps, reply.error) == (5, None), "the same round, another lease"


def test_the_optimizer_state_is_on_its_way_to_the_disk_before_the_answer_goes_out(worker, tmp_path):
    class Watched(ObjectStore):
        """Notes whether a snapshot was unfinished or done when the update came."""

        seen = False

        def put(self, key: str, data: bytes | Path) -> None:
            folder = worker.folder / "snapshot"
            self.seen |= any((folder / name).exists() for name in ("unfinished", "snapshot.json"))
            super().put(key, data)

    worker.blobs = Watched(None, tmp_path)
    base = worker.blobs.put_hashed(encode_weights(worker.trainer.weights()))
    assert not worker.blobs.seen
    worker.execute(order(base=base, base_version=0))
    assert worker.blobs.seen
    assert worker.keeper.finish(30)
    again = Trainer(worker.config.model, worker.config.train, Corpus.open(tmp_path / "data"), 7)
    assert again.load_snapshot(worker.folder / "snapshot") is None
    state, wanted = again.optimizers.state_dict(), worker.trainer.optimizers.state_dict()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


class Watched(Trainer):
    """Notes the rate of each step."""

    def train(self, order, should_stop, on_step):
        self.scales: list[float] = []

        def watch(metrics):
            self.scales.append(metrics.lr_scale)
            on_step(metrics)

        return super().train(order, should_stop, watch)


def test_what_is_handed_in_is_what_the_steps_added_to_the_base(worker, tmp_path):
    from uncurtail.lm.checkpoint import decode_weights, encode_weights
    from uncurtail.sync.codec import decode_delta

    worker.config = experiment(store={"wire_dtype": "fp32"})
    key = worker.blobs.put_hashed(encode_weights(worker.trainer.weights()))
    reply = worker.execute(order(base=key, base_version=0))
    base, after = decode_weights(worker.blobs.get(key)), worker.trainer.weights()
    delta = decode_delta(worker.blobs.get(reply.update or ""), base)
    assert any(value.any() for value in delta.values())
    for name, weight in base.items():
        torch.testing.assert_close(weight + delta[name], after[name])


def test_the_rates_follow_what_all_sites_have_trained(worker, tmp_path):
    from uncurtail.lm.checkpoint import encode_weights

    corpus = Corpus.open(tmp_path / "data")
    worker.trainer = Watched(worker.config.model, worker.config.train, corpus, 0)
    key = worker.blobs.put_hashed(encode_weights(worker.trainer.weights()))
    given = {"base": key, "base_version": 0, "intervals": ((0, 0, 3),)}
    worker.execute(order(**given, tokens_at_start=8000, sites=3))
    # the last 4,000 of 10,000 tokens warm down; three sites take 96 in a step
    assert worker.trainer.scales == pytest.approx([2000 / 4000, 1904 / 4000, 1808 / 4000])
