"""SkyPilot's catalogue of the public clouds, as offers: what it lists, and never more.

It is read from files, which SkyPilot fetches when they are missing or old, so it needs no account. They lie under
`$SKY_RUNTIME_DIR/.sky/catalogs` (or the home directory's); a file without its md5 in `.meta` is yours, and is never
fetched again.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from blocks.errors import Refused, Unavailable
from blocks.ports.market import ON_PROCESSORS, Offer
from blocks.skypilot.infra import Place
from blocks.skypilot.sdk import skypilot

HOURS_UNTIL_OLD = 7
"""How old SkyPilot's own reader lets a fetched catalogue of AWS, GCP or Azure become."""

WITHOUT_CATALOGUE = {"kubernetes", "slurm", "ssh", "vsphere"}
ARCHITECTURE = "x86_64"
"""What engines are built for; the catalogue says it of AWS alone."""

MACHINE = ["InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB", "GpuInfo", "Region"]
COLUMNS = [*MACHINE, "AvailabilityZone", "Price", "SpotPrice"]
CENT_OF_A_CENT = 1e-4


def clouds() -> tuple[str, ...]:
    """Every cloud that SkyPilot has a catalogue of."""
    return tuple(sorted(set(skypilot().skylet.constants.ALL_CLOUDS) - WITHOUT_CATALOGUE))


def list_offers(places: Sequence[Place], accelerators: frozenset[str]) -> Iterator[Offer]:
    """Everything in those places of one cloud, with accelerators of those names in lower case; none allows all of them.

    Where the zones of a region differ in price, each is a cell of its own. AWS's zones have names only once SkyPilot
    has an account's; until then such a region counts as dear as its dearest zone, so that no cap is broken there.
    Refused where a region or zone is not that cloud's.
    """
    (cloud,) = {place.cloud for place in places}
    rows = _rows(cloud)
    has_zone_names = cloud != "aws" or _aws_zones() is not None
    if not has_zone_names:
        rows["AvailabilityZone"] = None
    memory = _Memory()
    for place in places:
        yield from _offers(_within(rows, place), place, accelerators, memory, has_zone_names=has_zone_names)


def accelerator_names() -> frozenset[str]:
    """Every accelerator that any cloud of the catalogue has."""
    return frozenset(_read("common/accelerators.csv")["AcceleratorName"])


def memory_gib() -> Mapping[str, float]:
    """The memory of accelerators by their names in lower case."""
    table = _read("common/metadata.csv")
    return {name.lower(): float(size) for name, size in zip(table["GPU"], table["MemoryGB"], strict=True)}


def closest(name: str, names: Iterable[str]) -> str:
    """Which of the names somebody may have meant, as the end of a sentence."""
    by_lower = {known.lower(): known for known in names}
    found = [by_lower[match] for match in get_close_matches(name.lower(), by_lower, n=5)]
    return f"did you mean {' or '.join(found)}?" if found else f"there are: {', '.join(sorted(by_lower.values()))}"


class _Memory:
    """The memory of an accelerator; a few dozen answers for many thousand rows."""

    def __init__(self) -> None:
        self._by_info: dict[Any, float] = {}
        self._by_name: Mapping[str, float] | None = None

    def gib(self, name: str, info: Any) -> float:
        """0 where nobody knows, so that no model fits."""
        key = (name, info)
        if key not in self._by_info:
            self._by_info[key] = _gib_in(info) or self._gib_of(name)
        return self._by_info[key]

    def _gib_of(self, name: str) -> float:
        if self._by_name is None:
            self._by_name = memory_gib()
        return self._by_name.get(name.lower(), 0.0)


def _gib_in(info: Any) -> float | None:
    """The memory of one accelerator in a row's `GpuInfo`, which for some clouds is no literal, or nothing."""
    try:
        size = float(ast.literal_eval(info)["Gpus"][0]["MemoryInfo"]["SizeInMiB"])
    except (ValueError, SyntaxError, TypeError, KeyError, IndexError):
        return None
    # RunPod's rows have GiB in that field, and no accelerator has less than one GiB.
    return size if size < 1024 else size / 1024  # noqa: PLR2004 - MiB in a GiB


