"""Run a TensorRT engine on image files or arrays. Written by trtq package.

    python run.py image.jpg another.png
    python run.py inputs.npz --out answers.npz

It needs TensorRT (the module that the manifest names), NumPy and Pillow, and Python 3.8 or later.
"""

import argparse
import ctypes
import hashlib
import importlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
ARRAYS = (".npz", ".npy")

# ---- image_input ----


class Cuda:
    """The calls of the CUDA driver that a run needs; it comes with the GPU's driver."""

    def __init__(self, device):
        try:
            self.driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        except OSError as exc:
            raise SystemExit("The driver of an NVIDIA GPU is needed: %s" % exc) from exc
        number, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuInit", ctypes.c_uint(0))
        self.call("cuDeviceGet", ctypes.byref(number), ctypes.c_int(device))
        # The context that CUDA's runtime, and so TensorRT, uses.
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), number)
        self.call("cuCtxSetCurrent", context)
        stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(0))
        self.stream = stream

    def call(self, name, *args):
        """Call a function of the driver."""
        status = getattr(self.driver, name)(*args)
        if status:
            raise SystemExit("CUDA: %s failed with status %d" % (name, status))

    def allocate(self, size):
        """Return the address of memory on the GPU."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def free(self, address):
        """Give memory back."""
        self.call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address, array):
        """Copy an array to the GPU."""
        source = ctypes.c_void_p(array.ctypes.data)
        self.call(
            "cuMemcpyHtoD_v2", ctypes.c_uint64(address), source, ctypes.c_size_t(array.nbytes)
        )

    def download(self, array, address):
        """Copy from the GPU into an array."""
        goal = ctypes.c_void_p(array.ctypes.data)
        self.call("cuMemcpyDtoH_v2", goal, ctypes.c_uint64(address), ctypes.c_size_t(array.nbytes))

    def synchronize(self):
        """Wait for what was started."""
        self.call("cuStreamSynchronize", self.stream)


class Engine:
    """An engine on the GPU, after its manifest was compared with it."""

    def __init__(self, path, device=0):
        self.manifest = json.loads(path.with_name(path.name + ".json").read_bytes())
        plan = path.read_bytes()
        if hashlib.sha256(plan).hexdigest() != self.manifest["engine_sha256"]:
            raise SystemExit("%s is not the engine of its manifest" % path)
        builder = self.manifest["builder"]
        try:
            self.trt = importlib.import_module(builder.get("module") or "tensorrt")
        except ImportError as exc:
            raise SystemExit(
                "%s %s is needed: %s" % (builder["backend"], builder["version"], exc)
            ) from exc
        self.cuda = Cuda(device)
        self.logger = self.trt.Logger(self.trt.Logger.WARNING)
        self.runtime = self.trt.Runtime(self.logger)
        spec = self.manifest["spec"]
        if spec.get("version_compatible"):
            self.runtime.engine_host_code_allowed = True  # such plans hold code
        if spec.get("dla") is not None:
            self.runtime.DLA_core = spec["dla"]
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise SystemExit(
                "TensorRT %s cannot load %s, which %s %s built for %s"
                % (
                    self.trt.__version__,
                    path.name,
                    builder["backend"],
                    builder["version"],
                    self.manifest["target"]["device"],
                )
            )
        self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.types = {n: self.type_of(n) for n in names}
        is_input = self.trt.TensorIOMode.INPUT
        self.inputs = [n for n in names if self.engine.get_tensor_mode(n) == is_input]
        self.outputs = [n for n in names if n not in self.inputs]

    def type_of(self, name):
        """Return the type of an input or output in numpy."""
        kind = self.engine.get_tensor_dtype(name)
        try:
            return np.dtype(self.trt.nptype(kind))
        except TypeError as exc:
            raise SystemExit(
                "The tensor %s is %s, a type that numpy does not have: cast inputs and outputs to "
                "float32 in the ONNX file, and build it again" % (name, kind)
            ) from exc

    def run(self, feed):
        """Return the outputs by name.

        ``feed`` has an array for each input, of a shape that the engine was built for.
        """
        given = {n: self.fitted(n, feed) for n in self.inputs}
        self.set_shapes(given)
        answers = {n: np.empty(self.shape(n), self.types[n]) for n in self.outputs}
        addresses = {}
        try:
            for name, array in {**given, **answers}.items():
                addresses[name] = self.cuda.allocate(array.nbytes)
                self.context.set_tensor_address(name, addresses[name])
            for name, array in given.items():
                self.cuda.upload(addresses[name], array)
            if not self.context.execute_async_v3(self.cuda.stream.value or 0):
                raise SystemExit("TensorRT cannot run the engine")
            self.cuda.synchronize()
            for name, array in answers.items():
                self.cuda.download(array, addresses[name])
        finally:
            for address in addresses.values():
                self.cuda.free(address)
        return answers

    def set_shapes(self, given):
        """Tell the engine the shapes of its inputs."""
        for name, array in given.items():
            if not self.context.set_input_shape(name, tuple(array.shape)):
                raise SystemExit(
                    "the engine was not built for %s %s; %s"
                    % (name, list(array.shape), self.built_for(name))
                )

    def fitted(self, name, feed):
        """Return the array of an input in the engine's type, if that holds its values."""
        if name not in feed:
            raise SystemExit("%s is missing; the inputs are %s" % (name, ", ".join(self.inputs)))
        array = np.asarray(feed[name])
        if not np.can_cast(array.dtype, self.types[name], "same_kind"):
            raise SystemExit("%s is %s, not %s" % (name, array.dtype, self.types[name]))
        cast = np.ascontiguousarray(array.astype(self.types[name]))
        if array.dtype.kind in "iu" and (cast != array).any():
            raise SystemExit("%s has values that %s cannot hold" % (name, self.types[name]))
        return cast

    def shape(self, name):
        """Return the shape of an output for the shapes of the inputs."""
        shape = tuple(self.context.get_tensor_shape(name))
        if any(d < 0 for d in shape):
            raise SystemExit("the shape of %s depends on values: %s" % (name, list(shape)))
        return shape

    def built_for(self, name):
        """Return the shapes that the engine takes, as text."""
        for row in self.manifest.get("inputs", []):
            if row["name"] == name:
                return "it takes %s to %s" % (row["least"], row["most"])
        return "its manifest does not say which it takes"

    def answer(self, images):
        """Return the outputs for prepared images [N, C, H, W], in parts of the engine's batch."""
        least, _, most = self.manifest["batch"]
        parts = []
        for start in range(0, len(images), most):
            part = images[start : start + most]
            missing = max(least - len(part), 0)
            filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
            outputs = self.run({self.inputs[0]: filled})
            parts.append({n: v[: len(part)] for n, v in outputs.items()})
        return {n: np.concatenate([p[n] for p in parts]) for n in self.outputs}


