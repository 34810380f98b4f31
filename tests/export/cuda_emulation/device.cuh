// Stands in for the plugin's device.cuh, so that a C++ compiler builds the kernels for the CPU.
//
// A thread is a fiber. Fibers run in a random order and change only where real threads would have
// to wait for each other, so that a missing barrier shows; copies land as late as they may; shared
// memory starts as NaN; fragments are laid out as the PTX manual says. It says nothing about speed.
#pragma once

#define __launch_bounds__(...)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <type_traits>
#include <ucontext.h>
#include <vector>

#include "best.cuh"

namespace vqedge {

struct Device {
  int major = 9;
  int processors = 132;
  int shared_bytes = 232448;
};

namespace emulation {

constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kGuardBytes = 4096;
constexpr unsigned char kPoison = 0xFF;  // NaN in every type

[[noreturn]] inline void fail(char const* what) {
  std::fprintf(stderr, "cuda_emulation: %s\n", what);
  std::abort();
}

// Threads that wait for each other; the last to come does what all came for.
struct Meeting {
  int arrived = 0;
  uint64_t generation = 0;
  char const* purpose = nullptr;
  std::vector<void*> gifts;
};

struct Copy {
  void* shared;
  void const* global;
  bool inside;
};

struct Thread {
  ucontext_t context{};
  jmp_buf here{};
  bool started = false;
  bool done = false;
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open_group;
};

struct Block {
  int64_t id = 0;
  int current = 0;
  bool progress = false;
  jmp_buf scheduler{};
  std::function<void()> body;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Meeting> warps;
  Meeting all;
  std::unique_ptr<uint4[]> shared;
};

inline Block* the_block = nullptr;
inline Device the_device;

inline Thread& me() { return *the_block->threads[the_block->current]; }

inline void yield() {
  if (_setjmp(me().here) == 0) {
    _longjmp(the_block->scheduler, 1);
  }
}

template <typename Last>
void meet(Meeting& meeting, int count, int seat, char const* purpose, void* gift, Last last) {
  if (meeting.arrived == 0) {
    meeting.purpose = purpose;
    meeting.gifts.assign(count, nullptr);
  } else if (std::strcmp(meeting.purpose, purpose) != 0) {
    fail("threads of one warp or block wait for different things");
  }
  meeting.gifts[seat] = gift;
  uint64_t const generation = meeting.generation;
  if (++meeting.arrived == count) {
    last(meeting.gifts);
    meeting.arrived = 0;
    ++meeting.generation;
    the_block->progress = true;
    return;
  }
  while (meeting.generation == generation) {
    yield();
  }
}

template <typename Last>
void meet_warp(char const* purpose, void* gift, Last last) {
  int const thread = the_block->current;
  meet(the_block->warps[thread / 32], 32, thread % 32, purpose, gift, last);
}

inline void enter() {
  the_block->body();
  me().done = true;
  the_block->progress = true;
  _longjmp(the_block->scheduler, 1);
}

// Kept from block to block: touching fresh memory would take most of the time.
inline void* stack_of(int index) {
  static std::vector<std::unique_ptr<uint4[]>> stacks;
  while (static_cast<int>(stacks.size()) <= index) {
    stacks.emplace_back(new uint4[kStackBytes / sizeof(uint4)]);
  }
  return stacks[index].get();
}

inline void resume(int index) {
  the_block->current = index;
  Thread& thread = me();
  if (_setjmp(the_block->scheduler) != 0) {
    return;
  }
  if (thread.started) {
    _longjmp(thread.here, 1);
  }
  thread.started = true;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = stack_of(index);
  thread.context.uc_stack.ss_size = kStackBytes;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, enter, 0);
  setcontext(&thread.context);
}

inline void run_threads(std::mt19937& random) {
  std::vector<int> order(the_block->threads.size());
  std::iota(order.begin(), order.end(), 0);
  while (!order.empty()) {
    std::shuffle(order.begin(), order.end(), random);
    the_block->progress = false;
    for (int const index : order) {
      resume(index);
    }
    if (!the_block->progress) {
      fail("the threads wait for each other for ever");
    }
    auto const done = [](int index) { return the_block->threads[index]->done; };
    order.erase(std::remove_if(order.begin(), order.end(), done), order.end());
  }
}

inline void run_block(int64_t id, int threads, size_t shared_bytes, std::function<void()> body) {
  Block block;
  block.id = id;
  block.body = std::move(body);
  block.warps.resize(threads / 32);
  for (int i = 0; i < threads; ++i) {
    block.threads.push_back(std::make_unique<Thread>());
  }
  size_t const bytes = (shared_bytes + 15) / 16 * 16 + kGuardBytes;
  block.shared = std::make_unique<uint4[]>(bytes / 16);
  auto* const memory = reinterpret_cast<unsigned char*>(block.shared.get());
  std::memset(memory, kPoison, bytes);
  the_block = &block;
  std::mt19937 random(static_cast<unsigned>(id) + 1);
  run_threads(random);
  the_block = nullptr;
  for (size_t i = shared_bytes; i < bytes; ++i) {
    if (memory[i] != kPoison) {
      fail("a thread wrote beyond the block's shared memory");
    }
  }
}

inline void land(std::vector<Copy> const& group) {
  for (Copy const& copy : group) {
    std::memset(copy.shared, 0, 16);
    if (copy.inside) {
      std::memcpy(copy.shared, copy.global, 16);
    }
  }
}

template <typename T>
float value_of(uint32_t pair, int which) {
  uint16_t const bits = static_cast<uint16_t>(pair >> (16 * which));
  T value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}

struct Product {
  float* sum;
  uint32_t const* a;
  uint32_t b[2];
};

// Lane l holds: of a, rows l / 4 and l / 4 + 8, columns 2 (l % 4) + {0, 1} and 8 more; of b, row
// l / 4 and the same columns; of the sums, a's rows and b's rows 2 (l % 4) + {0, 1}.
template <typename T>
void multiply_warp(std::vector<void*> const& lanes) {
  float a[16][16];
  float b[8][16];
  for (int lane = 0; lane < 32; ++lane) {
    auto const& product = *static_cast<Product*>(lanes[lane]);
    for (int i = 0; i < 2; ++i) {
      int const column = lane % 4 * 2 + i;
      a[lane / 4][column] = value_of<T>(product.a[0], i);
      a[lane / 4 + 8][column] = value_of<T>(product.a[1], i);
      a[lane / 4][column + 8] = value_of<T>(product.a[2], i);
      a[lane / 4 + 8][column + 8] = value_of<T>(product.a[3], i);
      b[lane / 4][column] = value_of<T>(product.b[0], i);
      b[lane / 4][column + 8] = value_of<T>(product.b[1], i);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto const& product = *static_cast<Product*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) {
      double sum = product.sum[i];
      for (int column = 0; column < 16; ++column) {
        sum += static_cast<double>(a[lane / 4 + i / 2 * 8][column])
            * b[lane % 4 * 2 + i % 2][column];
      }
      product.sum[i] = static_cast<float>(sum);
    }
  }
}

}  // namespace emulation

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
  for (int64_t block = 0; block < blocks; ++block) {
    emulation::run_block(block, threads, shared_bytes, [&] { kernel(arguments); });
  }
  return cudaSuccess;
}

}  // namespace vqedge

extern "C" __attribute__((used, visibility("default"))) inline void emulated_device(
    int major, int processors, int shared_bytes) {
  vqedge::emulation::the_device = {major, processors, shared_bytes};
}

// The CUDA runtime is not linked.
inline char const* emulated_error_string(cudaError_t) { return "a CUDA error"; }
#define cudaGetErrorString emulated_error_string
