"""Every row of front_door.py: models and inputs that people deploy, with random weights."""

from __future__ import annotations

from front_common import Door
from front_detection import BRANCHES, DENSE, DETECTION, FEATURES
from front_encoders import ENCODERS, SPEECHES, TEXTS
from front_files import ONNX_FILES
from front_inputs import INPUTS, SAMPLES

GROUPS: dict[str, dict[str, Door]] = {
    "Inputs and outputs": INPUTS,
    "Samples": SAMPLES,
    "Files of other tools": ONNX_FILES,
    "Detection": DETECTION,
    "Dense prediction": DENSE,
    "Features": FEATURES,
    "Image encoders": ENCODERS,
    "Text": TEXTS,
    "Speech and series": SPEECHES,
    "Training branches and wrappers": BRANCHES,
}
DOORS: dict[str, Door] = {name: door for group in GROUPS.values() for name, door in group.items()}
