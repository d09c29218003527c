"""How alike layers see the same images, as linear CKA: `python configs/cka.py [OUT]`.

1 where one layer's values are a rotation and scaling of the other's, 0 where they have nothing in common
(Kornblith et al., Similarity of Neural Network Representations Revisited, 2019). It takes many more images than a
layer has values to come near 0; compare layers by the same images.
"""

import sys

import numpy as np

import layertap

features = layertap.open(sys.argv[1] if len(sys.argv) > 1 else "layers/")


def centred(tap: str) -> np.ndarray:
    """The tap's values, one row an image, less their mean, and so scaled that each layer weighs the same."""
    values = np.asarray(features[tap], np.float64).reshape(len(features.ids), -1)
    values -= values.mean(axis=0)
    return values / max(np.sqrt(np.linalg.norm(values.T @ values)), 1e-12)


layers = [centred(tap) for tap in features.taps]
similarity = np.array([[np.linalg.norm(one.T @ other) ** 2 for other in layers] for one in layers])

width = max(map(len, features.taps))
print(f"linear CKA of {len(layers)} layers on {len(features.ids)} images")
print(" " * width, *(f"{tap:>{width}}" for tap in features.taps))
for tap, row in zip(features.taps, similarity, strict=True):
    print(f"{tap:{width}}", *(f"{value:{width}.2f}" for value in row))
