"""timm with a DataLoader, as its documentation extracts features: `with_timm.py IMAGES OUT LAYER`.

The layer is the model's pooled output: timm has no other way to reach a layer that is not a stage.
"""

import os
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    def __init__(self, folder, transforms):
        self.paths = sorted(Path(folder).iterdir())
        self.transforms = transforms

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transforms(Image.open(self.paths[index]).convert("RGB"))


def main(folder, out, layer):
    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
    transforms = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        batches = DataLoader(Images(folder, transforms), batch_size=64, num_workers=os.cpu_count())
        features = [model(batch) for batch in batches]
    np.save(out, torch.cat(features).numpy())


main(*sys.argv[1:])
