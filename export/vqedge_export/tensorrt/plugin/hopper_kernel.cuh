// Scores on a Hopper's tensor cores, float16 and bfloat16, for codebooks of more than 128 codes.
//
// As tensor_kernel.cuh, but four warps multiply together and read both sides from shared memory:
// the instruction that reaches this GPU's full rate. The products of one slice run while the copies
// of later ones are started and those of the next are waited for.
#pragma once

#include "tensor_kernel.cuh"

namespace vqedge {

using HopperTile = TensorTile<128, kGroupCodes, 8, 1>;

constexpr int kGroupRows = 64;         // of one group product
constexpr int kHopperMinStages = 3;    // one multiplied, one still being read, one on its way
constexpr int kPermutationBytes = 1024;
constexpr int kHopperSlack = kPermutationBytes;  // for a ring that begins at such a boundary

__device__ inline unsigned char* at_permutation_boundary(unsigned char* shared) {
  uintptr_t const address = reinterpret_cast<uintptr_t>(shared);
  return shared + (kPermutationBytes - address % kPermutationBytes) % kPermutationBytes;
}

template <typename T>
struct HopperBlock : TensorBlock<T, HopperTile> {
  using Base = TensorBlock<T, HopperTile>;
  using Base::p;

  __device__ HopperBlock(Problem const& problem, unsigned char* shared)
      : Base(problem, at_permutation_boundary(shared)) {
    static_assert(HopperTile::kRowFragments == 1, "a warp's rows of a group product");
    static_assert(HopperTile::kCodeFragments == kGroupSums, "a group product takes all codes");
    static_assert(HopperTile::kStageBytes % kPermutationBytes == 0, "every stage is aligned");
  }

  // Starts the products of a slice's 64 columns. Those of the first slice begin the sums.
  template <bool First>
  __device__ void multiply_slice(unsigned char const* slice) {
    int const group_row = this->warp_row / 4 * kGroupRows;
    unsigned char const* const rows = slice + group_row * HopperTile::kSliceRowBytes;
    unsigned char const* const codes = slice + HopperTile::kRows * HopperTile::kSliceRowBytes;
    open_products(this->sums[0]);
#pragma unroll
    for (int column = 0; column < HopperTile::kSliceRowBytes; column += 32) {
      multiply_group(this->sums[0], group_matrix(rows + column), group_matrix(codes + column),
          !First || column > 0, T(0.0F));
    }
    close_products();
  }

  // The same rows' squares, in the order of the other kernel.
  __device__ void add_slice_squares(unsigned char* slice) {
#pragma unroll
    for (int sixteen = 0; sixteen < HopperTile::kColumns / 16; ++sixteen) {
      uint32_t row[4];
      load_matrices(row, this->row_chunk(slice, 0, sixteen));
      this->add_squares(row);
    }
  }

  // Waits until the next slice is there for all, and all are done with the slice two before it.
  __device__ void await_slice(int ahead) {
    wait_copies(ahead - 1);
    publish_copies();
    sync_block();
  }

  __device__ void add_squares_if_cosine(unsigned char* slice) {
    if (p.metric == VQEDGE_COSINE) {
      add_slice_squares(slice);
    }
  }

  // The first slice comes before the loop: there, CUDA 12 would have each product wait for the one
  // before it, as sums that begin in a loop are not the products' alone.
  __device__ void multiply_all() {
    int const steps = this->steps();
    int const ahead = p.stages - 2;
    this->load_ahead(ahead);
    unsigned char* slice = this->ring;
    int stage = 0;
    int free_stage = ahead;
    await_slice(ahead);
    multiply_slice<true>(slice);
    for (int step = ahead; step < steps + ahead - 1; ++step) {
      if (step < steps) {
        this->load_slice(free_stage, step);
      }
      commit_copies();
      add_squares_if_cosine(slice);
      wait_products<1>(this->sums[0]);  // of the slice before this one
      await_slice(ahead);
      stage = stage + 1 == p.stages ? 0 : stage + 1;
      free_stage = free_stage + 1 == p.stages ? 0 : free_stage + 1;
      slice = this->ring + stage * HopperTile::kStageBytes;
      multiply_slice<false>(slice);
    }
    add_squares_if_cosine(slice);
    wait_products<0>(this->sums[0]);
    sync_block();  // the ring is free
  }
};

template <typename T>
__global__ void __launch_bounds__(HopperTile::kThreads, 1) hopper_kernel(Problem p) {
  if constexpr (has_group_products<T>()) {
    HopperBlock<T> block(p, shared_memory());
    find_nearest(block);
  } else {
    refuse();
  }
}

}  // namespace vqedge
