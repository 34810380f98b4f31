// Calls the plugin the way TensorRT does: through its creator and the three capabilities.
#include <cstring>
#include <memory>

#include "nearest_codebook_plugin.h"

using namespace nvinfer1;

extern "C" IPluginCreatorInterface* const* getCreators(int32_t& count);

namespace {

constexpr DataType kTypes[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT8};

using Plugin = std::unique_ptr<IPluginV3>;

Plugin created(PluginFieldCollection const& fields, TensorRTPhase phase) {
  int32_t count = 0;
  auto* const creator = static_cast<IPluginCreatorV3One*>(getCreators(count)[0]);
  return Plugin(creator->createPlugin("node", &fields, phase));
}

// Without a closing zero, as a parser may hand it over.
Plugin from_node(char const* metric) {
  PluginField field("metric", metric, PluginFieldType::kCHAR, metric ? std::strlen(metric) : 0);
  PluginFieldCollection const fields{metric ? 1 : 0, &field};
  return created(fields, TensorRTPhase::kBUILD);
}

template <typename Capability>
Capability* as(Plugin const& plugin, PluginCapabilityType type) {
  return static_cast<Capability*>(plugin->getCapabilityInterface(type));
}

Plugin restored(Plugin const& plugin) {
  auto* const runtime = as<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
  return created(*runtime->getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
}

PluginTensorDesc matrix(DataType type, int64_t rows, int64_t columns) {
  PluginTensorDesc desc{};
  desc.type = type;
  desc.format = TensorFormat::kLINEAR;
  desc.dims.nbDims = 2;
  desc.dims.d[0] = rows;
  desc.dims.d[1] = columns;
  return desc;
}

PluginTensorDesc vector(DataType type, int64_t rows) {
  PluginTensorDesc desc = matrix(type, rows, 1);
  desc.dims.nbDims = 1;
  return desc;
}

}  // namespace

extern "C" int32_t creates(char const* metric) { return from_node(metric) != nullptr; }

extern "C" int32_t supports(int32_t x_type, int32_t codebook_type) {
  Plugin const plugin = from_node("l2");
  auto* const build = as<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
  DynamicPluginTensorDesc all[4]{};
  all[0].desc = matrix(kTypes[x_type], -1, 24);
  all[1].desc = matrix(kTypes[codebook_type], 5, 24);
  all[2].desc = vector(DataType::kINT32, -1);
  all[3].desc = vector(DataType::kFLOAT, -1);
  for (int32_t i = 0; i < 4; ++i) {
    if (!build->supportsFormatCombination(i, all, 2, 2)) {
      return 0;
    }
  }
  return 1;
}

extern "C" int32_t run_plugin(char const* metric, int32_t type, void const* x,
    void const* codebook, int64_t n, int64_t k, int64_t d, void* indices, void* margin,
    void* workspace) {
  Plugin const node = from_node(metric);
  Plugin const copy(node->clone());
  Plugin const engine = restored(copy);
  auto* const runtime = as<IPluginV3OneRuntime>(engine, PluginCapabilityType::kRUNTIME);
  Plugin const context(runtime->attachToContext(nullptr));
  auto* const run = as<IPluginV3OneRuntime>(context, PluginCapabilityType::kRUNTIME);
  PluginTensorDesc const in[] = {matrix(kTypes[type], n, d), matrix(kTypes[type], k, d)};
  PluginTensorDesc const out[] = {vector(DataType::kINT32, n), vector(DataType::kFLOAT, n)};
  if (run->onShapeChange(in, 2, out, 2) != 0) {
    return -100;
  }
  void const* const inputs[] = {x, codebook};
  void* const outputs[] = {indices, margin};
  return run->enqueue(in, out, inputs, outputs, workspace, nullptr);
}
