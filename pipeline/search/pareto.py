"""Which of a search's trials no other beats, and their plot; apart, as a trial needs no matplotlib."""

from matplotlib.figure import Figure

from pipeline.plot import figure_png
from pipeline.search.record import TrialRecord


def pareto_front(records: list[TrialRecord]) -> list[TrialRecord]:
    """Finished trials that no other beats in bits/dim without costing more FLOPs an image, the cheapest first."""
    front: list[TrialRecord] = []
    finished = [record for record in records if record.state == "finished" and record.last]
    for record in sorted(finished, key=lambda one: (one.gflop_per_image, one.reports[-1].bits_per_dim)):
        if not front or record.reports[-1].bits_per_dim < front[-1].reports[-1].bits_per_dim:
            front.append(record)
    return front


def pareto_png(records: list[TrialRecord]) -> bytes:
    """A plot of bits/dim over FLOPs an image: every trial, and the front of the finished ones."""
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    for state, marker in (("finished", "o"), ("stopped early", "x"), ("failed", "v"), ("out of memory", "v")):
        shown = [record for record in records if record.state == state and record.last]
        if shown:
            bits = [record.reports[-1].bits_per_dim for record in shown]
            axes.scatter([record.gflop_per_image for record in shown], bits, marker=marker, label=state)
    front = pareto_front(records)
    bits = [record.reports[-1].bits_per_dim for record in front]
    axes.plot([record.gflop_per_image for record in front], bits, label="Pareto front")
    for record, value in zip(front, bits, strict=True):
        axes.annotate(record.name, (record.gflop_per_image, value), fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("training GFLOP an image")
    axes.set_ylabel("bits/dim on the validation split")
    axes.legend()
    return figure_png(figure)
