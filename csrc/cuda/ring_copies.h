// DeviceCopies for CUDA: a copy stream for each device, and for each slot the events between it and the producers.
#pragma once

#include "../device_copies.h"

namespace ance_fast {

// Touches no device before the first call that needs one.
std::unique_ptr<DeviceCopies> cuda_copies(int64_t slots);

}  // namespace ance_fast
