"""How well a linear classifier reads the labels off the features: `python configs/probe.py [OUT [TAP]]`.

Every image is judged by a classifier that has not seen it. Needs scikit-learn.
"""

import sys

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import layertap

features = layertap.open(sys.argv[1] if len(sys.argv) > 1 else "layers/")
tap = sys.argv[2] if len(sys.argv) > 2 else features.taps[-1]
values = np.asarray(features[tap], np.float32).reshape(len(features.ids), -1)
labels = np.array([row.get("label", "") for row in features.index])
names, counts = np.unique(labels, return_counts=True)
if len(names) < 2 or counts.min() < 2:
    sys.exit(f"{features.path}: a probe takes two labels or more, and two images or more of each")

probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
folds = StratifiedKFold(min(5, counts.min()), shuffle=True, random_state=0)
guesses = cross_val_predict(probe, values, labels, cv=folds)
accuracy, chance = (guesses == labels).mean(), counts.max() / len(labels)

width = max(map(len, names))
print(f"{tap}: {len(labels)} images, {len(names)} labels, {values.shape[1]} values per image")
print(f"accuracy on images held out: {accuracy:.2f} (by chance {chance:.2f})")
for name, count in zip(names, counts, strict=True):
    others, times = np.unique(guesses[(labels == name) & (guesses != name)], return_counts=True)
    wrong = f"   taken for {others[times.argmax()]}" if len(others) else ""
    print(f"{name:{width}}   {count - times.sum():4} of {count:4}{wrong}")
