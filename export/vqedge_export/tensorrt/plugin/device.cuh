// The few things that only a GPU has: asynchronous copies, tensor cores, shuffles, launches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "best.cuh"

namespace vqedge {

__device__ inline int thread_id() { return static_cast<int>(threadIdx.x); }

__device__ inline int64_t block_id() { return static_cast<int64_t>(blockIdx.x); }

__device__ inline void sync_block() { __syncthreads(); }

// The block's dynamic shared memory.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ uint4 shared_words[];
  return reinterpret_cast<unsigned char*>(shared_words);
}

__device__ inline uint32_t shared_address(void const* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Starts copying 16 bytes to shared memory, or zeros if not `inside`. Both sides 16-byte aligned.
__device__ inline void copy_16(void* shared, void const* global, bool inside) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(inside ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(shared) = inside ? *static_cast<uint4 const*>(global) : uint4{};
#endif
}

// Closes a group of copies; an empty group counts too.
__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `pending` (0 to 2) of this thread's groups are unfinished.
__device__ inline void wait_copies(int pending) {
#if __CUDA_ARCH__ >= 800
  switch (pending) {
    case 0: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
    case 1: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
    default: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
  }
#else
  (void)pending;
#endif
}

// Four 8 x 8 matrices of 16-bit values; lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline void load_matrices(uint32_t (&out)[4], void const* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// What a kernel does that its architecture does not have. The host chooses so that it never runs.
__device__ inline void refuse() { __trap(); }

// Which kernel an architecture has for a type; `run` in nearest_codebook.cu chooses likewise.
template <typename T>
__host__ __device__ constexpr bool has_tensor_cores() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return std::is_same_v<T, __half>;
#else
  return sizeof(T) == 2;
#endif
}

template <typename T>
__host__ __device__ constexpr bool needs_fma() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return std::is_same_v<T, float>;
#else
  return !std::is_same_v<T, __half>;
#endif
}

// sum[16, 8] += a[16, 16] b[8, 16]^T on the tensor cores, sums in float32.
__device__ inline void multiply(
    float (&sum)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, __half /* type */) {
#if __CUDA_ARCH__ >= 800
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  asm(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%8}, {%0, %1, %2, %3};\n\t"
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%6, %7}, {%9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

__device__ inline void multiply(
    float (&sum)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16 /* type */) {
#if __CUDA_ARCH__ >= 800
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

__device__ inline float shuffle_xor(float value, int lanes) {
  return __shfl_xor_sync(0xFFFFFFFFU, value, lanes);
}

__device__ inline Best shuffle_xor(Best const& mine, int lanes) {
  Best other;
  other.score = __shfl_xor_sync(0xFFFFFFFFU, mine.score, lanes);
  other.second = __shfl_xor_sync(0xFFFFFFFFU, mine.second, lanes);
  other.code = __shfl_xor_sync(0xFFFFFFFFU, mine.code, lanes);
  other.broken = __shfl_xor_sync(0xFFFFFFFFU, mine.broken, lanes);
  return other;
}

struct Device {
  int major = 0;            // compute capability
  int processors = 0;       // streaming multiprocessors
  int shared_bytes = 0;     // most dynamic shared memory a block may ask for
};

// A failure is returned; as the thread's last error it would be taken for one of a later call.
inline cudaError_t told(cudaError_t status) {
  if (status != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
  }
  return status;
}

// The calling thread's current device. A few cached look-ups; allowed while a graph is captured.
inline cudaError_t current_device(Device& device) {
  int id = 0;
  cudaError_t status = cudaGetDevice(&id);
  auto const ask = [&](int& value, cudaDeviceAttr what) {
    status = status == cudaSuccess ? cudaDeviceGetAttribute(&value, what, id) : status;
  };
  ask(device.major, cudaDevAttrComputeCapabilityMajor);
  ask(device.processors, cudaDevAttrMultiProcessorCount);
  ask(device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return told(status);
}

template <typename Arguments>
cudaError_t launch(void (*kernel)(Arguments), int64_t blocks, int threads, int shared_bytes,
    cudaStream_t stream, Arguments arguments) {
  cudaError_t const status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (status != cudaSuccess) {
    return told(status);
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(arguments);
  return cudaGetLastError();
}

}  // namespace vqedge
