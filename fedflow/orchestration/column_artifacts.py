"""What the Prefect UI shows of a describing job: columns as a table, a picture, a section of TOML.

Every figure is from a noised sum over sites that their budgets paid for; there is nothing else.
"""

from __future__ import annotations

from typing import Any

from prefect.artifacts import MarkdownArtifact, TableArtifact

from fedflow.federation.described import Described
from fedflow.learning.statistics import ColumnStatistics
from fedflow.orchestration.charts import columns_chart
from fedflow.orchestration.publishing import attempt, create, svg_url

_MOST_SHOWN = 40


async def publish_columns(found: Described, where: str) -> None:
    """Publish the statistics and the section that follows, which is also in the file ``where``."""
    about = (
        f"Columns of workload {found.plan.plan.workload}, from noised secure sums. ± is one"
        " standard error of the noise. Minima and maxima are not private, so there are none."
    )
    shown = found.columns[:_MOST_SHOWN]
    picture = columns_chart(
        f"{found.job}: missing values, and from where to where the rest lies",
        [(each.column.name, each.missing, _places(each)) for each in shown],
    )
    section = (
        f"To be put into the plan of a job that trains; also in `{where}`.\n\n"
        f"```toml\n{found.toml()}```\n\n![columns of {found.job}]({svg_url(picture)})\n"
    )
    for artifact in (
        TableArtifact(
            key=f"{found.job}-columns", table=column_rows(found.columns), description=about
        ),
        MarkdownArtifact(key=f"{found.job}-preprocessing", markdown=section),
    ):
        await attempt(lambda artifact=artifact: create(artifact))  # type: ignore[misc]


def column_rows(columns: tuple[ColumnStatistics, ...]) -> list[dict[str, Any]]:
    """One row per column, for people."""
    return [_row(each) for each in columns]


def _row(each: ColumnStatistics) -> dict[str, Any]:
    row: dict[str, Any] = {
        "column": each.column.name,
        "missing": f"{each.missing:.1%} ± {each.error:.1%}",
    }
    if each.column.categories:
        kept = ", ".join(each.column.label(code) for code in each.kept)
        return (
            row
            | dict.fromkeys(("mean", "deviation", "1 %", "50 %", "99 %"), "")
            | {"categories": f"{len(each.kept)} of {each.column.categories}: {kept}"}
        )
    low, middle, high = (f"{value:.5g}" for value in each.quantiles)
    return row | {
        "mean": f"{each.mean:.5g}",
        "deviation": f"{each.deviation:.5g}",
        "1 %": low,
        "50 %": middle,
        "99 %": high,
        "categories": "",
    }


def _places(each: ColumnStatistics) -> tuple[float, ...]:
    """The quantiles as shares of the public range; none of categories."""
    column = each.column
    return tuple((value - column.low) / (column.high - column.low) for value in each.quantiles)
