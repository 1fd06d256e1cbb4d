"""Whether drawn digits are recognisable: a scikit-learn classifier of the real training digits reads drawn ones.

    python -m benchmarks.digits samples.npz

samples.npz is what `python -m jobs.sample digits --sample.count 1000` writes.
"""

import sys

import numpy as np
from sklearn.svm import SVC

from pipeline.presets import PRESETS
from pipeline.sources.opening import open_source


def main(path: str) -> None:
    """Print the classifier's accuracy on held-out real digits and on the drawn ones, in all and by class."""
    data = PRESETS["digits"].config.data
    source = open_source(data)
    pixels, labels = {}, {}
    for split, images in source.splits.items():
        pixels[split] = np.stack([image.load().ravel() for image in images])
        labels[split] = np.array([image.label for image in images])
    classifier = SVC(gamma=0.001).fit(pixels[data.train_split], labels[data.train_split])
    real = classifier.score(pixels[data.val_split], labels[data.val_split])
    drawn = np.load(path)
    right = classifier.predict(drawn["images"].reshape(len(drawn["images"]), -1)) == drawn["labels"]
    print(f"real held-out digits recognised: {real:.1%} of {len(labels[data.val_split])}")
    print(f"drawn digits recognised as their label: {right.mean():.1%} of {len(right)}")
    for label in range(10):
        print(f"  {label}: {right[drawn['labels'] == label].mean():.1%}")


if __name__ == "__main__":
    main(sys.argv[1])
