/* NearestCodebook on an NVIDIA GPU: the plain C entry point.
 *
 * Contract: vqedge/nearest_codebook.py. The call enqueues at most three kernels on one stream,
 * allocates nothing, never synchronises, and may be captured into a CUDA graph. The same inputs
 * give the same bits, whatever tiles are chosen for them.
 */
#ifndef VQEDGE_NEAREST_CODEBOOK_H
#define VQEDGE_NEAREST_CODEBOOK_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define VQEDGE_API __attribute__((visibility("default")))
#else
#define VQEDGE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum vqedge_dtype { VQEDGE_FLOAT32 = 0, VQEDGE_FLOAT16 = 1, VQEDGE_BFLOAT16 = 2 };
enum vqedge_metric { VQEDGE_L2 = 0, VQEDGE_DOT = 1, VQEDGE_COSINE = 2 };

/* Status: 0 is success, below zero is one of these, above zero is a cudaError_t. */
enum vqedge_status {
  VQEDGE_OK = 0,
  VQEDGE_BAD_SHAPE = -1,     /* n < 0, k < 1 or d < 1, or a size beyond what a grid can hold */
  VQEDGE_BAD_TYPE = -2,      /* unknown dtype or metric */
  VQEDGE_BAD_POINTER = -3,   /* null, or not aligned to one element */
  VQEDGE_BAD_WORKSPACE = -4, /* null, too small, or not aligned to 16 bytes */
};

/* Changes whenever a signature or an enumerator here does. */
#define VQEDGE_NEAREST_CODEBOOK_ABI 1
VQEDGE_API int32_t vqedge_nearest_codebook_abi(void);

/* Bytes of device memory that a call needs. Never shrinks as n or k grows; 0 for a bad shape. */
VQEDGE_API size_t vqedge_nearest_codebook_workspace(int64_t n, int64_t k);

/* indices[n], and margin[n] unless margin is null, for x[n, d] and codebook[k, d], row-major.
 *
 * All pointers are device memory. x and codebook need the alignment of one element; if both have 16
 * bytes and a row is a multiple of 16 bytes, the fast loads are used. stream is a cudaStream_t,
 * null for the default one.
 */
VQEDGE_API int32_t vqedge_nearest_codebook(void const* x, void const* codebook, int64_t n,
    int64_t k, int64_t d, int32_t dtype, int32_t metric, int32_t* indices, float* margin,
    void* workspace, size_t workspace_bytes, void* stream);

/* English for a status, never null. */
VQEDGE_API char const* vqedge_nearest_codebook_status(int32_t status);

#ifdef __cplusplus
}
#endif

#endif
