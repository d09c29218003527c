"""How alike layers see the same images, as linear CKA: `python configs/cka.py [OUT]`.

1 where one layer's values are a rotation and scaling of the other's, 0 where they have nothing in common
(Kornblith et al., Similarity of Neural Network Representations Revisited, 2019). It takes many more images than a
layer has values to come near 0; compare layers by the same images. The similarities are computed from matrices of
images x images, so a layer may have any number of values per image.
"""

import sys

import numpy as np

import layertap

features = layertap.open(sys.argv[1] if len(sys.argv) > 1 else "layers/")
count = len(features.ids)


def gram(tap: str) -> np.ndarray:
    """The dot products of all pairs of images (images x images), centred, and scaled to length 1."""
    products, start = np.zeros((count, count)), 0
    for some in features[tap].chunks():
        some, end, at = some.reshape(len(some), -1).astype(np.float64), start + len(some), 0
        for others in features[tap].chunks():
            others = others.reshape(len(others), -1).astype(np.float64)
            products[start:end, at : at + len(others)] = some @ others.T
            at += len(others)
        start = end
    products -= products.mean(axis=0)
    products -= products.mean(axis=1, keepdims=True)
    return products / max(np.linalg.norm(products), 1e-12)


layers = [gram(tap) for tap in features.taps]
similarity = np.array([[np.sum(one * other) for other in layers] for one in layers])

width = max(map(len, features.taps))
print(f"linear CKA of {len(layers)} layers on {count} images")
print(" " * width, *(f"{tap:>{width}}" for tap in features.taps))
for tap, row in zip(features.taps, similarity, strict=True):
    print(f"{tap:{width}}", *(f"{value:{width}.2f}" for value in row))
