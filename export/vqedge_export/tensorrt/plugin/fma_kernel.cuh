// Scores in true float32 multiply-adds: float32 inputs, and bfloat16 where tensor cores lack it.
//
// A block of 256 threads takes 128 rows against a tile of codes; a thread keeps 8 rows x Codes / 16
// codes in registers. Slices of 16 columns lie transposed in shared memory, the next one is loaded
// into registers meanwhile.
#pragma once

#include "problem.cuh"

namespace vqedge {

template <int Codes>
struct FmaTile {
  static constexpr int kRows = 128;
  static constexpr int kCodes = Codes;
  static constexpr int kThreads = 256;
  static constexpr int kColumns = 16;
  static constexpr int kThreadRows = 8;
  static constexpr int kThreadCodes = Codes / 16;
  static constexpr int kTogether = kThreadCodes < 4 ? kThreadCodes : 4;  // one load of 16 bytes
  static constexpr int kRowStride = kRows + 4;  // padded against bank conflicts, still 16-byte rows
  static constexpr int kCodeStride = Codes + 4;
  static constexpr int kStageFloats = kColumns * (kRowStride + kCodeStride);
  static constexpr int kSharedBytes = 2 * kStageFloats * sizeof(float);
};

using NarrowFmaTile = FmaTile<32>;
using SmallFmaTile = FmaTile<64>;
using WideFmaTile = FmaTile<128>;

// Eight values of a row as float32, zeros beyond the matrix.
template <typename T>
__device__ void load_eight(float (&out)[8], T const* matrix, int64_t row, int64_t rows,
    int column, int d, bool aligned) {
  constexpr int kPerChunk = 16 / sizeof(T);
  union Chunk {
    uint4 words;
    unsigned char bytes[16];
  };
#pragma unroll
  for (int first = 0; first < 8; first += kPerChunk) {
    T const* const source = matrix + row * d + column + first;
    if (aligned && row < rows && column + first < d) {
      Chunk const chunk{*reinterpret_cast<uint4 const*>(source)};
#pragma unroll
      for (int i = 0; i < kPerChunk; ++i) {
        out[first + i] = to_float(reinterpret_cast<T const*>(chunk.bytes)[i]);
      }
      continue;
    }
#pragma unroll
    for (int i = 0; i < kPerChunk; ++i) {
      bool const inside = row < rows && column + first + i < d;
      out[first + i] = inside ? to_float(source[i]) : 0.0F;
    }
  }
}

template <typename T, class Tile>
struct FmaBlock {
  Problem const& p;
  Place place;
  float* ring;
  int thread_row;   // of 16
  int thread_code;  // the first of its codes; `further` tells the others
  float next_rows[8];
  float next_codes[8];
  float sums[Tile::kThreadRows][Tile::kThreadCodes] = {};
  float squares[Tile::kThreadRows] = {};

  __device__ FmaBlock(Problem const& problem, unsigned char* shared)
      : p(problem),
        place(place_of(block_id(), ceil_div(problem.n, Tile::kRows), problem.code_tiles)),
        ring(reinterpret_cast<float*>(shared)),
        thread_row(thread_id() / 16),
        thread_code(thread_id() % 16 * Tile::kTogether) {}

  // How far code j of a thread is from its first: few lie together, the next few 16 times as far.
  __device__ static constexpr int further(int j) {
    return j / Tile::kTogether * 16 * Tile::kTogether + j % Tile::kTogether;
  }

  __device__ int64_t first_row() const { return place.row_tile * Tile::kRows; }
  __device__ int64_t first_code() const { return place.code_tile * Tile::kCodes; }
  __device__ bool all_codes() const { return first_code() + Tile::kCodes <= p.k; }

