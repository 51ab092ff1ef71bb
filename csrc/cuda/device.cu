#include "cuda/device.h"

#include <cuda_runtime_api.h>

namespace ance_fast {

CudaInfo cuda_info() {
  CudaInfo info;
  cudaRuntimeGetVersion(&info.runtime_version);
  if (cudaDriverGetVersion(&info.driver_version) != cudaSuccess) info.driver_version = 0;
  const cudaError_t status = cudaGetDeviceCount(&info.device_count);
  if (status != cudaSuccess) {
    info.device_count = 0;
    info.error = cudaGetErrorString(status);
    cudaGetLastError();  // the error is reported here; it must not surface in an unrelated later call
  }
  return info;
}

}  // namespace ance_fast
