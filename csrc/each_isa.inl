// Compiles the kernels in the file ANCE_KERNELS once for each instruction set, in namespaces scalar, avx2 and avx512
// inside the one it is included in; ANCE_DISPATCH (cpu_features.h) calls the right one. For instance:
//
//   #define ANCE_KERNELS "few_products.inl"
//   #include "each_isa.inl"
//
// For the kernels ANCE_TARGET is the function attribute that selects the set and ANCE_LANES the number of floats in one
// of its registers; all three names are undefined again at the end. What the kernels share whatever the set, such as
// the structs of their arguments, is declared before.
//
// Why text is included and not a template instantiated: a target attribute cannot depend on a template's parameter and
// does not pass on to the functions that a function calls. Each of them has to stand under the attribute of each set
// itself, so kernels call functions of their own file, of lanes.inl and builtins only: one of the standard library
// would be compiled for the portable set. Files compiled with -mavx512f instead would compile it for that set, and the
// linker could keep that copy for all machines.
#ifndef ANCE_KERNELS
#error "each_isa.inl needs ANCE_KERNELS, the name of the file with the kernels"
#endif

namespace scalar {
#define ANCE_TARGET
#define ANCE_LANES 4
#include ANCE_KERNELS
#undef ANCE_LANES
#undef ANCE_TARGET
}  // namespace scalar

#if defined(__x86_64__)
namespace avx2 {
#define ANCE_TARGET __attribute__((target("avx2,fma")))
#define ANCE_LANES 8
#include ANCE_KERNELS
#undef ANCE_LANES
#undef ANCE_TARGET
}  // namespace avx2

namespace avx512 {
// The last word is for compilers and tunings that would vectorise loops in halves of these registers.
#define ANCE_TARGET __attribute__((target("avx512f,avx512dq,avx512vl,prefer-vector-width=512")))
#define ANCE_LANES 16
#include ANCE_KERNELS
#undef ANCE_LANES
#undef ANCE_TARGET
}  // namespace avx512
#endif

#undef ANCE_KERNELS