def _rows(cloud: str) -> Any:
    rows = _read(f"{cloud}/vms.csv")
    if "Arch" in rows:
        rows = rows[rows["Arch"].isna() | (rows["Arch"] == ARCHITECTURE)]
    rows = rows.reindex(columns=COLUMNS)
    rows = rows.assign(AcceleratorCount=rows["AcceleratorCount"].fillna(0))
    if cloud == "gcp":
        rows = _with_hosts(rows)
    if cloud == "aws" and (zones := _aws_zones()) is not None:
        # As SkyPilot does: regions that the account has not opened are not in the map, and fall out.
        rows = rows.merge(zones, on="AvailabilityZone", how="inner")
        rows = rows.drop(columns="AvailabilityZone").rename(columns={"AvailabilityZoneName": "AvailabilityZone"})
    # A share of an accelerator is less than any replica gets.
    return rows[rows["AcceleratorCount"] % 1 == 0].reset_index(drop=True)


def _with_hosts(rows: Any) -> Any:
    """GCP prices accelerators and hosts in rows of their own: each pair that SkyPilot would rent, at both prices."""
    import pandas as pd  # noqa: PLC0415 - half a second, for those only who ask for offers

    gcp_catalog = skypilot().catalog.gcp_catalog
    bound = [
        {"InstanceType": instance, "AcceleratorName": name, "AcceleratorCount": count}
        for instance in gcp_catalog.GCP_ACC_INSTANCE_TYPES
        for name, count in (gcp_catalog.get_accelerators_from_instance_type(instance) or {}).items()
    ]
    names = {pair["AcceleratorName"] for pair in bound}
    is_accelerator = rows["AcceleratorName"].notna() & ~rows["AcceleratorName"].fillna("").str.startswith("tpu-")
    accelerators, hosts = rows[is_accelerator], rows[rows["InstanceType"].notna()]
    kinds = accelerators[["AcceleratorName", "AcceleratorCount"]].drop_duplicates().itertuples(index=False, name=None)
    pairs = [
        *bound,
        *(
            {"InstanceType": host, "AcceleratorName": name, "AcceleratorCount": count}
            for name, count in kinds
            if name not in names
            for host in _gcp_hosts(name, int(count))
        ),
    ]
    rented = (
        accelerators.drop(columns=["InstanceType", "vCPUs", "MemoryGiB"])
        .merge(pd.DataFrame(pairs), on=["AcceleratorName", "AcceleratorCount"])
        .merge(
            hosts[["InstanceType", "vCPUs", "MemoryGiB", "Region", "AvailabilityZone", "Price", "SpotPrice"]],
            on=["InstanceType", "Region", "AvailabilityZone"],
            suffixes=("", "OfHost"),
        )
    )
    rented["Price"] += rented["PriceOfHost"]
    rented["SpotPrice"] += rented["SpotPriceOfHost"]
    alone = hosts[~hosts["InstanceType"].isin([pair["InstanceType"] for pair in bound])]
    return pd.concat([rented[COLUMNS], alone[COLUMNS]])


def _gcp_hosts(name: str, count: int) -> list[str]:
    """The host that SkyPilot takes for an accelerator that GCP lets one add to any."""
    try:
        return skypilot().catalog.gcp_catalog.get_instance_type_for_accelerator(name, count)[0] or []
    except AssertionError:  # how SkyPilot says that it rents no host for so many
        return []


def _aws_zones() -> Any | None:
    """Which zone an account calls us-east-1a, as SkyPilot has last learnt it; None before that."""
    folder = Path(skypilot().catalog.common.get_catalog_path("aws"))
    maps = sorted(folder.glob("az_mappings-*.csv"), key=lambda path: path.stat().st_mtime)
    return _read(f"aws/{maps[-1].name}") if maps else None


