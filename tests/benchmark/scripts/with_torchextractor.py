"""torchextractor with a DataLoader: `with_torchextractor.py IMAGES OUT LAYER`."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torchextractor
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.models import AlexNet_Weights, alexnet


class Images(Dataset):
    def __init__(self, folder):
        self.paths = sorted(Path(folder).iterdir())
        self.transforms = AlexNet_Weights.DEFAULT.transforms()

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transforms(Image.open(self.paths[index]).convert("RGB"))


def main(folder, out, layer):
    torch.manual_seed(0)
    extractor = torchextractor.Extractor(alexnet().eval(), [layer])
    kept = []
    with torch.no_grad():
        for batch in DataLoader(Images(folder), batch_size=64, num_workers=os.cpu_count()):
            _, features = extractor(batch)
            kept.append(features[layer].clone())
    np.save(out, torch.cat(kept).numpy())


main(*sys.argv[1:])
