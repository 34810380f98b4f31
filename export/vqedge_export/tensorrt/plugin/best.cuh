// Best: what a set of scores of one row comes down to. All about ties, margins and NaN is here.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

namespace vqedge {

constexpr int32_t kNoCode = INT32_MAX;

// However the codes of a row are split into sets, and in whatever order the sets are merged, the
// Best is the same.
struct alignas(16) Best {
  float score = -INFINITY;
  float second = -INFINITY;  // the best score of another code
  int32_t code = kNoCode;    // stays so while every score seen is -inf
  int32_t broken = 0;        // a NaN was seen

  // Takes in one more score. Codes must come in ascending order; `merge` takes any order.
  __host__ __device__ void see(float value, int32_t index) {
    broken |= value != value;
    second = fmaxf(second, fminf(score, value));
    code = value > score ? index : code;
    score = fmaxf(score, value);
  }

  // Takes in what was found among other codes.
  __host__ __device__ void merge(Best const& other) {
    broken |= other.broken;
    second = fmaxf(fmaxf(second, other.second), fminf(score, other.score));
    bool const nearer =
        other.score > score || (other.score == score && other.code < code);
    code = nearer ? other.code : code;
    score = nearer ? other.score : score;
  }

  // Moves the codes that were seen up by the number of the first of them.
  __host__ __device__ void count_from(int32_t first) {
    code = code == kNoCode ? kNoCode : code + first;
  }

  // The lowest of the best codes. If every score is -inf, that is code 0.
  __host__ __device__ int32_t index() const { return broken || code == kNoCode ? 0 : code; }

  // Best minus second best; +inf if there is one code only.
  __host__ __device__ float margin(int64_t codes) const {
    if (broken) {
      return 0.0F;
    }
    return codes == 1 ? INFINITY : score - second;
  }
};

}  // namespace vqedge
