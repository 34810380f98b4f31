// The C entry point: checks, choice of tiles, launches.
#include "nearest_codebook.h"

#include <cstdint>
#include <type_traits>

#include "fma_kernel.cuh"
#include "hopper_kernel.cuh"
#include "tensor_kernel.cuh"

namespace vqedge {
namespace {

constexpr int64_t kMaxCodes = INT32_MAX;
constexpr int64_t kMaxBlocks = INT32_MAX;
constexpr int64_t kMaxColumns = INT32_MAX / 2;
constexpr int64_t kFewestTileCodes = 128;  // of all tiles used when there are more codes than that

// Whether this library holds code for sm_90a: the host's compiler does not know by itself.
#ifdef VQEDGE_SM90A
constexpr bool kForHopper = true;
#else
constexpr bool kForHopper = false;
#endif

size_t element_bytes(int32_t dtype) { return dtype == VQEDGE_FLOAT32 ? 4 : 2; }

bool good_shape(int64_t n, int64_t k, int64_t d) {
  return n >= 0 && k >= 1 && d >= 1 && k <= kMaxCodes && d <= kMaxColumns
      && n <= INT64_MAX / (k < d ? d : k) / 64;
}

bool aligned_to(void const* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Where the workspace's parts begin: terms, squares of the rows, partials.
struct Workspace {
  size_t squares;
  size_t partials;
  size_t bytes;
};

size_t rounded(size_t bytes) { return (bytes + 15) / 16 * 16; }

// For the most tiles that any device may use, so that the size depends on the shape alone.
Workspace workspace_of(int64_t n, int64_t k) {
  size_t const rows = static_cast<size_t>(n);
  size_t const tiles = static_cast<size_t>(ceil_div(k, kFewestTileCodes));
  Workspace layout{};
  layout.squares = rounded(static_cast<size_t>(k) * sizeof(Term));
  layout.partials = layout.squares + (tiles > 1 ? rounded(rows * sizeof(float)) : 0);
  layout.bytes = layout.partials + (tiles > 1 ? tiles * rows * sizeof(Best) : 0);
  return layout;
}

template <typename Arguments>
cudaError_t launch_tiles(void (*kernel)(Arguments), Problem p, int rows, int codes, int threads,
    int shared_bytes, cudaStream_t stream) {
  p.code_tiles = ceil_div(p.k, codes);
  int64_t const blocks = ceil_div(p.n, rows) * p.code_tiles;
  if (blocks > kMaxBlocks) {
    return cudaErrorInvalidConfiguration;
  }
  cudaError_t const status = launch(kernel, blocks, threads, shared_bytes, stream, p);
  if (status != cudaSuccess || p.code_tiles == 1) {
    return status;
  }
  return launch(merge_kernel, ceil_div(p.n, kMergeThreads), kMergeThreads, 0, stream, p);
}

// As many stages as the device's shared memory holds beside `slack` bytes.
template <class Tile>
int stages_on(Device const& device, int slack = 0) {
  int stages = kMaxStages;
  while (stages > kMinStages && Tile::shared_bytes(stages) + slack > device.shared_bytes) {
    --stages;
  }
  return stages;
}

template <typename T, class Tile>
cudaError_t launch_tensor(Problem p, Device const& device, cudaStream_t stream) {
  p.stages = stages_on<Tile>(device);
  return launch_tiles(tensor_kernel<T, Tile>, p, Tile::kRows, Tile::kCodes, Tile::kThreads,
      Tile::shared_bytes(p.stages), stream);
}

template <typename T>
cudaError_t launch_hopper(Problem p, Device const& device, cudaStream_t stream) {
  p.stages = stages_on<HopperTile>(device, kHopperSlack);
  return launch_tiles(hopper_kernel<T>, p, HopperTile::kRows, HopperTile::kCodes,
      HopperTile::kThreads, HopperTile::shared_bytes(p.stages) + kHopperSlack, stream);
}

template <typename T>
cudaError_t prepare(Problem& p, cudaStream_t stream) {
  if (p.metric == VQEDGE_DOT) {
    p.terms = nullptr;
    return cudaSuccess;
  }
  int64_t const blocks = ceil_div(p.k * kWarp, kPrepareThreads);
  return launch(prepare_kernel<T>, blocks, kPrepareThreads, 0, stream, p);
}

// The wide tile moves fewest bytes per score, if the device can hold it and gets enough blocks.
template <typename T>
cudaError_t run_tensor(Problem p, Device const& device, cudaStream_t stream) {
  static_assert(NarrowTile::kOwnTerms && SmallTile::kOwnTerms && !MiddleTile::kOwnTerms);
  if (p.k <= NarrowTile::kCodes) {
    return launch_tensor<T, NarrowTile>(p, device, stream);
  }
  if (p.k <= SmallTile::kCodes) {
    return launch_tensor<T, SmallTile>(p, device, stream);
  }
  cudaError_t const status = prepare<T>(p, stream);
  if (status != cudaSuccess) {
    return status;
  }
  static_assert(WideTile::kRows == HopperTile::kRows && WideTile::kCodes == HopperTile::kCodes);
  int64_t const wide_blocks = ceil_div(p.n, WideTile::kRows) * ceil_div(p.k, WideTile::kCodes);
  if (p.k > MiddleTile::kCodes && wide_blocks >= device.processors) {
    if constexpr (kForHopper) {
      int const least_bytes = HopperTile::shared_bytes(kHopperMinStages) + kHopperSlack;
      if (device.major == 9 && least_bytes <= device.shared_bytes) {
        return launch_hopper<T>(p, device, stream);
      }
    }
    if (WideTile::shared_bytes(kMinStages) <= device.shared_bytes) {
      return launch_tensor<T, WideTile>(p, device, stream);
    }
  }
  return launch_tensor<T, MiddleTile>(p, device, stream);
}

template <typename T, class Tile>
cudaError_t launch_fma(Problem const& p, cudaStream_t stream) {
  return launch_tiles(fma_kernel<T, Tile>, p, Tile::kRows, Tile::kCodes, Tile::kThreads,
      Tile::kSharedBytes, stream);
}

template <typename T>
cudaError_t run_fma(Problem p, cudaStream_t stream) {
  cudaError_t const status = prepare<T>(p, stream);
  if (status != cudaSuccess) {
    return status;
  }
  if (p.k <= NarrowFmaTile::kCodes) {
    return launch_fma<T, NarrowFmaTile>(p, stream);
  }
  if (p.k <= SmallFmaTile::kCodes) {
    return launch_fma<T, SmallFmaTile>(p, stream);
  }
  return launch_fma<T, WideFmaTile>(p, stream);
}

template <typename T>
cudaError_t run(Problem const& p, Device const& device, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2) {
    if (std::is_same_v<T, __half> || device.major >= 8) {
      return run_tensor<T>(p, device, stream);
    }
  }
  if constexpr (!std::is_same_v<T, __half>) {
    return run_fma<T>(p, stream);
  }
  return cudaErrorNotSupported;
}

cudaError_t run_dtype(Problem const& p, int32_t dtype, cudaStream_t stream) {
  Device device;
  cudaError_t const status = current_device(device);
  if (status != cudaSuccess) {
    return status;
  }
  switch (dtype) {
    case VQEDGE_FLOAT16: return run<__half>(p, device, stream);
    case VQEDGE_BFLOAT16: return run<__nv_bfloat16>(p, device, stream);
    default: return run<float>(p, device, stream);
  }
}

}  // namespace
}  // namespace vqedge

