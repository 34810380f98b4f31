#include "nearest_codebook_plugin.h"

#include <cstring>
#include <new>

#if NV_TENSORRT_MAJOR < 10
#error "NearestCodebook needs TensorRT 10 or newer: IPluginV3"
#endif

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

namespace vqedge {
namespace {

constexpr int32_t kOk = 0;
constexpr int32_t kRefused = 1;

struct MetricName {
  char const* name;
  vqedge_metric metric;
};

constexpr MetricName kMetrics[] = {
    {"l2", VQEDGE_L2}, {"dot", VQEDGE_DOT}, {"cosine", VQEDGE_COSINE}};

char const* name_of(vqedge_metric metric) {
  for (MetricName const& row : kMetrics) {
    if (row.metric == metric) {
      return row.name;
    }
  }
  return "";
}

// A field of characters, with or without a closing zero, holds this name.
bool holds(PluginField const& field, char const* name) {
  auto const* const text = static_cast<char const*>(field.data);
  size_t const bytes = text == nullptr ? 0 : strnlen(text, static_cast<size_t>(field.length));
  return field.type == PluginFieldType::kCHAR && bytes == std::strlen(name)
      && std::memcmp(text, name, bytes) == 0;
}

// False if the fields name a metric that is unknown.
bool metric_from_fields(PluginFieldCollection const* fields, vqedge_metric& metric) {
  metric = VQEDGE_L2;
  for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i) {
    PluginField const& field = fields->fields[i];
    if (std::strcmp(field.name, kMetricField) != 0) {
      continue;
    }
    for (MetricName const& row : kMetrics) {
      if (holds(field, row.name)) {
        metric = row.metric;
        return true;
      }
    }
    return false;
  }
  return true;
}

bool dtype_of(DataType type, vqedge_dtype& dtype) {
  switch (type) {
    case DataType::kFLOAT: dtype = VQEDGE_FLOAT32; return true;
    case DataType::kHALF: dtype = VQEDGE_FLOAT16; return true;
    case DataType::kBF16: dtype = VQEDGE_BFLOAT16; return true;
    default: return false;
  }
}

// Ranks and counts that the op has; -1 is a dimension not known yet.
template <typename Dims>
bool fits(Dims const& x, Dims const& codebook) {
  bool const known = x.nbDims == 2 && codebook.nbDims == 2 && x.d[1] >= 0 && codebook.d[1] >= 0;
  return x.nbDims == 2 && codebook.nbDims == 2 && (!known || x.d[1] == codebook.d[1]);
}

}  // namespace

