// Vectors of floats, for kernels to include first (see each_isa.inl, which defines ANCE_TARGET and ANCE_LANES).

// One register: for comparisons and choices, which GCC does element by element in vectors wider than that.
constexpr int kLanes = ANCE_LANES;
typedef float Lanes __attribute__((vector_size(4 * ANCE_LANES), aligned(4), may_alias));
typedef int32_t IntLanes __attribute__((vector_size(4 * ANCE_LANES), aligned(4), may_alias));

ANCE_TARGET static inline Lanes load(const float* p) { return *reinterpret_cast<const Lanes*>(p); }
ANCE_TARGET static inline void store(float* p, Lanes v) { *reinterpret_cast<Lanes*>(p) = v; }

// By halves: a chain of one addition a lane takes longer than many a row of work.
ANCE_TARGET static inline float sum_lanes(Lanes v) {
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  }
  return v[0];
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

// 2^x for x <= 0: the nearest integer goes to the exponent, a polynomial of degree 5 does the rest; relative error below
// 2e-7. Below -126, where 2^x would be subnormal, 2^-126; NaN stays NaN.
ANCE_TARGET static inline Lanes exp2_lanes(Lanes x) {
  const Lanes lowest = Lanes{} - 126.0f;
  x = x < lowest ? lowest : x;
  const Lanes shifted = x + 12582912.0f;  // 1.5 * 2^23: the integer lies in the low bits
  const Lanes r = x - (shifted - 12582912.0f);
  Lanes p = r * 1.327647219e-3f + 9.675541616e-3f;
  p = p * r + 5.550713275e-2f;
  p = p * r + 2.402211972e-1f;
  p = p * r + 6.931469671e-1f;
  p = p * r + 1.0f;
  const IntLanes power = (reinterpret_cast<const IntLanes&>(shifted) << 23) + 0x3F800000;
  return p * reinterpret_cast<const Lanes&>(power);
}