extern "C" int32_t vqedge_nearest_codebook_abi(void) { return VQEDGE_NEAREST_CODEBOOK_ABI; }

extern "C" size_t vqedge_nearest_codebook_workspace(int64_t n, int64_t k) {
  return vqedge::good_shape(n, k, 1) ? vqedge::workspace_of(n, k).bytes : 0;
}

extern "C" int32_t vqedge_nearest_codebook(void const* x, void const* codebook, int64_t n,
    int64_t k, int64_t d, int32_t dtype, int32_t metric, int32_t* indices, float* margin,
    void* workspace, size_t workspace_bytes, void* stream) {
  using namespace vqedge;
  if (!good_shape(n, k, d)) {
    return VQEDGE_BAD_SHAPE;
  }
  if (dtype < VQEDGE_FLOAT32 || dtype > VQEDGE_BFLOAT16 || metric < VQEDGE_L2
      || metric > VQEDGE_COSINE) {
    return VQEDGE_BAD_TYPE;
  }
  if (n == 0) {
    return VQEDGE_OK;
  }
  size_t const element = element_bytes(dtype);
  if (x == nullptr || codebook == nullptr || indices == nullptr || !aligned_to(x, element)
      || !aligned_to(codebook, element) || !aligned_to(indices, sizeof(int32_t))
      || !aligned_to(margin, sizeof(float))) {
    return VQEDGE_BAD_POINTER;
  }
  Workspace const layout = workspace_of(n, k);
  if (workspace == nullptr || workspace_bytes < layout.bytes || !aligned_to(workspace, 16)) {
    return VQEDGE_BAD_WORKSPACE;
  }
  unsigned char* const bytes = static_cast<unsigned char*>(workspace);
  Problem p{};
  p.x = x;
  p.codebook = codebook;
  p.n = n;
  p.k = k;
  p.d = static_cast<int32_t>(d);
  p.metric = metric;
  p.aligned = aligned_to(x, 16) && aligned_to(codebook, 16) && d * element % 16 == 0;
  p.indices = indices;
  p.margin = margin;
  p.terms = reinterpret_cast<Term*>(bytes);
  p.row_squares = reinterpret_cast<float*>(bytes + layout.squares);
  p.partials = reinterpret_cast<Best*>(bytes + layout.partials);
  return run_dtype(p, dtype, static_cast<cudaStream_t>(stream));
}

extern "C" char const* vqedge_nearest_codebook_status(int32_t status) {
  switch (status) {
    case VQEDGE_OK: return "success";
    case VQEDGE_BAD_SHAPE: return "want n >= 0, k >= 1 and d >= 1, within what a grid can hold";
    case VQEDGE_BAD_TYPE: return "unknown dtype or metric";
    case VQEDGE_BAD_POINTER: return "a pointer is null or not aligned to one element";
    case VQEDGE_BAD_WORKSPACE: return "the workspace is missing, too small or not 16-byte aligned";
    default: break;
  }
  return status > 0 ? cudaGetErrorString(static_cast<cudaError_t>(status)) : "unknown status";
}
