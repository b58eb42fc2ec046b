// Runs a parser on raw floats: run_parser NAME ROWS COLUMNS CLASSES THRESHOLD < floats
#include <cstdlib>
#include <iostream>

#include "nvdsinfer_custom_impl.h"

extern "C" bool NvDsInferParseTrtq(std::vector<NvDsInferLayerInfo> const&,
                                   NvDsInferNetworkInfo const&,
                                   NvDsInferParseDetectionParams const&,
                                   std::vector<NvDsInferObjectDetectionInfo>&);

int main(int, char** argv) {
  const unsigned int rows = std::atoi(argv[2]), columns = std::atoi(argv[3]);
  const unsigned int classes = std::atoi(argv[4]);
  std::vector<float> values(rows * columns);
  std::cin.read(reinterpret_cast<char*>(values.data()), values.size() * sizeof(float));
  std::vector<NvDsInferLayerInfo> layers{
      {INT32, {1, {3}, 3}, 1, "other", nullptr, 0},
      {FLOAT, {2, {rows, columns}, rows * columns}, 2, argv[1], values.data(), 0}};
  NvDsInferParseDetectionParams params{classes, std::vector<float>(classes, std::atof(argv[5]))};
  std::vector<NvDsInferObjectDetectionInfo> objects;
  if (!NvDsInferParseTrtq(layers, {64, 64, 3}, params, objects)) return 3;
  std::cout.precision(9);
  for (const auto& o : objects)
    std::cout << o.classId << " " << o.left << " " << o.top << " " << o.width << " " << o.height
              << " " << o.detectionConfidence << "\n";
}
