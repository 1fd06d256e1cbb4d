"""The loss curve of a run as MLflow has it, as a Markdown table and a PNG.

python -m benchmarks.curve RUN EVERY_STEPS curve.png
"""

import argparse

import mlflow
from matplotlib.figure import Figure

from benchmarks.words import count, run_script
from pipeline.plot import figure_png
from pipeline.registry import find_run
from pipeline.run_identity import default_tracking_uri
from pipeline.storage import write


def main() -> None:
    """Print train bits/dim every so many steps and every validation, and draw both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="RUN", help="name or id in MLflow")
    parser.add_argument("every", type=count, metavar="EVERY_STEPS")
    parser.add_argument("picture", metavar="PNG")
    words = parser.parse_args()
    run_id = find_run(default_tracking_uri(), words.name).run_id
    client = mlflow.MlflowClient(default_tracking_uri())
    train = {metric.step: metric.value for metric in client.get_metric_history(run_id, "train/bits_per_dim")}
    val = {metric.step: metric.value for metric in client.get_metric_history(run_id, "val/bits_per_dim")}
    print("| step | train bits/dim | val bits/dim |\n| ---: | ---: | ---: |")
    for step in sorted(train | val):
        if step % words.every == 0 or step in val:
            print(f"| {step:,} | {train.get(step, float('nan')):.4f} | {f'{val[step]:.4f}' if step in val else ''} |")
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    axes.plot(list(train), list(train.values()), label="train, mean since the line before")
    axes.plot(list(val), list(val.values()), "o", label="val, averaged weights")
    axes.set(xlabel="step", ylabel="bits/dim", title=words.name)
    axes.legend()
    write(words.picture, figure_png(figure))


if __name__ == "__main__":
    run_script(main)
