// Inner products of a few queries with many vectors, fp32 on the CPU: what a GEMM does badly.
//
// Every vector is read once for all queries: 2 n D FLOPs for D floats, so a handful of queries is limited by memory
// bandwidth, where BLAS, which first copies its operands into blocks, takes twice as long from two queries on. A
// product does not depend on where in the tile its vector stands, nor on the threads.
#pragma once

#include <cstdint>

#include "cpu_features.h"

namespace ance_fast {

struct FewProducts {
  const float* queries;  // [rows, dim]
  const float* vectors;  // [count, dim]
  int64_t rows, count, dim;
  float* scores;  // [rows, count]
};

void few_products(const FewProducts& args, Isa isa, int threads);

}  // namespace ance_fast
