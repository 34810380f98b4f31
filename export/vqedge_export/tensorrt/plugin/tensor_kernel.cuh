// Scores on tensor cores, float16 and bfloat16: a block takes a tile of rows and a tile of codes.
//
// Slices of 64 columns travel through a ring of shared memory, several in flight, while the tensor
// cores work on the oldest. The scores never leave the registers: they are folded into a Best.
#pragma once

#include "problem.cuh"

namespace vqedge {

// Rows x Codes scores a block, shared among WarpsByRow x WarpsByCode warps.
template <int Rows, int Codes, int WarpsByRow, int WarpsByCode>
struct TensorTile {
  static constexpr int kRows = Rows;
  static constexpr int kCodes = Codes;
  static constexpr int kWarpsByCode = WarpsByCode;
  static constexpr int kThreads = WarpsByRow * WarpsByCode * kWarp;
  static constexpr int kWarpRows = Rows / WarpsByRow;
  static constexpr int kWarpCodes = Codes / WarpsByCode;
  static constexpr int kRowFragments = kWarpRows / 16;
  static constexpr int kCodeFragments = kWarpCodes / 8;
  static constexpr int kColumns = 64;                  // of a slice
  static constexpr int kSliceRowBytes = kColumns * 2;  // eight chunks of 16 bytes
  static constexpr int kStageBytes = (Rows + Codes) * kSliceRowBytes;
  static constexpr bool kOwnTerms = Codes <= 64;  // it holds all codes, and needs no kernel before
  static constexpr int kOwnFragments = kCodeFragments / (WarpsByRow * WarpsByCode);
  static constexpr int kExtraBytes = Codes * sizeof(Term) + Rows * sizeof(float);

  static_assert(kRowFragments == WarpsByCode, "each warp squares one row fragment");
  static_assert(kCodeFragments % 2 == 0, "codes are loaded 16 at a time");
  static_assert(kStageBytes % 16 == 0, "terms are read two at a time");
  static_assert(kThreads >= Rows, "one thread a row at the end");
  static_assert(WarpsByCode * Rows * sizeof(Best) <= 2 * kStageBytes, "the ring holds the Bests");

  static constexpr int shared_bytes(int stages) { return stages * kStageBytes + kExtraBytes; }
};

using NarrowTile = TensorTile<64, 32, 4, 1>;
using SmallTile = TensorTile<64, 64, 4, 1>;
using MiddleTile = TensorTile<64, 128, 2, 2>;
using WideTile = TensorTile<128, 256, 2, 4>;

constexpr int kMinStages = 2;
constexpr int kMaxStages = 4;  // `wait_copies` knows no more

__device__ inline float2 to_floats(uint32_t pair, __half /* type */) {
  return __half22float2(reinterpret_cast<__half2 const&>(pair));
}

__device__ inline float2 to_floats(uint32_t pair, __nv_bfloat16 /* type */) {
  return __bfloat1622float2(reinterpret_cast<__nv_bfloat162 const&>(pair));
}

// Chunk of 16 bytes of a slice's row. The chunks are permuted from row to row, so that the eight
// rows of a matrix lie in different banks.
__device__ inline unsigned char* chunk_at(unsigned char* slice, int row, int chunk) {
  return slice + row * 128 + ((chunk ^ (row & 7)) << 4);
}

// What a lane adds up of each code in its share, towards the code's term.
template <int Fragments>
struct CodeSums {
  float square[Fragments] = {};
  float poison[Fragments] = {};

  __device__ void add(int i, float2 pair) {
    square[i] = fmaf(pair.x, pair.x, fmaf(pair.y, pair.y, square[i]));
    poison[i] = fmaf(pair.x, 0.0F, fmaf(pair.y, 0.0F, poison[i]));
  }
};

template <>
struct CodeSums<0> {};

// Of the four lanes that share a row or a code.
__device__ inline float sum_of_four(float sum) {
  sum += shuffle_xor(sum, 1);
  return sum + shuffle_xor(sum, 2);
}

template <typename T, class Tile>
struct TensorBlock {
  Problem const& p;
  Place place;
  unsigned char* ring;
  Term* terms;
  float* squares;
  int lane;
  int warp_row;   // the warp's place in the block
  int warp_code;
  float sums[Tile::kRowFragments][Tile::kCodeFragments][4];
  float square[2] = {};  // of rows lane / 4 and lane / 4 + 8 of row fragment 0
  CodeSums<Tile::kOwnTerms ? Tile::kOwnFragments : 0> own;

  __device__ TensorBlock(Problem const& problem, unsigned char* shared)
      : p(problem),
        place(place_of(block_id(), ceil_div(problem.n, Tile::kRows), problem.code_tiles)),
        ring(shared),
        terms(reinterpret_cast<Term*>(shared + p.stages * Tile::kStageBytes)),
        squares(reinterpret_cast<float*>(terms + Tile::kCodes)),
        lane(thread_id() % kWarp),
        warp_row(thread_id() / kWarp / Tile::kWarpsByCode),
        warp_code(thread_id() / kWarp % Tile::kWarpsByCode) {}

