"""Triton's Python backend: image files in, the model's input out. Written by trtq package."""

import io
import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image, ImageOps

# ---- image_input ----


class TritonPythonModel:
    """Decodes each image of a request and makes the model's input of it."""

    def initialize(self, args):
        """Read how images become the input, from the file beside this one."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self.how = json.loads((folder / "preprocess.json").read_text())
        config = json.loads(args["model_config"])
        self.output = config["output"][0]["name"]
        kind = pb_utils.get_output_config_by_name(config, self.output)["data_type"]
        self.dtype = pb_utils.triton_string_to_numpy(kind)

    def execute(self, requests):
        """Return one response a request; an image that cannot be read is its error."""
        responses = []
        for request in requests:
            files = pb_utils.get_input_tensor_by_name(request, "IMAGES").as_numpy()
            try:
                images = [prepared(read_image(f), self.how) for f in files.reshape(-1)]
            except Exception as exc:
                error = pb_utils.TritonError("cannot read an image: %s" % exc)
                responses.append(pb_utils.InferenceResponse(output_tensors=[], error=error))
                continue
            tensor = pb_utils.Tensor(self.output, np.stack(images).astype(self.dtype))
            responses.append(pb_utils.InferenceResponse(output_tensors=[tensor]))
        return responses
