"""img2vec, 64 images at a time: `with_img2vec.py IMAGES OUT LAYER`; it takes the layer before the last.

It supports only pretrained models: TORCH_HOME holds a file of that name; its values do not affect the time.
"""

import sys
from pathlib import Path

import numpy as np
from img2vec_pytorch import Img2Vec
from PIL import Image


def main(folder, out, layer):
    img2vec = Img2Vec(model="alexnet")
    paths = sorted(Path(folder).iterdir())
    vectors = []
    for first in range(0, len(paths), 64):
        images = [Image.open(path).convert("RGB") for path in paths[first : first + 64]]
        vectors.append(img2vec.get_vec(images))
    np.save(out, np.concatenate(vectors))


main(*sys.argv[1:])
