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

// Starts copying 16 bytes to shared memory, or zeros if not `inside`: then `global` is not read.
// Both sides 16-byte aligned.
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

// ---- Group products: a Hopper's four warps multiply together, straight from shared memory.
//
// The PTX manual's `wgmma`. They read shared memory by a way of their own (the async proxy), and
// run on while their threads do other things.

// Codes of one group product, and so its sums a thread: four for each eight codes.
constexpr int kGroupCodes = 256;
constexpr int kGroupSums = kGroupCodes / 8;

// Only code for sm_90a has them; `run_tensor` in nearest_codebook.cu chooses likewise.
template <typename T>
__host__ __device__ constexpr bool has_group_products() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  return sizeof(T) == 2;
#else
  return false;
#endif
}

// A matrix in shared memory, for a group product: rows of 128 bytes, one after another, eight of
// them from a 1,024-byte boundary on, their chunks of 16 bytes permuted by `chunk_at`. `begin` is
// the first of 32 bytes of the first row: the 16 columns to multiply.
using GroupMatrix = uint64_t;

__device__ inline GroupMatrix group_matrix(void const* begin) {
  constexpr uint64_t kPermutedBy128Bytes = uint64_t{1} << 62;
  constexpr uint64_t kNextEightRows = uint64_t{1024 >> 4} << 32;
  constexpr uint64_t kUnused = uint64_t{1} << 16;  // one permutation spans the columns
  return kPermutedBy128Bytes | kNextEightRows | kUnused
      | ((shared_address(begin) & 0x3FFFF) >> 4);
}

// Makes what this thread's finished copies wrote visible to group products.
__device__ inline void publish_copies() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Keeps the compiler from moving what it does with the sums over this place.
__device__ inline void pin(float (&sums)[kGroupSums][4]) {
#pragma unroll
  for (auto& four : sums) {
#pragma unroll
    for (float& sum : four) {
      asm volatile("" : "+f"(sum)::"memory");
    }
  }
}

// Before a set of group products: their sums are in the registers.
__device__ inline void open_products(float (&sums)[kGroupSums][4]) {
  pin(sums);
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// Closes the set.
__device__ inline void close_products() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until at most `Pending` of this warp's sets are unfinished. The sums may be read at 0.
template <int Pending>
__device__ inline void wait_products(float (&sums)[kGroupSums][4]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
#endif
  pin(sums);
}

#define VQEDGE_SUMS(n) "+f"(sums[n][0]), "+f"(sums[n][1]), "+f"(sums[n][2]), "+f"(sums[n][3])
#define VQEDGE_8_SUMS(n)                                                                \
  VQEDGE_SUMS(n), VQEDGE_SUMS(n + 1), VQEDGE_SUMS(n + 2), VQEDGE_SUMS(n + 3),           \
      VQEDGE_SUMS(n + 4), VQEDGE_SUMS(n + 5), VQEDGE_SUMS(n + 6), VQEDGE_SUMS(n + 7)
#define VQEDGE_GROUP_PRODUCT(type)                                                      \
  asm volatile(                                                                         \
      "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %130, 0;\n\t"                               \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {"                 \
      "%0, %1, %2, %3, %4, %5, %6, %7, "                                                \
      "%8, %9, %10, %11, %12, %13, %14, %15, "                                          \
      "%16, %17, %18, %19, %20, %21, %22, %23, "                                        \
      "%24, %25, %26, %27, %28, %29, %30, %31, "                                        \
      "%32, %33, %34, %35, %36, %37, %38, %39, "                                        \
      "%40, %41, %42, %43, %44, %45, %46, %47, "                                        \
      "%48, %49, %50, %51, %52, %53, %54, %55, "                                        \
      "%56, %57, %58, %59, %60, %61, %62, %63, "                                        \
      "%64, %65, %66, %67, %68, %69, %70, %71, "                                        \
      "%72, %73, %74, %75, %76, %77, %78, %79, "                                        \
      "%80, %81, %82, %83, %84, %85, %86, %87, "                                        \
      "%88, %89, %90, %91, %92, %93, %94, %95, "                                        \
      "%96, %97, %98, %99, %100, %101, %102, %103, "                                    \
      "%104, %105, %106, %107, %108, %109, %110, %111, "                                \
      "%112, %113, %114, %115, %116, %117, %118, %119, "                                \
      "%120, %121, %122, %123, %124, %125, %126, %127}, "                               \
      "%128, %129, p, 1, 1, 0, 0;\n\t}"                                                 \
      : VQEDGE_8_SUMS(0), VQEDGE_8_SUMS(8), VQEDGE_8_SUMS(16), VQEDGE_8_SUMS(24)        \
      : "l"(a), "l"(b), "r"(add ? 1 : 0))

// sums[64, 256] += a[64, 16] b[256, 16]^T, or = if not `add`, by four warps that all come here.
// Warp w of them has rows 16 w to 16 w + 15, its sums as those of 32 calls of `multiply`.
__device__ inline void multiply_group(
    float (&sums)[kGroupSums][4], GroupMatrix a, GroupMatrix b, bool add, __half /* type */) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  VQEDGE_GROUP_PRODUCT("f16");
#endif
}

__device__ inline void multiply_group(
    float (&sums)[kGroupSums][4], GroupMatrix a, GroupMatrix b, bool add,
    __nv_bfloat16 /* type */) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  VQEDGE_GROUP_PRODUCT("bf16");
#endif
}

#undef VQEDGE_GROUP_PRODUCT
#undef VQEDGE_8_SUMS
#undef VQEDGE_SUMS

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