def _within(rows: Any, place: Place) -> Any:
    if place.region is None:
        return rows
    found = rows[rows["Region"].str.lower() == place.region.lower()]
    if found.empty:
        regions = rows["Region"].dropna().unique()
        raise Refused(f"{place.region} is no region of {place.cloud}; {closest(place.region, regions)}")
    if place.zone is None:
        return found
    zones = found["AvailabilityZone"].dropna().astype(str)
    inside = found[found["AvailabilityZone"].astype(str).str.lower() == place.zone.lower()]
    if inside.empty:
        known = closest(place.zone, zones.unique()) if len(zones) else "name the region: its zones are not known here"
        raise Refused(f"{place.zone} is no zone of {place.cloud}/{place.region}; {known}")
    return inside


def _offers(
    rows: Any, place: Place, accelerators: frozenset[str], memory: _Memory, *, has_zone_names: bool
) -> Iterator[Offer]:
    is_plain = rows["AcceleratorName"].isna()
    is_asked = ~is_plain | (ON_PROCESSORS.lower() in accelerators)
    if accelerators:
        is_asked &= is_plain | rows["AcceleratorName"].fillna("").str.lower().isin(accelerators)
    rows = rows[is_asked]
    for column, use_spot in (("Price", False), ("SpotPrice", True)):
        # An empty price is none, and so is a catalogue's 0: nobody rents out machines for nothing.
        priced = rows[rows[column] > 0]
        cells = _cells(priced, column, by_zone=place.zone is not None, has_zone_names=has_zone_names)
        seen = set()
        for name, count, processors, host, info, region, zone, instance, dollars in cells:
            cell = f"{place.cloud}/{region}/{zone}" if zone else f"{place.cloud}/{region}"
            # Of many machines with as many processors and as much memory, the cheapest, which comes first.
            size = (cell, processors, host)
            if name is None and size in seen:
                continue
            seen.add(size)
            yield Offer(
                cell=cell,
                accelerator=name or ON_PROCESSORS,
                accelerators=int(count),
                accelerator_gib=memory.gib(name, info) if name else 0.0,
                host_gib=host,
                use_spot=use_spot,
                dollars_per_hour=round(dollars, 6),
                instance=instance,
            )


def _cells(rows: Any, column: str, *, by_zone: bool, has_zone_names: bool) -> Iterator[tuple[Any, ...]]:
    """Cheapest first: a row for each machine and region, or one for each zone where the zones' prices differ."""
    prices = rows.groupby(MACHINE, dropna=False)[column]
    dearest = prices.transform("max")
    is_even = (dearest - prices.transform("min")) < CENT_OF_A_CENT
    if by_zone:
        is_even &= False
    elif not has_zone_names:
        is_even |= True
    rows = rows.assign(Dollars=rows[column].where(~is_even, dearest))
    rows["AvailabilityZone"] = rows["AvailabilityZone"].astype(object).where(~is_even, None)
    rows = rows.drop_duplicates([*MACHINE, "AvailabilityZone"]).sort_values(["Dollars", "InstanceType"])
    order = ["AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB", "GpuInfo", "Region", "AvailabilityZone"]
    table = rows[[*order, "InstanceType", "Dollars"]].astype(object)
    yield from table.where(table.notna(), None).itertuples(index=False, name=None)


def _read(name: str) -> Any:
    common = skypilot().catalog.common
    try:
        return common.read_catalog(name, pull_frequency_hours=HOURS_UNTIL_OLD).copy()
    except OSError as error:  # which requests' errors are too
        raise Unavailable(f"SkyPilot's catalogue {name} could not be fetched ({error}); try again online") from None
    except ValueError as error:
        raise Refused(
            f"SkyPilot's catalogue {name} cannot be read ({error}); delete the file, and it is fetched"
        ) from None
