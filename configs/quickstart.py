"""What the features of `quickstart.yaml` mean: each photograph's nearest other one, and its top class."""

import sys

import numpy as np
from rich.console import Console
from rich.table import Table
from torchvision.models import MobileNet_V2_Weights

import layertap

features = layertap.open(sys.argv[1] if len(sys.argv) > 1 else "quickstart/")
embedding = np.asarray(features["embedding"])
top = np.asarray(features["logits"]).argmax(axis=1)

unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
cosine = unit @ unit.T
np.fill_diagonal(cosine, -1)  # the nearest *other* image
nearest = cosine.argmax(axis=1)

table = Table("image", "nearest other image", "cosine", "top class")
for row, name in enumerate(features.ids):
    near = nearest[row]
    category = MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"][top[row]]
    table.add_row(name, features.ids[near], f"{cosine[row, near]:.2f}", category)
Console().print(table)
