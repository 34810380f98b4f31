// The machine behind device.cuh: threads as fibers, blocks, copies, products.
#pragma once

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
  bool published = true;  // group products may read what its copies wrote
  bool sums_ready = false;  // for a set of group products
};

// A matrix of 16 columns as a group product finds it in shared memory, by the manual's rule: in the
// plain address of a chunk, bits 7 to 9, its row of eight, are added to bits 4 to 6 without carry.
struct GroupMatrixView {
  std::vector<unsigned char const*> chunks;  // two a row
  std::vector<uint4> seen;                   // what was there at the start

  GroupMatrixView(unsigned char const* begin, int rows) {
    for (int i = 0; i < rows * 2; ++i) {
      uintptr_t const address = reinterpret_cast<uintptr_t>(begin) + i / 16 * 1024
          + i / 2 % 8 * 128 + i % 2 * 16;
      chunks.push_back(reinterpret_cast<unsigned char const*>(address ^ (address >> 7 & 7) << 4));
      seen.emplace_back();
      std::memcpy(&seen.back(), chunks.back(), 16);
    }
  }

  bool changed() const {
    for (size_t i = 0; i < chunks.size(); ++i) {
      if (std::memcmp(&seen[i], chunks[i], 16) != 0) {
        return true;
      }
    }
    return false;
  }

  bool reads(void const* chunk) const {
    auto const from = reinterpret_cast<uintptr_t>(chunks.front()) / 1024 * 1024;
    return reinterpret_cast<uintptr_t>(chunk) - from < chunks.size() / 2 * 128;
  }

  template <typename T>
  float at(int row, int column) const {
    auto const* const values = reinterpret_cast<T const*>(&seen[row * 2]);
    return static_cast<float>(values[column]);
  }
};

struct GroupProduct {
  GroupMatrixView a;
  GroupMatrixView b;
  bool add;
  std::vector<void*> lanes;  // the sums of all 128 threads
  void (*finish)(GroupProduct const&);
};

using ProductSet = std::vector<GroupProduct>;

// Four warps that multiply together.
struct Group {
  Meeting meeting;
  ProductSet open;
  std::deque<ProductSet> sets;
};

struct Block {
  int64_t id = 0;
  int current = 0;
  bool progress = false;
  jmp_buf scheduler{};
  std::function<void()> body;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Meeting> warps;
  std::vector<Group> groups;
  Meeting all;
  std::unique_ptr<uint4[]> shared;
};

inline Block* the_block = nullptr;
inline Device the_device;
inline int most_shared_bytes = 0;  // that a launch asked for since the device was chosen
inline bool runs_blocks = true;    // else a launch is only noted

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
  block.groups.resize((threads + 127) / 128);
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

// A copy may land at once.
inline bool still_multiplied(void const* chunk) {
  for (Group const& group : the_block->groups) {
    for (ProductSet const& set : group.sets) {
      for (GroupProduct const& product : set) {
        if (product.a.reads(chunk) || product.b.reads(chunk)) {
          return true;
        }
      }
    }
  }
  return false;
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

// Warp w holds rows 16 w to 16 w + 15, as `multiply_warp` does, of each eight of b's rows.
template <typename T, int Sums>
void finish_group_product(GroupProduct const& product) {
  if (product.a.changed() || product.b.changed()) {
    fail("shared memory changed under a group product");
  }
  for (int thread = 0; thread < 128; ++thread) {
    auto* const sums = static_cast<float(*)[4]>(product.lanes[thread]);
    int const lane = thread % 32;
    for (int i = 0; i < Sums * 4; ++i) {
      int const row = thread / 32 * 16 + lane / 4 + i % 4 / 2 * 8;
      int const code = i / 4 * 8 + lane % 4 * 2 + i % 2;
      double sum = product.add ? sums[i / 4][i % 4] : 0.0;
      for (int column = 0; column < 16; ++column) {
        sum += static_cast<double>(product.a.at<T>(row, column)) * product.b.at<T>(code, column);
      }
      sums[i / 4][i % 4] = static_cast<float>(sum);
    }
  }
}

template <typename Last>
void meet_group(char const* purpose, void* gift, Last last) {
  int const thread = the_block->current;
  Group& group = the_block->groups[thread / 128];
  meet(group.meeting, 128, thread % 128, purpose, gift,
      [&](std::vector<void*> const& lanes) { last(group, lanes); });
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

}  // namespace vqedge