  __device__ int64_t first_row() const { return place.row_tile * Tile::kRows; }
  __device__ int64_t first_code() const { return place.code_tile * Tile::kCodes; }
  __device__ bool all_codes() const { return first_code() + Tile::kCodes <= p.k; }
  __device__ int steps() const { return static_cast<int>(ceil_div(p.d, Tile::kColumns)); }

  // First row of a row fragment. Warps that share rows start with different ones: fragment 0 is the
  // one whose squares this warp sums.
  __device__ int fragment_row(int m) const {
    return warp_row * Tile::kWarpRows + (m + warp_code) % Tile::kRowFragments * 16;
  }

  __device__ void load_terms() {
    for (int i = thread_id(); i < Tile::kCodes; i += Tile::kThreads) {
      terms[i] = term_of(p, first_code() + i);
    }
  }

  // Starts the copies of one slice: the rows, then the codes.
  __device__ void load_slice(int stage, int step) {
    unsigned char* const slice = ring + stage * Tile::kStageBytes;
    T const* const x = static_cast<T const*>(p.x);
    T const* const codebook = static_cast<T const*>(p.codebook);
    load_part<Tile::kRows>(slice, x, first_row(), p.n, step);
    load_part<Tile::kCodes>(
        slice + Tile::kRows * Tile::kSliceRowBytes, codebook, first_code(), p.k, step);
  }

  // Eight threads a row, one chunk each.
  template <int Count>
  __device__ void load_part(
      unsigned char* part, T const* matrix, int64_t first, int64_t total, int step) {
    constexpr int kAtOnce = Tile::kThreads / 8;
    static_assert(Count % kAtOnce == 0, "every thread copies as much");
    int const column = step * Tile::kColumns + thread_id() % 8 * 8;
    int const left = static_cast<int>(total - first < Count ? total - first : Count);
    T const* source = matrix + (first + thread_id() / 8) * p.d + column;
    int64_t const stride = static_cast<int64_t>(kAtOnce) * p.d;
    int row = thread_id() / 8;
    if (p.aligned) {
#pragma unroll
      for (int i = 0; i < Count / kAtOnce; ++i, row += kAtOnce, source += stride) {
        copy_16(chunk_at(part, row, thread_id() % 8), source, row < left && column < p.d);
      }
      return;
    }
#pragma unroll 1
    for (int i = 0; i < Count / kAtOnce; ++i, row += kAtOnce, source += stride) {
      copy_values(chunk_at(part, row, thread_id() % 8), source, row < left ? p.d - column : 0);
    }
  }

  // What this lane gives `load_matrices` for 16 columns of a row fragment.
  __device__ unsigned char* row_chunk(unsigned char* slice, int m, int sixteen) const {
    return chunk_at(slice, fragment_row(m) + lane % 16, sixteen * 2 + lane / 16);
  }

  // Adds 16 columns of a slice to the sums.
  __device__ void multiply_columns(unsigned char* slice, int sixteen) {
    uint32_t rows[Tile::kRowFragments][4];
#pragma unroll
    for (int m = 0; m < Tile::kRowFragments; ++m) {
      load_matrices(rows[m], row_chunk(slice, m, sixteen));
    }
    if (p.metric == VQEDGE_COSINE) {
      add_squares(rows[0]);
    }
#pragma unroll
    for (int n = 0; n < Tile::kCodeFragments; n += 2) {
      int const code = warp_code * Tile::kWarpCodes + n * 8 + lane % 8 + lane / 16 * 8;
      uint32_t codes[4];
      load_matrices(codes, chunk_at(slice, Tile::kRows + code, sixteen * 2 + lane / 8 % 2));
#pragma unroll
      for (int m = 0; m < Tile::kRowFragments; ++m) {
        multiply(sums[m][n], rows[m], codes[0], codes[1], T(0.0F));
        multiply(sums[m][n + 1], rows[m], codes[2], codes[3], T(0.0F));
      }
      if constexpr (Tile::kOwnTerms) {
        add_code(n, codes[0], codes[1]);
        add_code(n + 1, codes[2], codes[3]);
      }
    }
  }

  // The four registers of a row fragment hold row, row + 8, row, row + 8 of this lane.
  __device__ void add_squares(uint32_t const (&row)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float2 const pair = to_floats(row[i], T(0.0F));
      square[i % 2] = fmaf(pair.x, pair.x, fmaf(pair.y, pair.y, square[i % 2]));
    }
  }

  // Of the code fragments, each warp squares its share.
  __device__ void add_code(int n, uint32_t first, uint32_t second) {
    if (n / Tile::kOwnFragments == warp_row) {
      own.add(n % Tile::kOwnFragments, to_floats(first, T(0.0F)));
      own.add(n % Tile::kOwnFragments, to_floats(second, T(0.0F)));
    }
  }

