"""What stands around a device: overhead of the data centre, carbon of its grid, and prices."""

from __future__ import annotations

import math
from dataclasses import dataclass

from estimator.devices import Device
from estimator.errors import InputError

__all__ = [
    "DATA_CENTRE_PUE",
    "DATA_CENTRE_PUE_SOURCE",
    "HOURS_PER_YEAR",
    "JOULES_PER_KWH",
    "OWN_PUE_SOURCE",
    "WORLD_GRID_KG_PER_KWH",
    "WORLD_GRID_SOURCE",
    "Facility",
    "facility_of",
    "kwh_of",
]

DATA_CENTRE_PUE = 1.56
DATA_CENTRE_PUE_SOURCE = "average of data centres, Uptime Institute Global Data Center Survey 2024, 2024-07"
OWN_PUE_SOURCE = "no overhead: the device is not sold for data centres"
WORLD_GRID_KG_PER_KWH = 0.445
WORLD_GRID_SOURCE = "world average of 2024, IEA Electricity 2025, iea.org/reports/electricity-2025/emissions, 2025-02"
HOURS_PER_YEAR = 8766.0  # 365.25 days
JOULES_PER_KWH = 3.6e6
_GIVEN = "given"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facility:
    """Inputs of energy, carbon and cost, each with its source.

    `pue` is the energy of the facility over that of its devices, `grid_kg_per_kwh` the CO2 equivalent of a
    kilowatt-hour. Prices are in whatever currency they are given in; without one there is no cost. `power_w` replaces
    the modelled power of a device by a known one.

    Raises:
        InputError: names the number and what would be right.
    """

    pue: float
    pue_source: str
    grid_kg_per_kwh: float
    grid_source: str
    price_per_hour: float | None = None
    price_source: str = ""
    price_per_kwh: float = 0.0
    power_w: float | None = None

    def __post_init__(self) -> None:
        _check("pue", self.pue, 1.0, 10.0)
        _check("grid_kg_per_kwh", self.grid_kg_per_kwh, 0.0, 10.0)
        _check("price_per_kwh", self.price_per_kwh, 0.0, 1e6)
        if self.price_per_hour is not None:
            _check("price_per_hour", self.price_per_hour, 0.0, 1e9)
        if self.power_w is not None:
            _check("power_w", self.power_w, 0.001, 1e9)

    @property
    def has_price(self) -> bool:
        """Whether anything is known of what an hour costs."""
        return self.price_per_hour is not None or self.price_per_kwh > 0

    def cost(self, device_s: float, device_j: float) -> float | None:
        """Money for so many seconds of devices that take so many joules; None without a price."""
        if not self.has_price:
            return None
        return device_s / 3600 * (self.price_per_hour or 0.0) + kwh_of(device_j, self.pue) * self.price_per_kwh

    def co2e_kg(self, device_j: float) -> float:
        """Kilograms of CO2 equivalent for so many joules of the devices."""
        return kwh_of(device_j, self.pue) * self.grid_kg_per_kwh


def facility_of(
    device: Device | None,
    *,
    pue: float | None = None,
    grid_kg_per_kwh: float | None = None,
    price_per_hour: float | None = None,
    purchase_price: float | None = None,
    years: float | None = None,
    price_per_kwh: float = 0.0,
    power_w: float | None = None,
) -> Facility:
    """What is given, and cited defaults for overhead and carbon; there is no default price.

    An hour costs `price_per_hour`, or the purchase price over all hours of its years; the published price of the device
    when there is one and only the years are given.

    Raises:
        InputError: a number is impossible, or a price is given twice or in part.
    """
    in_centre = device is None or device.segment == "server"
    price, source = _hourly_price(device, price_per_hour, purchase_price, years)
    return Facility(
        pue=pue if pue is not None else DATA_CENTRE_PUE if in_centre else 1.0,
        pue_source=_GIVEN if pue is not None else DATA_CENTRE_PUE_SOURCE if in_centre else OWN_PUE_SOURCE,
        grid_kg_per_kwh=WORLD_GRID_KG_PER_KWH if grid_kg_per_kwh is None else grid_kg_per_kwh,
        grid_source=WORLD_GRID_SOURCE if grid_kg_per_kwh is None else _GIVEN,
        price_per_hour=price,
        price_source=source,
        price_per_kwh=price_per_kwh,
        power_w=power_w,
    )


def kwh_of(device_j: float, pue: float) -> float:
    """Kilowatt-hours that a facility takes for so many joules of its devices."""
    return device_j * pue / JOULES_PER_KWH


def _hourly_price(
    device: Device | None, per_hour: float | None, purchase: float | None, years: float | None
) -> tuple[float | None, str]:
    if per_hour is not None:
        if purchase is not None or years is not None:
            raise InputError("give either a price per hour, or a purchase price and the years it is spread over")
        return per_hour, _GIVEN
    if years is None:
        if purchase is not None:
            raise InputError("a purchase price needs the years it is spread over: add --years N")
        return None, ""
    _check("years", years, 0.01, 100.0)
    source = "purchase price as given"
    if purchase is None:
        if device is None or device.price_usd is None:
            raise InputError("no price of this device is published: give --purchase-price or --price-per-hour")
        published = device.sources["price_usd"]
        purchase, source = device.price_usd, f"US$ {device.price_usd:,.0f}, {published.title}, {published.date}"
    _check("purchase_price", purchase, 0.0, 1e9)
    return purchase / (years * HOURS_PER_YEAR), f"{source}, over {years:g} years of {HOURS_PER_YEAR:,.0f} hours"


def _check(name: str, value: float, least: float, most: float) -> None:
    if not math.isfinite(value) or not least <= value <= most:
        raise InputError(f"{name} must be from {least:g} to {most:g}, not {value!r}")
