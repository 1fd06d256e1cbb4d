"""Whether drawn digits are recognisable: a scikit-learn classifier of the real training digits reads drawn ones.

    python -m benchmarks.digits samples.npz

samples.npz is what `python -m jobs.sample digits --sample.count 1000` writes.
"""

import argparse
import zipfile
from pathlib import Path

import numpy as np
from sklearn.svm import SVC

from benchmarks.words import run_script
from pipeline.errors import UserError
from pipeline.presets import PRESETS
from pipeline.sources.opening import open_source


def drawn_digits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, of shape (N, 64), and labels, of shape (N,).

    Raises:
        UserError: the file isn't what `jobs.sample digits` writes.
    """
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
            return images.reshape(len(labels), 64), labels
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: no digits with labels ({error}); draw some by `python -m jobs.sample digits`"
        ) from error


def main() -> None:
    """Print the classifier's accuracy on held-out real digits and on the drawn ones, in all and by class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, metavar="SAMPLES")
    drawn, wanted = drawn_digits(parser.parse_args().samples)
    data = PRESETS["digits"].config.data
    source = open_source(data)
    pixels, labels = {}, {}
    for split, images in source.splits.items():
        pixels[split] = np.stack([image.load().ravel() for image in images])
        labels[split] = np.array([image.label for image in images])
    classifier = SVC(gamma=0.001).fit(pixels[data.train_split], labels[data.train_split])
    real = classifier.score(pixels[data.val_split], labels[data.val_split])
    right = classifier.predict(drawn) == wanted
    print(f"real held-out digits recognised: {real:.1%} of {len(labels[data.val_split])}")
    print(f"drawn digits recognised as their label: {right.mean():.1%} of {len(right)}")
    for label in np.unique(wanted):
        print(f"  {label}: {right[wanted == label].mean():.1%}")


if __name__ == "__main__":
    run_script(main)
