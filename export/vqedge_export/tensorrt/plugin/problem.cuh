// What every kernel is given, and what the kernels share: terms, guarded loads, results.
#pragma once

#include <cstdint>

#include "best.cuh"
#include "device.cuh"
#include "nearest_codebook.h"

namespace vqedge {

constexpr float kCosineEps = 1e-12F;
constexpr int kWarp = 32;
constexpr int kTilesPerGroup = 8;  // code tiles that neighbouring blocks share through the L2 cache

// The score of a code is `product * scale - offset`.
struct alignas(8) Term {
  float scale;
  float offset;
};

struct alignas(16) TermPair {
  Term even;
  Term odd;
};

struct Problem {
  void const* x;
  void const* codebook;
  int64_t n;
  int64_t k;
  int32_t d;
  int32_t metric;
  int32_t aligned;      // rows start at 16-byte boundaries
  int32_t stages;       // tiles in flight
  int64_t code_tiles;   // 1: blocks write results; more: they write partials
  int32_t* indices;
  float* margin;        // null: not wanted
  Term* terms;          // [k]; null: every term is {1, 0}
  Best* partials;       // [code_tiles, n]
  float* row_squares;   // [n], cosine only
};

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Which tile a block works on. Blocks near in time share code tiles, and meet in the cache.
struct Place {
  int64_t row_tile;
  int64_t code_tile;
};

__host__ __device__ inline Place place_of(int64_t block, int64_t row_tiles, int64_t code_tiles) {
  int64_t const group = block / (row_tiles * kTilesPerGroup);
  int64_t const first = group * kTilesPerGroup;
  int64_t const width = code_tiles - first < kTilesPerGroup ? code_tiles - first : kTilesPerGroup;
  int64_t const inside = block - first * row_tiles;
  return {inside / width, first + inside % width};
}

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

// The next 16 bytes of an unaligned row into shared memory; beyond `values` of them, zeros.
template <typename T>
__device__ void copy_values(void* shared, T const* source, int values) {
  T* const out = static_cast<T*>(shared);
  for (int i = 0; i < static_cast<int>(16 / sizeof(T)); ++i) {
    out[i] = i < values ? source[i] : T(0.0F);
  }
}

// A code's term from the sum of its squares, and that of its values times 0: NaN if one is not
// finite.
__device__ inline Term term_from_sums(int32_t metric, float square, float poison) {
  switch (metric) {
    case VQEDGE_L2: return {2.0F, square};
    case VQEDGE_COSINE: return {1.0F / fmaxf(sqrtf(square), kCosineEps) + poison, 0.0F};
    default: return {1.0F, 0.0F};
  }
}

__device__ inline Term term_of(Problem const& p, int64_t code) {
  if (code >= p.k) {
    return {0.0F, 0.0F};  // never looked at
  }
  return p.terms == nullptr ? Term{1.0F, 0.0F} : p.terms[code];
}

// The row's answer. Cosine divides by the row's length here: it does not change the order.
// A row whose squares overflow scores 0 for every code, or holds an infinity: both give 0, 0.
__device__ inline void write_result(Problem const& p, int64_t row, Best best, float square) {
  float scale = 1.0F;
  if (p.metric == VQEDGE_COSINE) {
    best.broken |= !(square < INFINITY);
    scale = 1.0F / fmaxf(sqrtf(square), kCosineEps);
  }
  p.indices[row] = best.index();
  if (p.margin != nullptr) {
    p.margin[row] = best.margin(p.k) * scale;
  }
}

// A block's finding for one row: the answer if it saw all codes, else a partial for `merge_kernel`.
__device__ inline void write_best(
    Problem const& p, Place place, int64_t row, Best const& best, float square) {
  if (p.code_tiles == 1) {
    write_result(p, row, best, square);
    return;
  }
  p.partials[place.code_tile * p.n + row] = best;
  if (p.metric == VQEDGE_COSINE && place.code_tile == 0) {
    p.row_squares[row] = square;
  }
}

constexpr int kPrepareThreads = 128;

// terms[k], one warp a code. Cosine: a code that holds NaN or infinity has the term NaN.
template <typename T>
__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(Problem p) {
  int const lane = thread_id() % kWarp;
  int64_t const code = (block_id() * kPrepareThreads + thread_id()) / kWarp;
  T const* const values = static_cast<T const*>(p.codebook) + code * p.d;
  float square = 0.0F;
  float poison = 0.0F;
  if (code < p.k) {
    // many loads under way: the codebook comes from memory, and there is little to do
#pragma unroll 12
    for (int i = lane; i < p.d; i += kWarp) {
      float const value = to_float(values[i]);
      square = fmaf(value, value, square);
      poison = fmaf(value, 0.0F, poison);
    }
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    square += shuffle_xor(square, lanes);
    poison += shuffle_xor(poison, lanes);
  }
  if (lane == 0 && code < p.k) {
    p.terms[code] = term_from_sums(p.metric, square, poison);
  }
}

constexpr int kMergeThreads = 128;

// One row a thread, over the partials of all code tiles.
static __global__ void __launch_bounds__(kMergeThreads) merge_kernel(Problem p) {
  int64_t const row = block_id() * kMergeThreads + thread_id();
  if (row >= p.n) {
    return;
  }
  Best best;
  for (int64_t tile = 0; tile < p.code_tiles; ++tile) {
    best.merge(p.partials[tile * p.n + row]);
  }
  write_result(p, row, best, p.metric == VQEDGE_COSINE ? p.row_squares[row] : 0.0F);
}

}  // namespace vqedge
