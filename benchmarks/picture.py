"""Draw the table: `picture.py RESULTS.json PICTURE.png`, in an environment that has matplotlib."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
from table import Row, Table, written

mpl.use("Agg")  # there may be no screen, which is to be known before what follows

from matplotlib import pyplot as plt
from matplotlib.patches import Patch

SHADES = {"fork": "#1f77b4", "forkserver": "#ff7f0e", "spawn": "#2ca02c"}
ACROSS = 3  # panels beside each other


def main() -> None:
    table = Table.load(Path(sys.argv[1]))
    rows = [row for row in table.rows if set(row.columns) <= set(SHADES)]
    down = -(-len(rows) // ACROSS)
    figure, panels = plt.subplots(
        down, ACROSS, figsize=(6 * ACROSS, 4.2 * down), squeeze=False, layout="constrained"
    )
    places = [place for line in panels for place in line]
    for place, row in zip(places, rows):
        _panel(place, row)
    for place in places[len(rows) :]:
        place.set_axis_off()
    places[0].legend(
        handles=[Patch(color=shade, label=method) for method, shade in SHADES.items()],
        fontsize=8,
    )
    machine = table.machine
    figure.suptitle(
        f"Less is better. {machine['processor']}, {machine['Python']}, {machine['date']}"
    )
    figure.savefig(sys.argv[2], dpi=70)


def _panel(place: plt.Axes, row: Row) -> None:
    """A group of bars for each contestant, one for each start method."""
    labels = [label for label, cells in row.lines.items() if any(cells)]
    height = 0.8 / len(row.columns)
    for number, method in enumerate(row.columns):
        for position, label in enumerate(labels):
            cell = row.lines[label][number]
            if cell is not None:
                where = position + number * height
                place.barh(where, cell.value, height, color=SHADES[method])
                place.text(
                    cell.value, where, f" {written(cell.value, row.unit)}", va="center", fontsize=6
                )
    place.set_yticks([position + 0.4 - height / 2 for position in range(len(labels))], labels)
    place.invert_yaxis()
    place.set_xscale("log")
    place.set_xticks([])
    place.minorticks_off()
    place.margins(x=0.25)
    place.set_title(f"{row.title}\n{', '.join(map(str, row.bars))}", fontsize=9)


if __name__ == "__main__":
    main()
