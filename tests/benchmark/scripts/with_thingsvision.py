"""thingsvision as its README extracts features: `with_thingsvision.py IMAGES OUT LAYER`."""

import sys
from pathlib import Path

from thingsvision import get_extractor
from thingsvision.utils.data import DataLoader, ImageDataset
from thingsvision.utils.storing import save_features


def main(folder, out, layer):
    out = str(Path(out).with_suffix(""))
    extractor = get_extractor(model_name="alexnet", source="torchvision", device="cpu", pretrained=False)
    backend = extractor.get_backend()
    dataset = ImageDataset(root=folder, out_path=out, backend=backend, transforms=extractor.get_transformations())
    batches = DataLoader(dataset=dataset, batch_size=64, backend=backend)
    features = extractor.extract_features(batches=batches, module_name=layer, flatten_acts=True, output_type="ndarray")
    save_features(features, out_path=out, file_format="npy")


main(*sys.argv[1:])
