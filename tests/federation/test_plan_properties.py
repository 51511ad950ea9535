"""Whatever users, autoscalers and the API server do: nobody is stopped early, and all ends well."""

import os
import re

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.federation.fakecluster import FakeCluster
from tests.federation.federations import VOLUMES, children, manifest, pool
from uncurtail.operator.observed import Ref

TIMEOUT_S = 60
EXAMPLES = int(os.environ.get("UNCURTAIL_EXAMPLES", "150"))


class Life(RuleBasedStateMachine):
    """A Federation whose spec changes at any time, between reconciliations that may fail."""

    @initialize(nodes=st.integers(0, 3))
    def begin(self, nodes):
        self.cluster = FakeCluster(nodes)
        self.gpu = pool("gpu")
        self.cpu: dict[str, object] | None = None
        self.spec: dict[str, object] = {"mode": "StatefulSet"}

    def federation(self):
        pools = [self.gpu] if self.cpu is None else [self.gpu, self.cpu]
        return manifest(*pools, **self.spec)

    @rule(replicas=st.integers(0, 4))
    def a_user_scales(self, replicas):
        self.gpu = {**self.gpu, "replicas": replicas}

    @rule(replicas=st.integers(0, 4))
    def an_autoscaler_scales(self, replicas):
        if Ref("SuperNodePool", "fed-supernode-gpu") in self.cluster.objects:
            self.cluster.scale("fed-supernode-gpu", replicas)

    @rule(paused=st.booleans())
    def a_user_pauses(self, paused):
        self.spec = {**self.spec, "paused": paused}

    @rule(mode=st.sampled_from(["StatefulSet", "DaemonSet"]))
    def a_user_switches_the_mode(self, mode):
        self.spec = {**self.spec, "mode": mode}

    @rule(claims=st.booleans())
    def a_user_changes_what_cannot_be_changed(self, claims):
        kept = {key: value for key, value in self.gpu.items() if key not in VOLUMES["claims"]}
        self.gpu = {**kept, **VOLUMES["claims"]} if claims else kept

    @rule(image=st.sampled_from(["a:1", "b:2"]))
    def a_user_updates(self, image):
        self.gpu = {**self.gpu, "images": {"supernode": image}}

    @rule(replicas=st.one_of(st.none(), st.integers(0, 2)))
    def a_user_adds_or_removes_a_pool(self, replicas):
        self.cpu = None if replicas is None else pool("cpu", replicas=replicas)

    @rule(number=st.integers(0, 9))
    def a_site_is_done(self, number):
        names = self.cluster.pod_names()
        if names:
            self.cluster.say_drained(names[number % len(names)])

    @rule(seconds=st.sampled_from([1, 30, 60, 3600]))
    def time_passes(self, seconds):
        self.cluster.now += seconds

    @rule(fail_after=st.one_of(st.none(), st.integers(0, 3)))
    def the_operator_looks(self, fail_after):
        self.cluster.fail_after = fail_after
        self.cluster.reconcile(self.federation())
        self.cluster.fail_after = None

    @invariant()
    def nobody_was_stopped_early(self):
        for name, how in getattr(self, "cluster", FakeCluster()).ended:
            told = re.fullmatch(r"told (\d+) s ago", how)
            in_time = told is not None and int(told[1]) >= TIMEOUT_S
            assert how == "drained" or in_time, (name, how)

    @invariant()
    def a_pool_is_of_one_kind(self):
        assert getattr(self, "cluster", FakeCluster()).most_kinds_at_once <= 1

    def teardown(self):
        if not hasattr(self, "cluster"):
            return
        federation = self.federation()
        self.cluster.settle(federation)
        assert self.cluster.condition("Ready") == "True"
        assert self.cluster.condition("Degraded") == "False"
        wanted = set(children(federation))
        if self.spec.get("paused"):
            assert self.cluster.pod_names() == []
            wanted = {ref for ref in wanted if ref.kind != "DaemonSet"}
        assert set(self.cluster.objects) == wanted
        self.nobody_was_stopped_early()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=EXAMPLES, stateful_step_count=25, deadline=None)
