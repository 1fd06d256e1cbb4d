import io

import numpy as np
import torch
from PIL import Image

from pipeline.grid import grid_png


def test_grid_places_images_in_rows_and_stretches_levels() -> None:
    images = torch.stack([torch.full((1, 8, 8), level, dtype=torch.uint8) for level in (0, 8, 16)])
    picture = np.asarray(Image.open(io.BytesIO(grid_png(images, levels=17, columns=2))))
    assert picture.shape == (84, 84)
    assert (picture[20, 20], picture[20, 62], picture[62, 20], picture[62, 62]) == (0, 128, 255, 128)


def test_colour_grid_keeps_channels() -> None:
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    images[0, 0] = 255
    picture = np.asarray(Image.open(io.BytesIO(grid_png(images, levels=256, columns=1))))
    assert picture[20, 20].tolist() == [255, 0, 0]
