// NearestCodebook as a TensorRT plugin (IPluginV3, TensorRT >= 10.0).
#pragma once

#include <NvInfer.h>

#include <cstdint>

#include "nearest_codebook.h"

namespace vqedge {

constexpr char const* kPluginName = "NearestCodebook";
constexpr char const* kPluginVersion = "1";
constexpr char const* kPluginNamespace = "";  // what the ONNX parser looks for if a node names none
constexpr char const* kMetricField = "metric";

// Inputs x [N, D], codebook [K, D]; outputs indices [N], margin [N]. Holds its metric only.
class NearestCodebookPlugin final : public nvinfer1::IPluginV3,
                                    public nvinfer1::IPluginV3OneCore,
                                    public nvinfer1::IPluginV3OneBuild,
                                    public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit NearestCodebookPlugin(vqedge_metric metric) noexcept : metric_(metric) {}

  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  char const* getPluginName() const noexcept override { return kPluginName; }
  char const* getPluginVersion() const noexcept override { return kPluginVersion; }
  char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t in_count,
      nvinfer1::DynamicPluginTensorDesc const* out, int32_t out_count) noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* out, int32_t out_count,
      nvinfer1::DataType const* in, int32_t in_count) const noexcept override;
  int32_t getOutputShapes(nvinfer1::DimsExprs const* in, int32_t in_count,
      nvinfer1::DimsExprs const* shapes, int32_t shape_count, nvinfer1::DimsExprs* out,
      int32_t out_count, nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* all,
      int32_t in_count, int32_t out_count) noexcept override;
  int32_t getNbOutputs() const noexcept override { return 2; }
  size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t in_count,
      nvinfer1::DynamicPluginTensorDesc const* out, int32_t out_count) const noexcept override;
  char const* getTimingCacheID() noexcept override;
  char const* getMetadataString() noexcept override;

  int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t in_count,
      nvinfer1::PluginTensorDesc const* out, int32_t out_count) noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* in_desc,
      nvinfer1::PluginTensorDesc const* out_desc, void const* const* in, void* const* out,
      void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(
      nvinfer1::IPluginResourceContext* context) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

 private:
  vqedge_metric metric_;
  nvinfer1::PluginField field_;
  nvinfer1::PluginFieldCollection fields_{};
};

class NearestCodebookCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(char const* name,
      nvinfer1::PluginFieldCollection const* fields,
      nvinfer1::TensorRTPhase phase) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;

  char const* getPluginName() const noexcept override { return kPluginName; }
  char const* getPluginVersion() const noexcept override { return kPluginVersion; }
  char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

 private:
  nvinfer1::PluginField const field_{kMetricField, nullptr, nvinfer1::PluginFieldType::kCHAR, 1};
  nvinfer1::PluginFieldCollection const fields_{1, &field_};
};

}  // namespace vqedge