  // Two threads a row, eight columns each; of a narrow tile's codes, the first threads only.
  __device__ void load_slice(int step) {
    int const row = thread_id() / 2;
    int const column = step * Tile::kColumns + thread_id() % 2 * 8;
    load_eight(next_rows, static_cast<T const*>(p.x), first_row() + row, p.n, column, p.d,
        p.aligned);
    if (row < Tile::kCodes) {
      load_eight(next_codes, static_cast<T const*>(p.codebook), first_code() + row, p.k, column,
          p.d, p.aligned);
    }
  }

  __device__ void store_slice(int stage) {
    float* const rows = ring + stage * Tile::kStageFloats;
    float* const codes = rows + Tile::kColumns * Tile::kRowStride;
    int const row = thread_id() / 2;
    int const column = thread_id() % 2 * 8;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      rows[(column + i) * Tile::kRowStride + row] = next_rows[i];
      if (row < Tile::kCodes) {
        codes[(column + i) * Tile::kCodeStride + row] = next_codes[i];
      }
    }
  }

  __device__ void multiply_column(float const* rows, float const* codes) {
    float row[Tile::kThreadRows];
    float code[Tile::kThreadCodes];
#pragma unroll
    for (int i = 0; i < Tile::kThreadRows; ++i) {
      row[i] = rows[thread_row * Tile::kThreadRows + i];
    }
#pragma unroll
    for (int j = 0; j < Tile::kThreadCodes; ++j) {
      code[j] = codes[thread_code + further(j)];
    }
#pragma unroll
    for (int i = 0; i < Tile::kThreadRows; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kThreadCodes; ++j) {
        sums[i][j] = fmaf(row[i], code[j], sums[i][j]);
      }
      if (p.metric == VQEDGE_COSINE) {
        squares[i] = fmaf(row[i], row[i], squares[i]);
      }
    }
  }

  __device__ void multiply_all() {
    int const steps = static_cast<int>(ceil_div(p.d, Tile::kColumns));
    load_slice(0);
    store_slice(0);
    sync_block();
    for (int step = 0; step < steps; ++step) {
      int const stage = step % 2;
      if (step + 1 < steps) {
        load_slice(step + 1);
      }
      float const* const rows = ring + stage * Tile::kStageFloats;
      float const* const codes = rows + Tile::kColumns * Tile::kRowStride;
#pragma unroll
      for (int column = 0; column < Tile::kColumns; ++column) {
        multiply_column(rows + column * Tile::kRowStride, codes + column * Tile::kCodeStride);
      }
      if (step + 1 < steps) {
        store_slice(1 - stage);
      }
      sync_block();
    }
  }

  // Sixteen neighbouring threads share a row. `Full`: the tile has all of its codes.
  template <bool Full>
  __device__ void write_rows() {
    int64_t const first = first_code() + thread_code;  // their numbers ascend
    Term terms[Tile::kThreadCodes];
#pragma unroll
    for (int j = 0; j < Tile::kThreadCodes; ++j) {
      terms[j] = term_of(p, first + further(j));
    }
#pragma unroll
    for (int i = 0; i < Tile::kThreadRows; ++i) {
      Best best;
#pragma unroll
      for (int j = 0; j < Tile::kThreadCodes; ++j) {
        float const score = fmaf(sums[i][j], terms[j].scale, -terms[j].offset);
        best.see(Full || first + further(j) < p.k ? score : -INFINITY, further(j));
      }
      best.count_from(static_cast<int32_t>(first));
      for (int lanes = 8; lanes > 0; lanes /= 2) {
        best.merge(shuffle_xor(best, lanes));
      }
      int64_t const row = first_row() + thread_row * Tile::kThreadRows + i;
      if (thread_id() % 16 == 0 && row < p.n) {
        write_best(p, place, row, best, squares[i]);
      }
    }
  }
};

template <typename T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) fma_kernel(Problem p) {
  if constexpr (needs_fma<T>()) {
    FmaBlock<T, Tile> block(p, shared_memory());
    block.multiply_all();
    if (block.all_codes()) {
      block.template write_rows<true>();
    } else {
      block.template write_rows<false>();
    }
  } else {
    refuse();
  }
}

}  // namespace vqedge
