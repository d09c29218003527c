"""Each image's nearest others by the cosine of their features: `python configs/neighbours.py [OUT [TAP]]`."""

import sys

import numpy as np

import layertap

NEAREST = 3
ROWS = 1024  # compared with all others at a time, so that memory stays bounded

features = layertap.open(sys.argv[1] if len(sys.argv) > 1 else "layers/")
tap = sys.argv[2] if len(sys.argv) > 2 else features.taps[-1]
values = np.asarray(features[tap], np.float32).reshape(len(features.ids), -1)
unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
width = max(map(len, features.ids))

print(f"nearest by {tap}, {values.shape[1]} values per image")
for start in range(0, len(unit), ROWS):
    cosine = unit[start : start + ROWS] @ unit.T
    own = np.arange(len(cosine))
    cosine[own, start + own] = -np.inf  # the nearest *other* images
    nearest = np.argsort(-cosine, axis=1)[:, : min(NEAREST, len(unit) - 1)]
    for row, others in enumerate(nearest):
        found = "   ".join(f"{features.ids[other]:{width}} {cosine[row, other]:.2f}" for other in others)
        print(f"{features.ids[start + row]:{width}}   {found}")
