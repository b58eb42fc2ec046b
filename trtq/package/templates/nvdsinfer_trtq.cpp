// Boxes from the output of a detector, for nvinfer. Written by trtq package.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <vector>

#include "nvdsinfer_custom_impl.h"

namespace {

const char kOutput[] = @OUTPUT@;
constexpr bool kAnchorsFirst = @ANCHORS_FIRST@;  // [anchors, numbers], else [numbers, anchors]
constexpr bool kSelected = @SELECTED@;  // left, top, right, bottom, score, class of each box
constexpr unsigned int kObjectness = @OBJECTNESS@;  // numbers between a box and its scores

struct Candidate {
  float left, top, right, bottom, score;
  unsigned int label;
};

class Anchors {
 public:
  explicit Anchors(const NvDsInferLayerInfo& layer)
      : values_(static_cast<const float*>(layer.buffer)),
        count_(layer.inferDims.d[kAnchorsFirst ? 0 : 1]),
        numbers_(layer.inferDims.d[kAnchorsFirst ? 1 : 0]) {}

  unsigned int count() const { return count_; }
  unsigned int numbers() const { return numbers_; }
  float at(unsigned int anchor, unsigned int number) const {
    return kAnchorsFirst ? values_[anchor * numbers_ + number] : values_[number * count_ + anchor];
  }

 private:
  const float* values_;
  unsigned int count_, numbers_;
};

Candidate selected(const Anchors& all, unsigned int i) {
  return {all.at(i, 0), all.at(i, 1), all.at(i, 2),
          all.at(i, 3), all.at(i, 4), static_cast<unsigned int>(std::max(all.at(i, 5), 0.0f) + 0.5f)};
}

Candidate best(const Anchors& all, unsigned int i) {
  const unsigned int first = 4 + kObjectness;
  unsigned int label = 0;
  float score = all.at(i, first);
  for (unsigned int c = 1; c + first < all.numbers(); ++c) {
    const float other = all.at(i, first + c);
    if (other > score || std::isnan(score)) score = other, label = c;
  }
  const float sure = kObjectness ? all.at(i, 4) : 1.0f;
  const float half_width = all.at(i, 2) / 2, half_height = all.at(i, 3) / 2;
  return {all.at(i, 0) - half_width, all.at(i, 1) - half_height,   all.at(i, 0) + half_width,
          all.at(i, 1) + half_height, sure * score, label};
}

const NvDsInferLayerInfo* find(const std::vector<NvDsInferLayerInfo>& layers) {
  for (const auto& layer : layers)
    if (layer.layerName && std::strcmp(layer.layerName, kOutput) == 0) return &layer;
  return nullptr;
}

}  // namespace

extern "C" bool NvDsInferParseTrtq(std::vector<NvDsInferLayerInfo> const& outputLayersInfo,
                                   NvDsInferNetworkInfo const& networkInfo,
                                   NvDsInferParseDetectionParams const& detectionParams,
                                   std::vector<NvDsInferObjectDetectionInfo>& objectList) {
  const NvDsInferLayerInfo* layer = find(outputLayersInfo);
  if (!layer || layer->dataType != FLOAT || layer->inferDims.numDims != 2) {
    std::cerr << "nvdsinfer_trtq: no float output " << kOutput << " of two axes" << std::endl;
    return false;
  }
  const Anchors all(*layer);
  const float width = networkInfo.width, height = networkInfo.height;
  for (unsigned int i = 0; i < all.count(); ++i) {
    const Candidate c = kSelected ? selected(all, i) : best(all, i);
    if (c.label >= detectionParams.numClassesConfigured) continue;
    if (!(c.score >= detectionParams.perClassPreclusterThreshold[c.label])) continue;
    NvDsInferObjectDetectionInfo object{};
    object.classId = c.label;
    object.detectionConfidence = c.score;
    object.left = std::clamp(c.left, 0.0f, width);
    object.top = std::clamp(c.top, 0.0f, height);
    object.width = std::clamp(c.right, 0.0f, width) - object.left;
    object.height = std::clamp(c.bottom, 0.0f, height) - object.top;
    if (object.width > 0 && object.height > 0) objectList.push_back(object);  // false for NaN
  }
  return true;
}

CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(NvDsInferParseTrtq);
