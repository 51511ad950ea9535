"""What an experiment says of its energy: the source of intensities, forecasts and prices."""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from uncurtail.core.pricing import PriceSection
from uncurtail.core.section import Section

# Sources that publish forecasts of their own.
FORETELLING = ("watttime", "electricitymaps")


class EnergySection(Section):
    """Where intensities come from: a made-up grid, a file, or a source that is asked as it goes.

    Credentials come from the environment alone: WATTTIME_USERNAME and WATTTIME_PASSWORD,
    ELECTRICITYMAPS_TOKEN, UNCURTAIL_PROMETHEUS_TOKEN or ..._USERNAME and ..._PASSWORD.
    """

    source: Literal["synthetic", "csv", "watttime", "electricitymaps", "prometheus", "vessim"] = (
        "synthetic"
    )
    # What the numbers are; unset: average of Electricity Maps, else marginal.
    kind: Literal["marginal", "average"] | None = None
    path: Path | None = None
    allow_gaps: bool = False
    seed: int = Field(default=0, ge=0)
    # What policies that look ahead are told. "perfect" and "noisy" need a trace that is known in
    # advance, as synthetic ones and files are; "source" is what watttime and electricitymaps
    # publish; "persistence" and "climatology" learn from the readings of this run.
    forecast: Literal["none", "persistence", "climatology", "perfect", "noisy", "source"] = "none"
    forecast_horizon_s: float = Field(default=86400.0, gt=0)
    forecast_every_s: float = Field(default=900.0, gt=0)
    # Of "source": two hourly publications missed, and how wrong it is (see `Forecast.edge_sd_s`;
    # declared as "noisy" has it). 0 takes its word for the minute in which a window ends.
    forecast_stale_after_s: float = Field(default=7200.0, gt=0)
    forecast_edge_sd_s: float = Field(default=1800.0, ge=0)
    poll_wall_s: float | None = Field(default=None, gt=0)  # unset: as the source publishes
    watttime_url: str = "https://api.watttime.org"
    electricitymaps_url: str = "https://api.electricitymaps.com"
    prometheus_url: str | None = None
    prometheus_query: str | None = None  # in gCO2/kWh; {region} becomes the site's
    price: PriceSection | None = None
    vessim_url: str | None = None
    vessim_signal: str = "mci"  # the grid signal in gCO2/kWh; a region is a microgrid

    @property
    def live(self) -> bool:
        """Whether values come as they are published, and no other time can be asked for."""
        return self.source not in ("synthetic", "csv")

    @model_validator(mode="after")
    def _a_source_has_what_it_needs(self) -> Self:
        if self.source == "csv" and self.path is None:
            raise ValueError("source 'csv' needs path: --set energy.path=FILE")
        if self.source == "electricitymaps" and self.kind == "marginal":
            raise ValueError("Electricity Maps publishes averages: leave out energy.kind")
        if self.source == "prometheus" and (self.prometheus_url and self.prometheus_query) is None:
            raise ValueError("source 'prometheus' needs prometheus_url and prometheus_query")
        if self.source == "vessim" and self.vessim_url is None:
            raise ValueError("source 'vessim' needs vessim_url: http://HOST:8700")
        asks = self.price is not None and self.price.source == "prometheus"
        if asks and self.prometheus_url is None:
            raise ValueError("price.source 'prometheus' needs prometheus_url: http://HOST:9090")
        return self

    @model_validator(mode="after")
    def _a_forecast_has_a_maker(self) -> Self:
        if self.forecast == "source" and self.source not in FORETELLING:
            instead = '"persistence" or "climatology"' if self.live else '"noisy" or "perfect"'
            raise ValueError(
                f"source {self.source!r} publishes no forecast (watttime and electricitymaps do): "
                f"set energy.forecast to {instead}"
            )
        if self.live and self.forecast in ("perfect", "noisy"):
            learned = '"persistence" or "climatology"'
            instead = f'"source", {learned}' if self.source in FORETELLING else learned
            raise ValueError(
                f"forecast {self.forecast!r} needs to know what comes, and source {self.source!r} "
                f"is live: set energy.forecast to {instead}"
            )
        return self

    @field_validator("watttime_url", "electricitymaps_url", "prometheus_url", "vessim_url")
    @classmethod
    def _an_address_holds_no_secret(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is no address: write http://HOST:PORT or https://HOST")
        if parts.username or parts.password:
            raise ValueError("must not hold a password: it would be written into the run folder")
        return url
