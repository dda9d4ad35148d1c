// A block of at most 32 neighbouring pairs of one row: where its vectors lie, what dropout keeps.
#pragma once
#include "score.h"

namespace attn::VARIANT {

constexpr int ROWS = BLOCK + 4;
constexpr int AHEAD = 64;  // pairs between a row's use and its being asked for

template <class T>
struct Scratch;

// The functions that suit the widths and the score.
template <class T>
struct Functions {
  void (*score)(const Problem<T>&, const Row*, const Row*, int, const T*, int, T*);
  void (*dot)(const Problem<T>&, const Row*, const Row*, int, const T*, int, T*);
  void (*dot_output)(const Problem<T>&, const Row*, const Row*, int, const T*, int, T*);
  void (*gather_key)(const Problem<T>&, const Row*, const Row*, int, const T*, const T*, int, T*);
  void (*gather_value)(const Problem<T>&, const Row*, const Row*, int, const T*, const T*, int, T*);
  void (*score_gradient)(const Problem<T>&, const Row*, const Row*, int, const T*, const T*, T*, T*,
                         uint8_t*);
  void (*sum_signs)(const Problem<T>&, const uint8_t* const*, int, const T*, T*);
  void (*pair_gradient)(const Problem<T>&, const T*, const T*, const T*, T*);
  // For rows of single numbers
  void (*score_numbers)(const Problem<T>&, const Row*, int, const T*, const T*, T*, T*);
  void (*number_gradient)(const Problem<T>&, int, const T*, const T*, T*, T*);
  void (*normalise)(const Problem<T>&, int, Scratch<T>&, bool);
};

// Calls f with what rows are kept as, the vector length and, if there is special code for it, the
// width, as constants.
template <class T, class S, class F>
auto with_width(int width, F f) {
  constexpr int M = WIDEST<T>, M8 = M < 8 ? M : 8;
  switch (width) {
    case 4: return f.template operator()<S, 4, 4>();
    case 8: return f.template operator()<S, M8, 8>();
    case 16: return f.template operator()<S, M, 16>();
    case 32: return f.template operator()<S, M, 32>();
  }
  if (width % M == 0) return f.template operator()<S, M, 0>();
  if (width % M8 == 0) return f.template operator()<S, M8, 0>();
  return f.template operator()<S, 4, 0>();
}
template <class T, class F>
auto with_rows(Stored stored, int width, F f) {
  if constexpr (sizeof(T) == 4) {
    if (stored == BFLOAT16) return with_width<T, BFloat16>(width, f);
    if (stored == FLOAT16) return with_width<T, Float16>(width, f);
  }
  return with_width<T, T>(width, f);
}

template <class T, Kind K>
struct ChooseScore {
  template <class S, int W, int D>
  auto operator()() const { return &score<T, S, W, D, K>; }
};
template <class T>
struct ChooseGather {
  template <class S, int W, int D>
  auto operator()() const { return &gather<T, S, W, D>; }
};
template <class T, Kind K>
struct ChooseGradient {
  template <class S, int W, int D>
  auto operator()() const { return &score_gradient<T, S, W, D, K>; }
};
template <class T>
struct ChooseSigns {
  template <class S, int W, int D>
  auto operator()() const { return &sum_signs<T, W, D>; }
};
template <class T, Kind K>
struct ChoosePair {
  template <class S, int W, int D>
  auto operator()() const { return &pair_gradient<T, W, K>; }
};

template <class T, Kind K>
void choose_score(const Problem<T>& p, Stored stored, Functions<T>& f) {
  if constexpr (K != DOT) {
    f.score_gradient = with_rows<T>(stored, p.width, ChooseGradient<T, K>());
    if (p.width == 1) {
      f.score_numbers = &score_numbers<T, K>;
      f.number_gradient = &number_gradient<T, K>;
      return;
    }
  }
  f.score = with_rows<T>(stored, p.width, ChooseScore<T, K>());
  f.pair_gradient = with_width<T, T>(p.width, ChoosePair<T, K>());
}

// Rows are those of keys and values, or, by key, those of queries and of gradients of the output.
template <class T>
Functions<T> choose(const Problem<T>& p, bool by_key) {
  Functions<T> f = {};
  const Stored key = by_key ? p.query.stored : p.key.stored;
  const Stored value = by_key ? p.grad_output.stored : p.value.stored;
  switch (p.kind) {
    case DOT: choose_score<T, DOT>(p, key, f); break;
    case LEAKY_RELU: choose_score<T, LEAKY_RELU>(p, key, f); break;
    case TANH: choose_score<T, TANH>(p, key, f); break;
  }
  if (p.signs) f.sum_signs = with_width<T, T>(p.width, ChooseSigns<T>());
  f.dot = with_rows<T>(value, p.value_width, ChooseScore<T, DOT>());
  f.dot_output = with_width<T, T>(p.value_width, ChooseScore<T, DOT>());
  f.gather_key = with_rows<T>(key, p.width, ChooseGather<T>());
  f.gather_value = with_rows<T>(value, p.value_width, ChooseGather<T>());
  return f;
}

// A thread's own memory. Numbers of a block are [pair, lane]; those of a row are repeated.
template <class T>
struct Scratch {
  T *logits, *weights, *grads, *keep, *x, *means, *rests, *scales;  // of a block
  T *largest, *total, *scale, *mean, *rest, *fixed, *vector, *ones;  // of a row
  T *row_key, *row_value, *zeros, *made_key, *made_value;
  T *fixed_key, *fixed_value;  // of the shared end, where it is kept in 16 bits
  T* row;  // what entmax keeps of a whole row
  double* thresholds;

