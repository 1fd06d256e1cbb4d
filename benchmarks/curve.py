"""The loss curve of a run as MLflow has it, as a Markdown table and a PNG.

python -m benchmarks.curve RUN_NAME EVERY_STEPS curve.png
"""

import sys

import matplotlib.pyplot as plt
import mlflow

from pipeline.run_identity import default_tracking_uri


def main(name: str, every: int, picture: str) -> None:
    """Print train bits/dim every so many steps and every validation, and draw both."""
    client = mlflow.MlflowClient(default_tracking_uri())
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    run_id = client.search_runs(experiments, f"attributes.run_name = '{name}'")[0].info.run_id
    train = {metric.step: metric.value for metric in client.get_metric_history(run_id, "train/bits_per_dim")}
    val = {metric.step: metric.value for metric in client.get_metric_history(run_id, "val/bits_per_dim")}
    print("| step | train bits/dim | val bits/dim |\n| ---: | ---: | ---: |")
    for step in sorted(train | val):
        if step % every == 0 or step in val:
            print(f"| {step:,} | {train.get(step, float('nan')):.4f} | {f'{val[step]:.4f}' if step in val else ''} |")
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(list(train), list(train.values()), label="train, mean since the line before")
    axes.plot(list(val), list(val.values()), "o", label="val, averaged weights")
    axes.set(xlabel="step", ylabel="bits/dim", title=name)
    axes.legend()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
