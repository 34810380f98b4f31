// Stands in for the plugin's device.cuh, so that a C++ compiler builds the kernels for the CPU.
//
// A thread is a fiber. Fibers run in a random order and change only where real threads would have
// to wait for each other, so that a missing barrier shows; copies land as late as they may; shared
// memory starts as NaN; fragments are laid out as the PTX manual says; what a group product reads
// must stay from its start to its end. It says nothing about speed.
#pragma once

#define __launch_bounds__(...)

#include "emulation.h"

namespace vqedge {

inline int thread_id() { return emulation::the_block->current; }
inline int64_t block_id() { return emulation::the_block->id; }

inline void sync_block() {
  auto& block = *emulation::the_block;
  emulation::meet(block.all, static_cast<int>(block.threads.size()), block.current, "barrier",
      nullptr, [](auto const&) {});
}

inline unsigned char* shared_memory() {
  return reinterpret_cast<unsigned char*>(emulation::the_block->shared.get());
}

inline void copy_16(void* shared, void const* global, bool inside) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0
      || reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    emulation::fail("a 16-byte copy is misaligned");
  }
  if (emulation::still_multiplied(shared)) {
    emulation::fail("a copy goes where a group product reads");
  }
  emulation::me().open_group.push_back({shared, global, inside});
}

inline void commit_copies() {
  auto& thread = emulation::me();
  thread.groups.push_back(std::move(thread.open_group));
  thread.open_group.clear();
}

inline void wait_copies(int pending) {
  if (pending < 0 || pending > 2) {
    emulation::fail("wait_copies knows 0 to 2");
  }
  auto& groups = emulation::me().groups;
  while (static_cast<int>(groups.size()) > pending) {
    emulation::land(groups.front());
    groups.pop_front();
    emulation::me().published = false;
  }
}

inline void load_matrices(uint32_t (&out)[4], void const* row) {
  struct Gift {
    uint32_t* out;
    void const* row;
  } gift{out, row};
  emulation::meet_warp("ldmatrix", &gift, [](std::vector<void*> const& lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        auto const* const source = static_cast<unsigned char const*>(
            static_cast<Gift*>(lanes[matrix * 8 + lane / 4])->row);
        std::memcpy(&static_cast<Gift*>(lanes[lane])->out[matrix], source + lane % 4 * 4, 4);
      }
    }
  });
}

template <typename T>
void multiply(float (&sum)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, T /* type */) {
  emulation::Product product{sum, a, {b0, b1}};
  emulation::meet_warp("mma", &product, emulation::multiply_warp<T>);
}

constexpr int kGroupCodes = 256;
constexpr int kGroupSums = kGroupCodes / 8;

using GroupMatrix = unsigned char const*;

inline GroupMatrix group_matrix(void const* begin) {
  if (reinterpret_cast<uintptr_t>(begin) % 1024 > 96) {
    emulation::fail("a group product's matrix begins within its eight rows");
  }
  return static_cast<GroupMatrix>(begin);
}

template <typename T>
constexpr bool has_group_products() {
  return sizeof(T) == 2;
}

inline void publish_copies() { emulation::me().published = true; }

inline void open_products(float (&)[kGroupSums][4]) { emulation::me().sums_ready = true; }

template <typename T>
void multiply_group(float (&sums)[kGroupSums][4], GroupMatrix a, GroupMatrix b, bool add, T) {
  struct Gift {
    void* sums;
    GroupMatrix a;
    GroupMatrix b;
  } gift{sums, a, b};
  for (auto const& thread : emulation::the_block->threads) {
    if (!thread->published) {
      emulation::fail("a group product cannot see a copy");
    }
  }
  if (!emulation::me().sums_ready) {
    emulation::fail("a group product's sums are not in the registers");
  }
  emulation::meet_group("group product", &gift, [&](auto& group, auto const& all) {
    std::vector<void*> lanes;
    for (void* const one : all) {
      auto const& other = *static_cast<Gift*>(one);
      if (other.a != a || other.b != b) {
        emulation::fail("threads of one group multiply different matrices");
      }
      lanes.push_back(other.sums);
    }
    group.open.push_back({{a, 64}, {b, kGroupCodes}, add, lanes,
        emulation::finish_group_product<T, kGroupSums>});
  });
}

inline void close_products() {
  emulation::me().sums_ready = false;
  emulation::meet_group("close", nullptr, [](auto& group, auto const&) {
    group.sets.push_back(std::move(group.open));
    group.open.clear();
  });
}

template <int Pending>
void wait_products(float (&)[kGroupSums][4]) {
  emulation::meet_group("wait", nullptr, [](auto& group, auto const&) {
    while (static_cast<int>(group.sets.size()) > Pending) {
      for (auto const& product : group.sets.front()) {
        product.finish(product);
      }
      group.sets.pop_front();
    }
  });
}

template <typename Value>
Value shuffle_xor(Value const& mine, int lanes) {
  struct Gift {
    Value value;
    int lanes;
  } gift{mine, lanes};
  emulation::meet_warp("shuffle", &gift, [](std::vector<void*> const& all) {
    std::vector<Value> values;
    for (void* const one : all) {
      values.push_back(static_cast<Gift*>(one)->value);
    }
    for (int lane = 0; lane < 32; ++lane) {
      auto& gift = *static_cast<Gift*>(all[lane]);
      gift.value = values[lane ^ gift.lanes];
    }
  });
  return gift.value;
}

inline void refuse() { emulation::fail("the host chose a kernel that the device has not"); }

template <typename T>
constexpr bool has_tensor_cores() {
  return sizeof(T) == 2;
}

template <typename T>
constexpr bool needs_fma() {
  return !std::is_same_v<T, __half>;
}

inline cudaError_t current_device(Device& device) {
  device = emulation::the_device;
  return cudaSuccess;
}

template <typename Arguments>
cudaError_t launch(void (*kernel)(Arguments), int64_t blocks, int threads, int shared_bytes,
    cudaStream_t, Arguments arguments) {
  if (shared_bytes > emulation::the_device.shared_bytes) {
    return cudaErrorInvalidValue;
  }
  emulation::most_shared_bytes = std::max(emulation::most_shared_bytes, shared_bytes);
  for (int64_t block = 0; emulation::runs_blocks && block < blocks; ++block) {
    emulation::run_block(block, threads, shared_bytes, [&] { kernel(arguments); });
  }
  return cudaSuccess;
}

}  // namespace vqedge

extern "C" __attribute__((used, visibility("default"))) inline void emulated_device(
    int major, int processors, int shared_bytes) {
  vqedge::emulation::the_device = {major, processors, shared_bytes};
  vqedge::emulation::most_shared_bytes = 0;
}

extern "C" __attribute__((used, visibility("default"))) inline void emulated_blocks(bool run) {
  vqedge::emulation::runs_blocks = run;
}

extern "C" __attribute__((used, visibility("default"))) inline int emulated_shared_bytes() {
  return vqedge::emulation::most_shared_bytes;
}

// The CUDA runtime is not linked.
inline char const* emulated_error_string(cudaError_t) { return "a CUDA error"; }
#define cudaGetErrorString emulated_error_string
