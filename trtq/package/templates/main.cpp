// Run a TensorRT engine on raw arrays. Written by trtq package.
//
//   run NAME=FILE[:DxDxD] ... [--engine FILE] [--out FOLDER]
//
// A file has the values of one input in the engine's type, in row-major order and in the byte order
// of this machine. Without sizes the usual shape of model.h is taken. Outputs go to FOLDER/NAME.bin.

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "model.h"

namespace {

using Bytes = std::vector<char>;

void require(bool sound, const std::string& message) {
  if (!sound) throw std::runtime_error(message);
}

void check(cudaError_t status, const char* call) {
  require(status == cudaSuccess, std::string(call) + ": " + cudaGetErrorString(status));
}

class Logger : public nvinfer1::ILogger {
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kWARNING) std::cerr << "TensorRT: " << message << std::endl;
  }
};

// Memory on the GPU.
class Buffer {
 public:
  explicit Buffer(std::size_t size) : size_(size) {
    check(cudaMalloc(&address_, std::max<std::size_t>(size, 1)), "cudaMalloc");
  }
  ~Buffer() { cudaFree(address_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* address() const { return address_; }
  std::size_t size() const { return size_; }

 private:
  void* address_ = nullptr;
  std::size_t size_;
};

struct Given {
  std::string file;
  std::vector<std::int64_t> shape;
};

struct Asked {
  std::string engine = model::kEngine;
  std::string out = ".";
  std::map<std::string, Given> inputs;
};

std::vector<std::int64_t> parse_shape(const std::string& text) {
  std::vector<std::int64_t> shape;
  std::stringstream parts(text);
  for (std::string part; std::getline(parts, part, 'x');) {
    char* end = nullptr;
    shape.push_back(std::strtoll(part.c_str(), &end, 10));
    require(!part.empty() && *end == 0 && shape.back() >= 0, "cannot read the shape " + text);
  }
  return shape;
}

Asked parse(int count, char** words) {
  Asked asked;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (word == "--engine" || word == "--out") {
      require(i + 1 < count, word + " needs a value");
      (word == "--engine" ? asked.engine : asked.out) = words[++i];
      continue;
    }
    const auto equals = word.find('=');
    require(equals != std::string::npos, "expected NAME=FILE[:SHAPE], found " + word);
    std::string file = word.substr(equals + 1), shape;
    const auto colon = file.rfind(':');
    if (colon != std::string::npos) {
      shape = file.substr(colon + 1);
      file.resize(colon);
    }
    asked.inputs[word.substr(0, equals)] = {file, parse_shape(shape)};
  }
  return asked;
}

Bytes read(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  require(file.good(), "cannot read " + path);
  Bytes bytes(static_cast<std::size_t>(file.tellg()));
  file.seekg(0);
  file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  require(file.good(), "cannot read " + path);
  return bytes;
}

void write(const std::string& path, const Bytes& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.flush();
  require(file.good(), "cannot write " + path);
}

const model::Tensor& known(const std::string& name) {
  for (const auto& tensor : model::kTensors)
    if (name == tensor.name) return tensor;
  throw std::runtime_error("the engine has a tensor that model.h does not know: " + name);
}

std::size_t bytes_of(const nvinfer1::Dims& dims, const model::Tensor& tensor) {
  std::size_t count = tensor.bytes;
  for (int i = 0; i < dims.nbDims; ++i) {
    require(dims.d[i] >= 0, std::string("the shape of ") + tensor.name + " depends on values");
    count *= static_cast<std::size_t>(dims.d[i]);
  }
  return count;
}

std::string words(const nvinfer1::Dims& dims) {
  std::string text;
  for (int i = 0; i < dims.nbDims; ++i) text += (i ? "x" : "") + std::to_string(dims.d[i]);
  return text;
}

void set_shape(nvinfer1::IExecutionContext& context, const model::Tensor& tensor,
               const std::vector<std::int64_t>& given) {
  const auto& shape = given.empty() ? tensor.usual : given;
  nvinfer1::Dims dims{};
  require(shape.size() <= static_cast<std::size_t>(nvinfer1::Dims::MAX_DIMS), "too many axes");
  dims.nbDims = static_cast<decltype(dims.nbDims)>(shape.size());
  for (std::size_t i = 0; i < shape.size(); ++i)
    dims.d[i] = static_cast<std::decay_t<decltype(dims.d[0])>>(shape[i]);
  require(context.setInputShape(tensor.name, dims),
          std::string("the engine was not built for ") + tensor.name + " " + words(dims));
}

void run(const Asked& asked) {
  const Bytes plan = read(asked.engine);
  require(asked.engine != model::kEngine || plan.size() == model::kEngineBytes,
          asked.engine + " is not the engine that was packaged");
  Logger logger;
  std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
  require(runtime != nullptr, "TensorRT cannot start");
#if TRTQ_HOST_CODE
  runtime->setEngineHostCodeAllowed(true);
#endif
  if (model::kDlaCore >= 0) runtime->setDLACore(model::kDlaCore);
  std::unique_ptr<nvinfer1::ICudaEngine> engine(
      runtime->deserializeCudaEngine(plan.data(), plan.size()));
  require(engine != nullptr, std::string("TensorRT cannot load the engine; it is for ") + model::kBuiltFor);
  std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
  require(context != nullptr, "TensorRT has not enough memory for the engine");

  std::vector<std::string> inputs, outputs;
  for (int i = 0; i < engine->getNbIOTensors(); ++i) {
    const char* name = engine->getIOTensorName(i);
    const bool given = engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
    (given ? inputs : outputs).push_back(name);
  }
  std::map<std::string, std::unique_ptr<Buffer>> buffers;
  for (const auto& name : inputs) {
    require(asked.inputs.count(name) == 1, "the input " + name + " is missing: " + name + "=FILE");
    const Given& given = asked.inputs.at(name);
    const model::Tensor& tensor = known(name);
    set_shape(*context, tensor, given.shape);
    const Bytes values = read(given.file);
    const auto size = bytes_of(context->getTensorShape(name.c_str()), tensor);
    require(values.size() == size, given.file + " has " + std::to_string(values.size()) +
                                       " bytes, and " + name + " takes " + std::to_string(size));
    buffers[name] = std::make_unique<Buffer>(size);
    check(cudaMemcpy(buffers[name]->address(), values.data(), size, cudaMemcpyHostToDevice),
          "cudaMemcpy");
  }
  for (const auto& name : outputs)
    buffers[name] =
        std::make_unique<Buffer>(bytes_of(context->getTensorShape(name.c_str()), known(name)));
  for (const auto& entry : buffers)
    require(context->setTensorAddress(entry.first.c_str(), entry.second->address()),
            "TensorRT does not take the memory of " + entry.first);

  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream), "cudaStreamCreate");
  require(context->enqueueV3(stream), "TensorRT cannot run the engine");
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  check(cudaStreamDestroy(stream), "cudaStreamDestroy");
  for (const auto& name : outputs) {
    const Buffer& buffer = *buffers.at(name);
    Bytes values(buffer.size());
    check(cudaMemcpy(values.data(), buffer.address(), values.size(), cudaMemcpyDeviceToHost),
          "cudaMemcpy");
    std::string file = name;
    std::replace(file.begin(), file.end(), '/', '_');
    write(asked.out + "/" + file + ".bin", values);
    std::cout << name << " " << known(name).dtype << " "
              << words(context->getTensorShape(name.c_str())) << std::endl;
  }
}

}  // namespace

int main(int count, char** arguments) {
  try {
    run(parse(count, arguments));
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
  return 0;
}