  Scratch(const Problem<T>& p, T* at) {
    const int64_t repeated = period(p), block = int64_t(BLOCK) * repeated;
    auto take = [&at](int64_t size) {
      T* start = at;
      for (; at < start + size; at++) *at = 0;
      return start;
    };
    for (T** one : {&logits, &weights, &grads, &keep, &x, &means, &rests, &scales}) *one = take(block);
    for (T** one : {&largest, &total, &scale, &mean, &rest, &fixed, &vector, &ones}) {
      *one = take(repeated);
    }
    for (int64_t i = 0; i < repeated; i++) ones[i] = 1;
    const int64_t size = int64_t(p.heads) * p.width;
    row_key = take(size);
    zeros = take(size);
    made_key = at;
    made_value = at + BLOCK * size;
    const int64_t value_size = int64_t(p.heads) * p.value_width;
    fixed_key = made_value + BLOCK * value_size;
    fixed_value = fixed_key + size;
    row_value = fixed_value + value_size;
    row = row_value + value_size;
    const auto behind = reinterpret_cast<uintptr_t>(row + 3 * p.room);
    thresholds = reinterpret_cast<double*>((behind + 7) / 8 * 8);
    if (p.vector && p.width == 1) repeat(p, p.vector, vector);
  }
};

// A row in the type that is computed in: made, where it is kept in 16 bits.
template <class T>
INLINE const T* widened(const AnyRows<const T>& rows, int64_t row, int64_t size, T* made) {
  if constexpr (sizeof(T) == 4) {
    const auto widen = [&](const auto* from) {
      for (int64_t c = 0; c < size; c += 4) store<T, 4>(made + c, load<T, 4>(from + c));
    };
    if (rows.stored == BFLOAT16) widen(as<BFloat16>(rows[row]));
    if (rows.stored == FLOAT16) widen(as<Float16>(rows[row]));
  }
  return rows.stored == FULL ? rows.full(row) : made;
}
// The reverse: where a row is summed up, which is beside it if it is kept in 16 bits, and how it gets
// there.
template <class T>
INLINE T* sums_of(const AnyRows<T>& rows, int64_t row, T* beside) {
  return !rows ? nullptr : rows.stored == FULL ? rows.full(row) : beside;
}
template <class T>
INLINE void put(const AnyRows<T>& rows, int64_t row, int64_t size, const T* sums) {
  if constexpr (sizeof(T) == 4) {
    const auto round = [&](auto* to) {
      for (int64_t c = 0; c < size; c += 4) store<T>(to + c, load<T, 4>(sums + c));
    };
    if (rows.stored == BFLOAT16) round(static_cast<BFloat16*>(rows[row]));
    if (rows.stored == FLOAT16) round(static_cast<Float16*>(rows[row]));
  }
}

// The rows of a block's other ends, and 4 more that may be read, for those who take 4 at a time;
// with `pair`, plus those of pairs, which are added to `first`, if there is one, before the rest.
template <class T>
INLINE void find_rows(const AnyRows<const T>& tokens, const Rows<const T>& pair, const Problem<T>& p,
                      const Graph& graph, int64_t begin, int n, int64_t size, T* made, Row* rows,
                      const T* first = nullptr) {
  for (int e = 0; e < n; e++) rows[e] = tokens[graph.other[begin + e]];
  if (pair) {
    for (int e = 0; e < n; e++) {
      const T *added = pair[graph.place[begin + e]], *row = as<T>(rows[e]);
      T* at = made + e * size;
      if (first) {
        for (int64_t c = 0; c < size; c++) at[c] = (first[c] + added[c]) + row[c];
      } else {
        for (int64_t c = 0; c < size; c++) at[c] = row[c] + added[c];
      }
      rows[e] = at;
    }
  }
  for (int e = n; e < n + 4; e++) rows[e] = rows[0];
}

// The rows of the pairs that come AHEAD later; null where all rows are near anyhow.
template <class T>
INLINE const Row* find_next(const Problem<T>& p, const AnyRows<const T>& tokens, const Graph& graph,
                            int64_t begin, int n, Row* next) {
  if (!p.far) return nullptr;
  const int64_t last = graph.pointer[graph.num] - 1;
  for (int e = 0; e < n + 4; e++) {
    const int64_t at = begin + e + AHEAD;
    next[e] = tokens[graph.other[at < last ? at : last]];
  }
  return next;
}
// Ask for whole rows of so many bytes.
INLINE void prefetch_rows(const Row* rows, int n, int64_t bytes) {
  for (int e = 0; e < n; e++) {
    for (int64_t c = 0; c < bytes; c += 64) __builtin_prefetch(as<char>(rows[e]) + c, 0, 2);
  }
}
// The same for rows of single numbers and the like, asked for at once.
template <class T>
INLINE void prefetch_next(const Problem<T>& p, const AnyRows<const T>& tokens, const Graph& graph,
                          int64_t begin, int n, int64_t size) {
  Row next[ROWS];
  if (find_next(p, tokens, graph, begin, n, next)) prefetch_rows(next, n, size * tokens.bytes());
}

// What numbers of a block there are, up to whole vectors: those behind the last pair become x.
template <class T>
INLINE int fill_rest(const Problem<T>& p, int n, T x, T* numbers) {
  constexpr int W = WIDEST<T>;
  const int end = n * p.lanes;
  if (end % W == 0) return end;
  store<T, W>(numbers + end, all<T, W>(x));  // lanes are fewer than W then: there is room
  return (end + W - 1) / W * W;
}

// Makes logits of products scaled ones, and adds the bias.
template <class T>
INLINE void add_bias(const Problem<T>& p, const Graph& graph, int64_t begin, int n, T* logits) {
  if (p.kind == DOT) {
    for (int i = 0; i < n * p.lanes; i++) logits[i] *= p.scale;
  }
  if (!p.bias) return;
  for (int e = 0; e < n; e++) {
    const T* bias = p.bias[graph.place[begin + e]];
    for (int h = 0; h < p.heads; h++) logits[e * p.lanes + h] += bias[h];
  }
}

// What dropout multiplies each weight with.
template <class T>
INLINE void draw(const Problem<T>& p, const Graph& graph, int64_t begin, int n, T* keep) {
  alignas(32) uint32_t low[BLOCK], high[BLOCK];
  for (int e = 0; e < n; e++) {
    const uint64_t id = p.id(graph.place[begin + e]);
    low[e] = uint32_t(id);
    high[e] = uint32_t(id >> 32);
  }
  Words states[BLOCK / WORDS];
  for (int i = 0; i * WORDS < n; i++) {
    const Words seed = p.dropout.seed_state - Words{};
    states[i] = absorb(absorb(seed, *reinterpret_cast<const Words*>(low + i * WORDS)),
                       *reinterpret_cast<const Words*>(high + i * WORDS));
  }
  const Words threshold = p.dropout.threshold - Words{}, count = {0, 1, 2, 3, 4, 5, 6, 7};
  const auto kept = [&](Words hash) {  // -1 becomes 1 / (1 - p)
    return __builtin_convertvector(hash >= threshold, Vec<T, WORDS>) * -T(p.dropout.keep_scale);
  };
  if (p.lanes < WORDS) {
    for (int h = 0; h < p.heads; h++) {
      for (int e = 0; e < n; e += WORDS) {
        const Vec<T, WORDS> x = kept(absorb(states[e / WORDS], uint32_t(h) - Words{}));
        if (p.lanes == 1) {
          store<T, WORDS>(keep + e, x);
          continue;
        }
        for (int u = 0; u < WORDS && e + u < n; u++) keep[(e + u) * p.lanes + h] = x[u];
      }
    }
    return;
  }
  for (int e = 0; e < n; e++) {
    const Words state = states[e / WORDS][e % WORDS] - Words{};
    for (int h = 0; h < p.lanes; h += WORDS) {
      store<T, WORDS>(keep + e * p.lanes + h, kept(absorb(state, count + uint32_t(h))));
    }
  }
}

}  // namespace attn::VARIANT
