"""Stand-ins for TensorRT's Python module on a board without NVIDIA's software; Python 3.6, standard library alone.

An engine is any file; it takes one float32 input [N, C, H, W] called ``input`` and answers with the mean of every channel, [N, C]:
what a model of one global average pooling computes. Addresses are of ordinary memory, as ``CUDART`` below hands them out.
"""

import array
import ctypes

__version__ = "8.5.2.2"
# A runtime library of CUDA whose device is this machine's memory: for `gcc -shared -fPIC`.
CUDART = """
#include <stdlib.h>
#include <string.h>
int cudaMalloc(void **p, size_t n) { *p = malloc(n); return *p == 0 ? 2 : 0; }
int cudaMemcpy(void *to, const void *from, size_t n, int kind) { memcpy(to, from, n); return kind == 1 || kind == 2 ? 0 : 21; }
int cudaDeviceSynchronize(void) { return 0; }
"""


class Logger:
    ERROR, WARNING = 1, 2

    def __init__(self, severity):
        pass


class TensorIOMode:
    INPUT, OUTPUT = 0, 1


class _Context:
    def __init__(self):
        self.shape, self.places = None, {}

    def set_input_shape(self, name, shape):
        self.shape = list(shape)

    def get_tensor_shape(self, name):
        return self.shape if name == "input" else self.shape[:2]

    def set_tensor_address(self, name, address):
        self.places[name] = address

    def execute_async_v3(self, stream):
        count, channels, size = self.shape[0], self.shape[1], self.shape[2] * self.shape[3]
        values = array.array("f")
        values.frombytes(ctypes.string_at(self.places["input"], 4 * count * channels * size))
        means = array.array("f", [sum(values[i * size : (i + 1) * size]) / size for i in range(count * channels)])
        ctypes.memmove(self.places["output"], means.tobytes(), 4 * count * channels)
        return True


class _Engine:
    num_io_tensors = 2

    def get_tensor_name(self, index):
        return ("input", "output")[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == "input" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return "DataType.FLOAT"

    def create_execution_context(self):
        return _Context()


class Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, plan):
        return _Engine() if plan else None
