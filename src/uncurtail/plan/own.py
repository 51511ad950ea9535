"""A site's own power in virtual time: its battery and sun from event to event, joule by joule."""

from uncurtail.core.carried import carried
from uncurtail.core.fleet import Phase
from uncurtail.core.ledger import Energy, Segment, tally
from uncurtail.core.microgrid import Carried, Microgrid, Own
from uncurtail.core.policy import Costs
from uncurtail.core.signals import Trace


class OwnSite:
    """The battery and sun of one site, and all that it drew; `soc` is as of the last `draw`."""

    def __init__(
        self, microgrid: Microgrid, costs: Costs, trace: Trace, price: Trace | None, clean: float
    ) -> None:
        """`clean`: the intensity (g/kWh) below which the battery is spared.

        `costs` are as under the policy: without `capped` the site is never capped.
        """
        self._microgrid = microgrid
        self._costs = costs
        self._trace = trace
        self._price = price
        self._clean = clean
        self.carried: Carried | None = None  # as of the last `carry`
        self.soc = microgrid.section.battery_initial_soc
        self.energy = Energy()

    def draw(self, start: float, end: float, load_w: float, *, known: bool) -> None:
        """Hold a load over [start, end); `known`: the grid's intensity may be acted on.

        The ledger counts by the newest value, however old, and so does this.
        """
        while start < end:
            value = self._trace.at(start)
            until = min(end, self._trace.next_change(start))
            mode = self._microgrid.mode(value if known else None, self._clean)
            for begin, stop, flow in self._microgrid.walk(self.soc, load_w, (start, until), mode):
                price = None if self._price is None else self._price.at(begin)
                segment = Segment("", "", begin, stop, load_w, value, flow, price)
                self.energy.add(tally(segment, self._clean))
                self.soc = flow.soc
            start = until

    def own(self, now: float) -> Own:
        """What there is at the end of the last draw."""
        capped_w = None if self._costs.capped is None else self._costs.capped.power_w
        return self._microgrid.own(self.soc, now, self._costs.train_power_w, capped_w)

    def carry(self, own: Own, now: float, *, up: bool) -> Carried | None:
        """What the site may train on its own power alone; None: nothing now."""
        section = self._microgrid.section
        self.carried = carried(section, self._costs, own, now, up=up, before=self.carried)
        return self.carried


def load_w(costs: Costs, phase: Phase, shared: float) -> float:
    """What a site's machines draw in a phase; of training, the share `shared` is idle."""
    train_w = costs.train_power_w
    match phase:
        case Phase.PROVISIONING:
            return costs.provision_power_w
        case Phase.IDLE:
            return costs.idle_power_w
        case Phase.TRAINING | Phase.CAPPED:
            if phase is Phase.CAPPED and costs.capped is not None:
                train_w = costs.capped.power_w
            return train_w - shared * (train_w - costs.idle_power_w)
        case Phase.RELEASED | Phase.DRAINING | Phase.RELEASING:  # the last two take no time here
            return 0.0