nvinfer1::IPluginCapability* NearestCodebookPlugin::getCapabilityInterface(
    PluginCapabilityType type) noexcept {
  switch (type) {
    case PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* NearestCodebookPlugin::clone() noexcept {
  return new (std::nothrow) NearestCodebookPlugin(metric_);
}

int32_t NearestCodebookPlugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t in_count,
    DynamicPluginTensorDesc const* /* out */, int32_t out_count) noexcept {
  bool const good = in_count == 2 && out_count == 2 && fits(in[0].desc.dims, in[1].desc.dims);
  return good ? kOk : kRefused;
}

int32_t NearestCodebookPlugin::getOutputDataTypes(DataType* out, int32_t out_count,
    DataType const* /* in */, int32_t in_count) const noexcept {
  if (in_count != 2 || out_count != 2) {
    return kRefused;
  }
  out[0] = DataType::kINT32;
  out[1] = DataType::kFLOAT;
  return kOk;
}

int32_t NearestCodebookPlugin::getOutputShapes(nvinfer1::DimsExprs const* in, int32_t in_count,
    nvinfer1::DimsExprs const* /* shapes */, int32_t /* shape_count */, nvinfer1::DimsExprs* out,
    int32_t out_count, nvinfer1::IExprBuilder& /* builder */) noexcept {
  if (in_count != 2 || out_count != 2 || in[0].nbDims != 2 || in[1].nbDims != 2) {
    return kRefused;
  }
  for (int32_t i = 0; i < out_count; ++i) {
    out[i].nbDims = 1;
    out[i].d[0] = in[0].d[0];
  }
  return kOk;
}

bool NearestCodebookPlugin::supportsFormatCombination(int32_t position,
    DynamicPluginTensorDesc const* all, int32_t in_count, int32_t out_count) noexcept {
  if (in_count != 2 || out_count != 2) {
    return false;
  }
  PluginTensorDesc const& desc = all[position].desc;
  if (desc.format != nvinfer1::TensorFormat::kLINEAR) {
    return false;
  }
  vqedge_dtype dtype{};
  switch (position) {
    case 0: return dtype_of(desc.type, dtype);
    case 1: return desc.type == all[0].desc.type;
    case 2: return desc.type == DataType::kINT32;
    default: return desc.type == DataType::kFLOAT;
  }
}

size_t NearestCodebookPlugin::getWorkspaceSize(DynamicPluginTensorDesc const* in,
    int32_t /* in_count */, DynamicPluginTensorDesc const* /* out */,
    int32_t /* out_count */) const noexcept {
  return vqedge_nearest_codebook_workspace(in[0].max.d[0], in[1].max.d[0]);
}

char const* NearestCodebookPlugin::getTimingCacheID() noexcept { return name_of(metric_); }

char const* NearestCodebookPlugin::getMetadataString() noexcept { return name_of(metric_); }

int32_t NearestCodebookPlugin::onShapeChange(PluginTensorDesc const* in, int32_t in_count,
    PluginTensorDesc const* /* out */, int32_t out_count) noexcept {
  return in_count == 2 && out_count == 2 && fits(in[0].dims, in[1].dims) ? kOk : kRefused;
}

int32_t NearestCodebookPlugin::enqueue(PluginTensorDesc const* in_desc,
    PluginTensorDesc const* /* out_desc */, void const* const* in, void* const* out,
    void* workspace, cudaStream_t stream) noexcept {
  vqedge_dtype dtype{};
  if (!dtype_of(in_desc[0].type, dtype) || !fits(in_desc[0].dims, in_desc[1].dims)) {
    return kRefused;
  }
  int64_t const n = in_desc[0].dims.d[0];
  int64_t const k = in_desc[1].dims.d[0];
  return vqedge_nearest_codebook(in[0], in[1], n, k, in_desc[0].dims.d[1], dtype, metric_,
      static_cast<int32_t*>(out[0]), static_cast<float*>(out[1]), workspace,
      vqedge_nearest_codebook_workspace(n, k), stream);
}

nvinfer1::IPluginV3* NearestCodebookPlugin::attachToContext(
    nvinfer1::IPluginResourceContext* /* context */) noexcept {
  return clone();
}

PluginFieldCollection const* NearestCodebookPlugin::getFieldsToSerialize() noexcept {
  char const* const name = name_of(metric_);
  field_ = PluginField(
      kMetricField, name, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(name)));
  fields_ = {1, &field_};
  return &fields_;
}

nvinfer1::IPluginV3* NearestCodebookCreator::createPlugin(char const* /* name */,
    PluginFieldCollection const* fields, nvinfer1::TensorRTPhase /* phase */) noexcept {
  vqedge_metric metric{};
  return metric_from_fields(fields, metric) ? new (std::nothrow) NearestCodebookPlugin(metric)
                                            : nullptr;
}

PluginFieldCollection const* NearestCodebookCreator::getFieldNames() noexcept { return &fields_; }

}  // namespace vqedge

// What IPluginRegistry::loadLibrary and IBuilderConfig::setPluginsToSerialize look for.
extern "C" VQEDGE_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static vqedge::NearestCodebookCreator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}

// The plugin says nothing; what goes wrong is in its return codes.
extern "C" VQEDGE_API void setLoggerFinder(nvinfer1::ILoggerFinder* /* finder */) {}
