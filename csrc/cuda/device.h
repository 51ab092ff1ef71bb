// What the CUDA part was built with and what it finds at run time.
#pragma once

#include <string>

namespace ance_fast {

struct CudaInfo {
  int runtime_version = 0;  // 1000 * major + 10 * minor
  int driver_version = 0;   // 0: no driver
  int device_count = 0;
  std::string error;        // empty, or why device_count is 0
};

// Never throws and never needs a driver.
CudaInfo cuda_info();

}  // namespace ance_fast
