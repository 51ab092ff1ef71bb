// The kernel of packed_attention.h (see each_isa.inl).
//
// One head of one sequence at a time, queries in blocks of two registers. The block's queries lie transposed, so that a
// score tile is a product of query registers and single key entries, as in a matrix product, and maximum and sum of the
// softmax are per lane. Biases cost nothing: that of the keys moves all scores of a query alike, and as weights sum to 1
// that of the values is added to the result. Scores are in units of log 2, from the scale of the queries on.
#include "lanes.inl"

// Rows of a score tile and of a tile of results: what keeps two registers a row in the register file.
constexpr int kKeyTile = ANCE_LANES == 16 ? 12 : 6;
constexpr int kQueryTile = ANCE_LANES == 16 ? 8 : 4;

// Swaps the odd blocks of `Size` lanes of a with the even ones of b.
template <int Size, int... I>
ANCE_TARGET static inline void swap_blocks(Lanes& a, Lanes& b, std::integer_sequence<int, I...>) {
  const Lanes low = __builtin_shufflevector(a, b, ((I & Size) ? kLanes + I - Size : I)...);
  const Lanes high = __builtin_shufflevector(a, b, ((I & Size) ? kLanes + I : I + Size)...);
  a = low;
  b = high;
}

// Transposes a square of kLanes x kLanes.
template <int Size = kLanes / 2>
ANCE_TARGET static inline void transpose(Lanes* rows) {
  if constexpr (Size > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (!(i & Size)) swap_blocks<Size>(rows[i], rows[i + Size], std::make_integer_sequence<int, kLanes>());
    }
    transpose<Size / 2>(rows);
  }
}

// `count` queries at `rows`, biased and scaled, to panel [dim, stride]; lanes from `count` to kLanes become 0.
ANCE_TARGET static inline void load_queries(const float* rows, int64_t row_stride, const float* bias, float scale,
                                            int64_t dim, int64_t count, float* panel, int64_t stride) {
  for (int64_t d = 0; d < dim; d += kLanes) {
    const Lanes shift = load(bias + d);
    Lanes square[kLanes];
    if (count >= kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = (load(rows + i * row_stride + d) + shift) * scale;
    } else {
      for (int i = 0; i < kLanes; ++i) {
        square[i] = i < count ? (load(rows + i * row_stride + d) + shift) * scale : Lanes{};
      }
    }
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(panel + (d + i) * stride, square[i]);
  }
}

// scores [Keys, Registers * kLanes] = keys [Keys, dim] x panel [dim, Registers * kLanes]; `top` follows their maximum.
template <int Keys, int Registers>
ANCE_TARGET static inline void score_tile(const float* keys, const float* panel, int64_t dim, float* scores,
                                          Lanes* top) {
  Lanes sums[Keys][Registers] = {};
  for (int64_t d = 0; d < dim; ++d) {
    Lanes q[Registers];
#pragma GCC unroll 2
    for (int r = 0; r < Registers; ++r) q[r] = load(panel + (d * Registers + r) * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Keys; ++i) {
      const float key = keys[i * dim + d];
#pragma GCC unroll 2
      for (int r = 0; r < Registers; ++r) sums[i][r] += key * q[r];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Keys; ++i) {
#pragma GCC unroll 2
    for (int r = 0; r < Registers; ++r) {
      store(scores + (i * Registers + r) * kLanes, sums[i][r]);
      top[r] = top[r] < sums[i][r] ? sums[i][r] : top[r];
    }
  }
}

// out [rows, Registers * kLanes] = (weights [length, stride] transposed x values [length, dim]) * inverse + bias, for
// the first `rows` of kQueryTile queries.
template <int Registers>
ANCE_TARGET static inline void value_tile(const float* weights, int64_t stride, const float* values, int64_t dim,
                                          int64_t length, const float* inverse, const float* bias, int64_t rows,
                                          float* out, int64_t out_stride) {
  Lanes sums[kQueryTile][Registers] = {};
  for (int64_t k = 0; k < length; ++k) {
    Lanes v[Registers];
#pragma GCC unroll 2
    for (int r = 0; r < Registers; ++r) v[r] = load(values + k * dim + r * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kQueryTile; ++i) {
      const float weight = weights[k * stride + i];
#pragma GCC unroll 2
      for (int r = 0; r < Registers; ++r) sums[i][r] += weight * v[r];
    }
  }
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int r = 0; r < Registers; ++r) {
      store(out + i * out_stride + r * kLanes, sums[i][r] * inverse[i] + load(bias + r * kLanes));
    }
  }
}