def read_arrays(file, engine):
    """Return arrays by input name from an .npz file, or from an .npy file for one input."""
    arrays = np.load(str(file), allow_pickle=False)
    return {engine.inputs[0]: arrays} if isinstance(arrays, np.ndarray) else dict(arrays)


def answers_of(files, engine):
    """Return the outputs for files: one of arrays, or images."""
    if files[0].suffix in ARRAYS:
        if len(files) > 1:
            raise SystemExit("give one file of arrays, or images")
        return engine.run(read_arrays(files[0], engine))
    how = engine.manifest.get("preprocess")
    if how is None or len(engine.inputs) != 1:
        raise SystemExit("the manifest does not say how images become the input: give an .npz file")
    return engine.answer(np.stack([prepared(read_image(f.read_bytes()), how) for f in files]))


def visible(text):
    """Return a text without characters that would steer a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def show(answers, files, labels, top):
    """Print the outputs: the best classes where there is one score for each label."""
    for name, values in answers.items():
        print("%s %s %s" % (visible(name), values.dtype, list(values.shape)))
        if labels and values.ndim == 2 and values.shape[1] == len(labels):
            for i, scores in enumerate(values):
                best = np.argsort(-scores, kind="stable")[:top]
                shown = ", ".join("%s %.4g" % (visible(labels[c]), scores[c]) for c in best)
                given = files[i].name if len(files) == len(values) else i
                print("  %s: %s" % (visible(given), shown))


def main():
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="+", type=Path, help="images, or one .npz or .npy file")
    parser.add_argument("--engine", type=Path, default=HERE / "model.engine")
    parser.add_argument("--out", type=Path, help="write the outputs to this .npz file")
    parser.add_argument("--device", type=int, default=0, help="number of the GPU")
    parser.add_argument("--top", type=int, default=5, help="how many classes are shown")
    arguments = parser.parse_args()
    engine = Engine(arguments.engine, arguments.device)
    answers = answers_of(arguments.inputs, engine)
    names = HERE / "labels.txt"
    labels = names.read_text(encoding="utf-8").splitlines() if names.is_file() else []
    show(answers, arguments.inputs, labels, arguments.top)
    if arguments.out is not None:
        np.savez(str(arguments.out), **answers)


if __name__ == "__main__":
    sys.exit(main())
