"""The script in most tutorials: load all, one forward pass, save: `tutorial.py IMAGES OUT LAYER`."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.models import AlexNet_Weights, alexnet


def main(folder, out, layer):
    torch.manual_seed(0)
    model = alexnet().eval()
    transforms = AlexNet_Weights.DEFAULT.transforms()
    activations = {}
    hook = model.get_submodule(layer)
    hook.register_forward_hook(lambda module, inputs, output: activations.update(it=output.detach().clone()))
    images = torch.stack([transforms(Image.open(path).convert("RGB")) for path in sorted(Path(folder).iterdir())])
    with torch.no_grad():
        model(images)
    np.save(out, activations["it"].numpy())


main(*sys.argv[1:])
