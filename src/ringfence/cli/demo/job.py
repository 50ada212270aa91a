"""The demo's data job: orders for two years, made here, crunched by pandas in a sandbox, and a chart back."""

from __future__ import annotations

import calendar
import io
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from ringfence.client import Client, Sandbox
from ringfence.domain.limits import MIB

ROWS: Final = 120_000
MONTHS: Final = 24
SEED: Final = 20_24
REGIONS: Final = (("north", 30), ("south", 24), ("east", 19), ("west", 16), ("overseas", 11))
GOODS: Final = (("chair", 89.0), ("desk", 349.0), ("lamp", 39.5), ("shelf", 129.0), ("sofa", 899.0), ("rug", 149.0))

PROGRAM: Final = """
import json
import matplotlib.pyplot as plt
import pandas as pd

orders = pd.read_csv("orders.csv", parse_dates=["date"])
orders["revenue"] = orders["quantity"] * orders["unit_price"] * (1 - orders["discount"])
by_region = orders.groupby("region")["revenue"].agg(["sum", "count", "mean"]).sort_values("sum", ascending=False)
monthly = orders.pivot_table(index=orders["date"].dt.to_period("M"), columns="region", values="revenue", aggfunc="sum")
total = monthly.sum(axis=1)
growth = total.iloc[12:].sum() / total.iloc[:12].sum() - 1
best = orders.groupby("product")["revenue"].sum().idxmax()

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), width_ratios=[3, 2])
monthly[by_region.index].div(1e6).plot(ax=left, title="Revenue by month (million)", xlabel="")
by_region["sum"].div(1e6).iloc[::-1].plot.barh(ax=right, title="Revenue by region (million)", ylabel="")
figure.tight_layout()
figure.savefig("chart.png", dpi=100)

print(json.dumps({
    "rows": len(orders),
    "growth": growth,
    "best_product": best,
    "best_month": str(total.idxmax()),
    "regions": [[name, row["sum"], int(row["count"]), row["mean"]] for name, row in by_region.iterrows()],
}))
"""


class Findings(msgspec.Struct, frozen=True):
    """What the sandbox's program reports; checked, because a sandbox wrote it."""

    rows: int
    growth: float
    best_product: str
    best_month: str
    regions: list[tuple[str, float, int, float]]


@dataclass(slots=True)
class Phases:
    """How long each step took, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time one step."""
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began


def orders_csv(rows: int = ROWS) -> bytes:
    """Return plausible orders: growth, a season, regions of different size. The same every time."""
    chance = random.Random(SEED)  # noqa: S311 - sales figures, not secrets
    months = [(2023 + month // 12, month % 12 + 1) for month in range(MONTHS)]
    weights = [
        (1 + 0.015 * i) * (1 + 0.35 * math.cos((month - 12) / 6 * math.pi)) for i, (_, month) in enumerate(months)
    ]
    regions, shares = [name for name, _ in REGIONS], [share for _, share in REGIONS]
    picked = zip(
        chance.choices(months, weights, k=rows),
        chance.choices(regions, shares, k=rows),
        chance.choices(GOODS, k=rows),
        chance.choices((0, 0.05, 0.1, 0.2), (70, 15, 10, 5), k=rows),
        strict=True,
    )
    out = io.StringIO("order_id,date,region,product,quantity,unit_price,discount\n")
    out.seek(0, io.SEEK_END)
    for number, ((year, month), region, (good, price), discount) in enumerate(picked, 1):
        day = 1 + int(chance.random() * calendar.monthrange(year, month)[1])
        quantity = 1 + int(chance.expovariate(0.8))
        paid = price * (0.9 + 0.2 * chance.random())
        out.write(f"{number},{year}-{month:02}-{day:02},{region},{good},{quantity},{paid:.2f},{discount}\n")
    return out.getvalue().encode()


def perform(client: Client, chart: Path, phases: Phases) -> Findings:
    """Do the job and leave its chart in a local file. Raises what the server refuses, ProgramFailed, or Unreachable."""
    with phases.step("make the data"):
        data = orders_csv()
    with phases.step("create a sandbox"):
        place = Sandbox.create("python", ttl=120, limits={"memory_bytes": 1024 * MIB, "cpus": 1}, client=client)
    with place:
        with phases.step("upload"):
            place.files.write("orders.csv", data)
        with phases.step("crunch and draw"):
            result = place.run(PROGRAM, timeout=60).check()
        with phases.step("fetch the chart"):
            chart.parent.mkdir(parents=True, exist_ok=True)
            place.files.download("chart.png", chart)
    return msgspec.json.decode(result.stdout_bytes, type=Findings)
