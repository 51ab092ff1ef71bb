// Vectors of floats. Included once per instruction set, before the kernels, inside a namespace of its own; ANCE_TARGET is
// the function attribute that selects the set, ANCE_LANES the number of floats in one of its registers.

// One register: for comparisons and choices, which GCC does element by element in vectors wider than that.
constexpr int kLanes = ANCE_LANES;
typedef float Lanes __attribute__((vector_size(4 * ANCE_LANES), aligned(4), may_alias));
typedef int32_t IntLanes __attribute__((vector_size(4 * ANCE_LANES), aligned(4), may_alias));

ANCE_TARGET static inline Lanes load(const float* p) { return *reinterpret_cast<const Lanes*>(p); }
ANCE_TARGET static inline void store(float* p, Lanes v) { *reinterpret_cast<Lanes*>(p) = v; }

ANCE_TARGET static inline float sum_lanes(Lanes v) {
  float total = 0.0f;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

// Sixteen floats whatever the register: for sums and products, in the same order in every set.
typedef float Wide __attribute__((vector_size(64), aligned(4), may_alias));

ANCE_TARGET static inline Wide load_wide(const float* p) { return *reinterpret_cast<const Wide*>(p); }
ANCE_TARGET static inline void store_wide(float* p, Wide v) { *reinterpret_cast<Wide*>(p) = v; }

ANCE_TARGET static inline float sum_wide(Wide v) {
  float total = 0.0f;
  for (int i = 0; i < 16; ++i) total += v[i];
  return total;
}

// e^x for x <= 0: Cody-Waite reduction and a polynomial of degree 6; relative error below 2e-7. Below -87, where e^x
// would be subnormal, e^-87; NaN stays NaN.
ANCE_TARGET static inline Lanes exp_lanes(Lanes x) {
  const Lanes lowest = Lanes{} - 87.0f;
  x = x < lowest ? lowest : x;
  const Lanes magic = Lanes{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Lanes n = (x * 1.44269504088896341f + magic) - magic;
  const Lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Lanes p = Lanes{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const IntLanes exponent = (__builtin_convertvector(n, IntLanes) + 127) << 23;
  return p * reinterpret_cast<const Lanes&>(exponent);
}