struct AttentionRoom {
  float* keys;    // [length, dim]
  float* values;  // [length, dim]
  float* panel;   // [dim, 2 * kLanes]
  float* scores;  // [length, 2 * kLanes]
};

// `count` queries, at most Registers * kLanes, of the head whose first entry of a row is `column`.
template <int Registers>
ANCE_TARGET static inline void attend_block(const PackedAttention& p, int64_t first, int64_t count, int64_t length,
                                            int64_t column, const AttentionRoom& room) {
  constexpr int kStride = Registers * kLanes;
  const int64_t dim = p.head_dim, width = p.heads * dim;
  const float* queries = p.qkv + first * 3 * width + column;
  const float scale = p.scale * 1.4426950408889634f;
  for (int r = 0; r < Registers; ++r) {
    const int64_t begin = r * kLanes;
    load_queries(queries + begin * 3 * width, 3 * width, p.bias + column, scale, dim, count - begin,
                 room.panel + begin, kStride);
  }
  Lanes top[Registers], sums[Registers];
  for (int r = 0; r < Registers; ++r) {
    top[r] = Lanes{} - __builtin_inff();
    sums[r] = Lanes{};
  }
  if (length >= kKeyTile) {
    // The last tile begins early rather than small: scores computed twice come out the same.
    for (int64_t k = 0; k < length; k += kKeyTile) {
      const int64_t key = k + kKeyTile <= length ? k : length - kKeyTile;
      score_tile<kKeyTile, Registers>(room.keys + key * dim, room.panel, dim, room.scores + key * kStride, top);
    }
  } else {
    for (int64_t k = 0; k < length; ++k) {
      score_tile<1, Registers>(room.keys + k * dim, room.panel, dim, room.scores + k * kStride, top);
    }
  }
  for (int64_t k = 0; k < length; ++k) {
#pragma GCC unroll 2
    for (int r = 0; r < Registers; ++r) {
      float* score = room.scores + k * kStride + r * kLanes;
      const Lanes weight = exp2_lanes(load(score) - top[r]);
      store(score, weight);
      sums[r] += weight;
    }
  }
  float inverse[kStride];
  for (int r = 0; r < Registers; ++r) store(inverse + r * kLanes, 1.0f / sums[r]);
  const float* bias = p.bias + 2 * width + column;
  for (int64_t i = 0; i < count; i += kQueryTile) {
    const int64_t rows = count - i < kQueryTile ? count - i : kQueryTile;
    float* out = p.out + (first + i) * width + column;
    int64_t d = 0;
    for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
      value_tile<2>(room.scores + i, kStride, room.values + d, dim, length, inverse + i, bias + d, rows, out + d, width);
    }
    for (; d < dim; d += kLanes) {
      value_tile<1>(room.scores + i, kStride, room.values + d, dim, length, inverse + i, bias + d, rows, out + d, width);
    }
  }
}

// One head of the sequence of `length` tokens from `begin`. Scratch: 2 dim length + 2 kLanes (dim + length) floats.
ANCE_TARGET static void attend(const PackedAttention& p, int64_t begin, int64_t length, int64_t head, float* scratch) {
  const int64_t dim = p.head_dim, width = p.heads * dim, column = head * dim;
  AttentionRoom room;
  room.panel = scratch;
  room.keys = room.panel + 2 * kLanes * dim;
  room.values = room.keys + length * dim;
  room.scores = room.values + length * dim;
  for (int64_t k = 0; k < length; ++k) {
    const float* row = p.qkv + (begin + k) * 3 * width + column;
    for (int64_t d = 0; d < dim; d += kLanes) {
      store(room.keys + k * dim + d, load(row + width + d));
      store(room.values + k * dim + d, load(row + 2 * width + d));
      // The next head lies beside this one in rows too far apart for the hardware to foresee.
      __builtin_prefetch(row + dim + d, 0, 2);
      __builtin_prefetch(row + width + dim + d, 0, 2);
      __builtin_prefetch(row + 2 * width + dim + d, 0, 2);
    }
  }
  int64_t i = 0;
  for (; length - i > kLanes; i += 2 * kLanes) {
    const int64_t left = length - i;
    attend_block<2>(p, begin + i, left < 2 * kLanes ? left : 2 * kLanes, length, column, room);
  }
  if (i < length) attend_block<1>(p, begin + i, length - i, length, column, room);
}
