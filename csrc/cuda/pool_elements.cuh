// fp32, fp16 and bf16 elements in device memory: loads and stores of up to 16 bytes, converted from and to fp32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "cuda/pool_normalize.h"

namespace ance_fast {
namespace pool_cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline void from_float(float x, float* out) { *out = x; }
__device__ inline void from_float(float x, __half* out) { *out = __float2half_rn(x); }
__device__ inline void from_float(float x, __nv_bfloat16* out) { *out = __float2bfloat16_rn(x); }

template <int kBytes>
struct Raw;
template <>
struct Raw<2> {
  using Type = uint16_t;
};
template <>
struct Raw<4> {
  using Type = uint32_t;
};
template <>
struct Raw<8> {
  using Type = uint2;
};
template <>
struct Raw<16> {
  using Type = uint4;
};

template <typename T, int kWidth>
struct Pack {
  T values[kWidth];
};

// Through one register-sized type, so that it is one memory access.
template <int kWidth, typename T>
__device__ inline Pack<T, kWidth> load_pack(const T* from) {
  const auto raw = *reinterpret_cast<const typename Raw<sizeof(T) * kWidth>::Type*>(from);
  Pack<T, kWidth> pack;
  memcpy(&pack, &raw, sizeof(raw));
  return pack;
}

template <int kWidth, typename T>
__device__ inline void store_pack(const Pack<T, kWidth>& pack, T* to) {
  typename Raw<sizeof(T) * kWidth>::Type raw;
  memcpy(&raw, &pack, sizeof(raw));
  *reinterpret_cast<decltype(raw)*>(to) = raw;
}

__device__ inline float load_element(const void* base, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kFloat16: return to_float(static_cast<const __half*>(base)[i]);
    case DType::kBFloat16: return to_float(static_cast<const __nv_bfloat16*>(base)[i]);
    default: return static_cast<const float*>(base)[i];
  }
}

template <int kWidth, typename T>
__device__ inline void store_row_packs(const float* row, T* to, int64_t dim) {
  for (int64_t d = threadIdx.x * kWidth; d < dim; d += blockDim.x * kWidth) {
    Pack<T, kWidth> pack;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) from_float(row[d + i], &pack.values[i]);
    store_pack(pack, to + d);
  }
}

template <typename T>
__device__ inline void store_row_as(const float* row, T* to, int64_t dim) {
  constexpr int kWidth = 4;
  if (dim % kWidth == 0 && reinterpret_cast<uintptr_t>(to) % (kWidth * sizeof(T)) == 0) {
    store_row_packs<kWidth>(row, to, dim);
  } else {
    store_row_packs<1>(row, to, dim);
  }
}

// By the whole block; `row` must be visible to all its threads.
__device__ inline void store_row(const float* row, void* matrix, DType dtype, int64_t index, int64_t dim) {
  switch (dtype) {
    case DType::kFloat16: store_row_as(row, static_cast<__half*>(matrix) + index * dim, dim); break;
    case DType::kBFloat16: store_row_as(row, static_cast<__nv_bfloat16*>(matrix) + index * dim, dim); break;
    default: store_row_as(row, static_cast<float*>(matrix) + index * dim, dim); break;
  }
}

}  // namespace pool_cuda
}  // namespace ance_fast