  // The terms of all codes from the squares that were added up meanwhile.
  __device__ void make_terms() {
#pragma unroll
    for (int i = 0; i < Tile::kOwnFragments; ++i) {
      float const square_sum = sum_of_four(own.square[i]);
      float const poison = sum_of_four(own.poison[i]);
      if (lane % 4 == 0) {
        terms[(warp_row * Tile::kOwnFragments + i) * 8 + lane / 4] =
            term_from_sums(p.metric, square_sum, poison);
      }
    }
  }

  __device__ void clear_sums() {
#pragma unroll
    for (auto& fragments : sums) {
#pragma unroll
      for (auto& fragment : fragments) {
#pragma unroll
        for (float& sum : fragment) {
          sum = 0.0F;
        }
      }
    }
  }

  // Begins all loads that wait for nothing: of the first slices, and of terms that were prepared.
  __device__ void load_ahead(int slices) {
    for (int step = 0; step < slices; ++step) {
      if (step < steps()) {
        load_slice(step, step);
      }
      commit_copies();
    }
    if constexpr (!Tile::kOwnTerms) {
      load_terms();
    }
  }

  __device__ void multiply_all() {
    clear_sums();
    int const ahead = p.stages - 1;
    load_ahead(ahead);
    int stage = 0;
    int free_stage = ahead;
    for (int step = 0; step < steps(); ++step) {
      wait_copies(ahead - 1);
      sync_block();  // this slice is there for all, and all have left the one before
      if (step + ahead < steps()) {
        load_slice(free_stage, step + ahead);
      }
      commit_copies();
#pragma unroll
      for (int sixteen = 0; sixteen < Tile::kColumns / 16; ++sixteen) {
        multiply_columns(ring + stage * Tile::kStageBytes, sixteen);
      }
      free_stage = stage;
      stage = stage == ahead ? 0 : stage + 1;
    }
    if constexpr (Tile::kOwnTerms) {
      make_terms();
    }
    sync_block();  // the ring is free
  }

  // This lane's scores of its two rows of a row fragment. `Full`: the tile has all of its codes.
  template <bool Full>
  __device__ void see_codes(int m, Best (&best)[2]) const {
    int const first = warp_code * Tile::kWarpCodes + lane % 4 * 2;
    int64_t const left = p.k - first_code() - first;
#pragma unroll
    for (int n = 0; n < Tile::kCodeFragments; ++n) {
      TermPair const two = *reinterpret_cast<TermPair const*>(terms + first + n * 8);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        Term const term = i == 0 ? two.even : two.odd;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float const score = fmaf(sums[m][n][half * 2 + i], term.scale, -term.offset);
          best[half].see(Full || n * 8 + i < left ? score : -INFINITY, n * 8 + i);
        }
      }
    }
#pragma unroll
    for (Best& one : best) {
      one.count_from(static_cast<int32_t>(first_code()) + first);
      one.merge(shuffle_xor(one, 1));  // of the three lanes that share the row
      one.merge(shuffle_xor(one, 2));
    }
  }

  // Leaves one Best a row and column of warps in the ring, and the rows' squares beside it.
  template <bool Full>
  __device__ void reduce_warp(Best* slots) {
#pragma unroll
    for (int m = 0; m < Tile::kRowFragments; ++m) {
      Best best[2];
      see_codes<Full>(m, best);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int const row = fragment_row(m) + half * 8 + lane / 4;
        if (lane % 4 == 0) {
          slots[warp_code * Tile::kRows + row] = best[half];
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float const sum = sum_of_four(square[half]);
      if (lane % 4 == 0) {
        squares[fragment_row(0) + half * 8 + lane / 4] = sum;
      }
    }
  }

  __device__ void write_rows(Best const* slots) {
    int const row = thread_id();
    if (row >= Tile::kRows || first_row() + row >= p.n) {
      return;
    }
    Best best;
    for (int i = 0; i < Tile::kWarpsByCode; ++i) {
      best.merge(slots[i * Tile::kRows + row]);
    }
    write_best(p, place, first_row() + row, best, squares[row]);
  }
};

// All that a block does.
template <class Block>
__device__ void find_nearest(Block& block) {
  Best* const slots = reinterpret_cast<Best*>(block.ring);
  block.multiply_all();
  if (block.all_codes()) {
    block.template reduce_warp<true>(slots);
  } else {
    block.template reduce_warp<false>(slots);
  }
  sync_block();
  block.write_rows(slots);
}

template <typename T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) tensor_kernel(Problem p) {
  if constexpr (has_tensor_cores<T>()) {
    TensorBlock<T, Tile> block(p, shared_memory());
    find_nearest(block);
  } else {
    refuse();
  }
}

}  // namespace vqedge
