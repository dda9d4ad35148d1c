// α-entmax over the pairs of each row, and attention with such weights: a weight is v^(1/(α-1)) of
// v = 1 + (α-1)(score - largest - λ) where that is above 0, else 0. A row's scores are kept until λ
// is found, which makes its weights sum to 1; whoever knows the largest score and λ makes the same
// weights again. A row of more than CHUNK pairs is scored in parts, and summed in parts.
#pragma once
#include "segments.h"

namespace attn::VARIANT {

// As many numbers as a register holds: of double precision, or of single where that is enough.
template <class N>
using Lot = Vec<N, WIDEST<N>>;

template <class T, class N>
INLINE Lot<N> take(const T* x) {
  return __builtin_convertvector(load<T, WIDEST<N>>(x), Lot<N>);
}
template <class T, class N>
INLINE void give(Lot<N> x, T* to) {
  store<T, WIDEST<N>>(to, __builtin_convertvector(x, Vec<T, WIDEST<N>>));
}

// Numbers of one head in several lanes, joined by f in all of them.
template <class N, int S = WIDEST<N> / 2, class F>
INLINE Lot<N> join(Lot<N> x, int lanes, F f) {
  if constexpr (S > 0) {
    if (lanes <= S) {
      x = f(x, rotate<N, WIDEST<N>, S>(x, std::make_integer_sequence<int, WIDEST<N>>()));
    }
    return join<N, S / 2>(x, lanes, f);
  } else {
    return x;
  }
}
template <class N>
INLINE Lot<N> sum_of(Lot<N> x, int lanes) {
  return join<N>(x, lanes, [](Lot<N> a, Lot<N> b) { return a + b; });
}
template <class N>
INLINE Lot<N> largest_of(Lot<N> x, int lanes) {
  return join<N>(x, lanes, [](Lot<N> a, Lot<N> b) { return a > b ? a : b; });
}

// The natural logarithm of x > 0, given x - 1 to its last digits.
template <class N>
INLINE Lot<N> log(Lot<N> x, Lot<N> less_one) {
  using I = typename VecOf<N, WIDEST<N>>::ints;
  constexpr bool single = sizeof(N) == 4;
  constexpr int digits = single ? 23 : 52, last = single ? 9 : 21;
  constexpr auto root = typename IntOf<N>::type(single ? 0x3f3504f3 : 0x3fe6a09e667f3bcd);  // √½
  const I n = ((I)x - root) >> digits;  // x = m · 2^n with m in [√½, √2)
  const Lot<N> r = n == 0 ? less_one : (Lot<N>)((I)x - (n << digits)) - N(1);
  const Lot<N> s = r / (N(2) + r), z = s * s;  // log(1 + r) = 2 (s + s³/3 + s⁵/5 + …)
  Lot<N> p = {};
  for (int k = last; k > 1; k -= 2) p = p * z + N(1.0 / k);
  return __builtin_convertvector(n, Lot<N>) * N(0.69314718055994530942) + N(2) * (s + s * z * p);
}

// What x = (α-1)(score - largest - λ) is worth, and u = weight^(2-α), its derivative by the score.
template <Power P, class N>
INLINE void weigh(Lot<N> x, N exponent, Lot<N>& weight, Lot<N>& slope) {
  const Lot<N> v = N(1) + x, none = {};
  if constexpr (P == ZERO) {
    weight = v;
    slope = none + N(1);
  } else if constexpr (P == ROOT) {
    weight = v * v;
    slope = v;
  } else {
    const Lot<N> inside = v > N(0) ? v : none + N(1);  // the bits of others are no logarithm's
    weight = exp<N, WIDEST<N>>(exponent * log<N>(inside, x));
    slope = weight / v;
  }
  weight = v > N(0) ? weight : none;
  slope = v > N(0) ? slope : none;
}

// How far λ is to be moved where the weights sum to `total` and fall by `slopes`: Newton's step for
// total^(α-1), which is nearly linear in λ, wherefore few steps do.
template <Power P, class N>
INLINE Lot<N> step_of(Lot<N> total, Lot<N> slopes, N less_one) {
  if constexpr (P == ZERO) return (total - N(1)) / slopes;
  if constexpr (P == ROOT) {
    Lot<N> root;
    for (int i = 0; i < WIDEST<N>; i++) root[i] = N(__builtin_sqrt(total[i]));
    return N(2) * (total - root) / slopes;
  }
  const Lot<N> y = less_one * log<N>(total, total - N(1)), size = y < N(0) ? -y : y;
  const Lot<N> near = y * (N(1) - y * (N(0.5) - y * N(1.0 / 6)));  // 1 - e^-y, where that cancels
  const Lot<N> part = size < N(1e-3) ? near : N(1) - exp<N, WIDEST<N>>(-y);
  return part / less_one * (total / slopes);
}

// A λ at which n weights sum to 1 at most.
template <Power P>
INLINE double highest(double less_one, int64_t n) {
  if constexpr (P == ZERO) return 1;
  if constexpr (P == ROOT) return 2;
  return -__builtin_expm1(-less_one * __builtin_log(double(n))) / less_one;
}

// Numbers of heads are repeated until whole vectors are full: how many that are.
template <class N>
INLINE int period_of(int lanes) {
  return lanes > WIDEST<N> ? lanes : WIDEST<N>;
}

// The largest of the scores of each head, -inf without any; λ is 0 to begin with, but NaN where a
// score is NaN or +inf.
template <class T>
void find_largest(const Problem<T>& p, const T* scores, int64_t n, double* largest,
                  double* lambda) {
  using V = Lot<T>;
  const int step = period_of<T>(p.lanes);
  const V none = {}, infinite = none + infinity(T());
  for (int at = 0; at < step; at += WIDEST<T>) {
    V most = -infinite, odd = {};
    for (int64_t i = at; i < n * p.lanes; i += step) {
      const V x = load<T, WIDEST<T>>(scores + i);
      most = x > most ? x : most;
      odd = x < infinite ? odd : none + T(1);
    }
    odd = largest_of<T>(odd, p.lanes);
    give<double, T>(largest_of<T>(most, p.lanes), largest + at);
    give<double, T>(odd > T(0) ? none / none : none, lambda + at);
  }
}

// Moves λ until the weights of each head sum to 1, or its step is below `tolerance`. What is found of
// a head depends on no other.
template <class T, class N, Power P>
void find_threshold(const Problem<T>& p, const T* scores, int64_t n, const double* largest,
                    double* lambda, N tolerance) {
  using V = Lot<N>;
  const N less_one = N(p.alpha - 1), exponent = N(1 / (p.alpha - 1)), infinite = infinity(N());
  const int step = period_of<N>(p.lanes);
  const V none = {}, ones = none + N(1);
  for (int at = 0; at < step; at += WIDEST<N>) {
    const V most = take<double, N>(largest + at);
    V lam = take<double, N>(lambda + at), low = {}, before = {};
    V high = none + N(highest<P>(p.alpha - 1, n)), done = most > -infinite && lam == lam ? none : ones;
    for (int turn = 0; turn < 200 && largest_of<N>(ones - done, 1)[0] > 0; turn++) {
      V total = {}, slopes = {};
      for (int64_t i = at; i < n * p.lanes; i += step) {
        V weight, slope;
        weigh<P, N>(less_one * ((take<T, N>(scores + i) - most) - lam), exponent, weight, slope);
        total += weight;
        slopes += slope;
      }
      total = sum_of<N>(total, p.lanes);
      slopes = sum_of<N>(slopes, p.lanes);
      low = total >= N(1) ? lam : low;
      high = total >= N(1) ? high : lam;
      const V middle = N(0.5) * (low + high), newton = lam + step_of<P, N>(total, slopes, less_one);
      // Few rows ask for so many turns; they get to an end by halving what λ lies in
      const bool halve = turn > 16 && turn % 2;
      V next = (newton >= low) & (newton <= high) ? newton : middle;
      if (halve) next = middle;
      const V moved = next > lam ? next - lam : lam - next;
      lam = done > N(0) ? lam : next;
      done = moved <= tolerance * (N(1) + lam) ? ones : done;
      // Sparsemax is exact where the support is the same again
      if (P == ZERO && !halve) done = slopes == before ? ones : done;
      before = slopes;
    }
    give<double, N>(lam, lambda + at);
  }
}

// Both of them. Where powers are taken, single precision looks for λ first; the last step is always
// in double, after which what is left is that step squared.
template <class T, Power P>
void find_threshold(const Problem<T>& p, const T* scores, int64_t n, double* largest,
                    double* lambda) {
  find_largest(p, scores, n, largest, lambda);
  constexpr bool rough = P == OTHER && sizeof(T) == 4;
  if constexpr (rough) find_threshold<T, float, P>(p, scores, n, largest, lambda, 1e-3f);
  const double tolerance = rough ? 1e-5 : P == ZERO ? 4e-16 : 1e-10;
  find_threshold<T, double, P>(p, scores, n, largest, lambda, tolerance);
  for (int h = 0; h < period_of<T>(p.lanes); h++) {  // vectors of T hold more than those of double
    lambda[h] = lambda[h % p.lanes];
    if (largest[h] == -infinity(double())) largest[h] = 0;
  }
}

// The weights of n pairs in place of their scores; and their slopes, if these are asked for.
template <class T, class N, Power P>
void make_weights(const Problem<T>& p, T* scores, int64_t n, const double* largest,
                  const double* lambda, T* slopes) {
  using V = Lot<N>;
  const N less_one = N(p.alpha - 1), exponent = N(1 / (p.alpha - 1));
  const int step = period_of<N>(p.lanes);
  for (int at = 0; at < step; at += WIDEST<N>) {
    const V most = take<double, N>(largest + at), lam = take<double, N>(lambda + at);
    V rest;  // of λ, which single precision rounds off: to all weights alike
    for (int i = 0; i < WIDEST<N>; i++) rest[i] = N(lambda[at + i] - double(lam[i]));
    for (int64_t i = at; i < n * p.lanes; i += step) {
      V weight, slope;
      const V below = (take<T, N>(scores + i) - most) - lam - rest;
      weigh<P, N>(less_one * below, exponent, weight, slope);
      give<T, N>(weight + lam * N(0), scores + i);  // NaN of a row, at all its pairs
      if (slopes) give<T, N>(slope + lam * N(0), slopes + i);
    }
  }
}

// What a row is kept in: [pair, lane] each, with room for a vector behind the last pair.
template <class T>
struct Kept {
  T *weights, *slopes, *grads;  // first scores; slopes, later gradients of logits; those of weights
  double *largest, *lambda;

  Kept(const Problem<T>& p, const Scratch<T>& s, int64_t begin, int64_t end) {
    const bool whole = end - begin <= CHUNK;
    const int64_t room = whole ? p.room : p.long_room;
    // Long rows begin CHUNK pairs apart at least
    weights = whole ? s.row : p.long_rows + begin * p.lanes + begin / CHUNK * 16;
    slopes = weights + room;
    grads = slopes + room;
    largest = s.thresholds;
    lambda = largest + (p.lanes > 16 ? p.lanes : 16);
  }
  // The same of pairs that begin so many numbers later.
  void forward(int64_t numbers) {
    weights += numbers;
    slopes += numbers;
    grads += numbers;
  }
};

template <class T>
INLINE Kept<T> kept_of(const Problem<T>& p, int64_t row, Scratch<T>& s) {
  return Kept<T>(p, s, p.by_query.pointer[row], p.by_query.pointer[row + 1]);
}

template <class T>
INLINE void find_threshold(const Problem<T>& p, int64_t row, const Kept<T>& kept, int64_t n) {
  switch (p.power) {
    case ZERO: find_threshold<T, ZERO>(p, kept.weights, n, kept.largest, kept.lambda); break;
    case ROOT: find_threshold<T, ROOT>(p, kept.weights, n, kept.largest, kept.lambda); break;
    default: find_threshold<T, OTHER>(p, kept.weights, n, kept.largest, kept.lambda);
  }
  if (!p.thresholds) return;
  copy_heads(kept.largest, p.heads, p.thresholds[row]);
  copy_heads(kept.lambda, p.heads, p.thresholds[row] + p.heads);
}

// The threshold that was found of a row.
template <class T>
INLINE void take_threshold(const Problem<T>& p, int64_t row, const Kept<T>& kept) {
  for (int i = 0; i < period(p); i += p.lanes) {
    copy_heads(p.thresholds[row], p.heads, kept.largest + i);
    copy_heads(p.thresholds[row] + p.heads, p.heads, kept.lambda + i);
  }
}

template <class T>
INLINE void make_weights(const Problem<T>& p, const Kept<T>& kept, int64_t n, T* slopes) {
  T* const scores = kept.weights;
  switch (p.power) {
    case ZERO: make_weights<T, double, ZERO>(p, scores, n, kept.largest, kept.lambda, slopes); break;
    case ROOT: make_weights<T, T, ROOT>(p, scores, n, kept.largest, kept.lambda, slopes); break;
    default: make_weights<T, T, OTHER>(p, scores, n, kept.largest, kept.lambda, slopes);
  }
}

// The scores of the pairs [begin, end) of a row: given ones, or those of queries and keys.
template <class T>
void keep_scores(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                 int64_t end, Scratch<T>& s, T* to) {
  Row keys[ROWS];
  if (!p.given && f.score_numbers) repeat(p, p.query.full(row), s.fixed);
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    if (p.given) {
      read_block(p, at, n, s);
    } else {
      score_pairs(p, f, at, n, p.query.full(row), s, keys, s.logits);
    }
    for (int i = 0; i < n * p.lanes; i++) to[(at - begin) * p.lanes + i] = s.logits[i];
  }
}

// Which pairs of a block count: where rows are numbers, those whose own are all 0 may be left out.
template <class T, class At>
INLINE int pick(const Problem<T>& p, int n, int64_t size, At at, int* which) {
  int count = 0;
  for (int e = 0; e < n; e++) {
    bool some = !p.skips;
    const T* numbers = at(e);
    for (int64_t i = 0; i < size; i++) some |= numbers[i] != T(0);
    which[count] = e;
    count += some;
  }
  return count;
}

// The rows that count come to the front; of those of later pairs, the rest are asked for at once.
template <class T>
INLINE void pick_rows(const int* which, int count, int n, int64_t size, Row* rows,
                      const Row* later) {
  if (count == n) return;
  for (int i = 0; i < count; i++) rows[i] = rows[which[i]];
  for (int i = count; i < count + 4; i++) rows[i] = rows[0];
  if (later) prefetch_rows(later + count, n - count, size * int64_t(sizeof(T)));
}

template <class T>
INLINE void pick_numbers(const int* which, int count, int n, int lanes, T* numbers) {
  if (count == n) return;
  for (int i = 0; i < count; i++) {
    for (int h = 0; h < lanes; h++) numbers[i * lanes + h] = numbers[which[i] * lanes + h];
  }
}

// output = Σ_e weight_e value_e over the pairs [begin, end).
template <class T>
void sum_values(const Problem<T>& p, const Functions<T>& f, int64_t begin, int64_t end,
                Scratch<T>& s, const T* weights, T* output) {
  const int64_t size = int64_t(p.heads) * p.value_width;
  const int lanes = p.lanes;
  Row values[ROWS], next[ROWS];
  const Row* later = nullptr;
  int which[BLOCK];
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    const T* here = weights + (at - begin) * lanes;
    find_rows(p.value, p.pair_value, p, p.by_query, at, n, size, s.made_value, values);
    if (!is_shared(p)) later = find_next(p, p.value, p.by_query, at, n, next);
    const int count = pick(p, n, p.heads, [&](int e) { return here + e * lanes; }, which);
    if (p.drops || count < n) {
      for (int i = 0; i < n * lanes; i++) s.weights[i] = here[i];
      here = s.weights;
    }
    if (p.drops) {
      draw(p, p.by_query, at, n, s.keep);
      for (int i = 0; i < n * lanes; i++) s.weights[i] *= s.keep[i];
    }
    pick_numbers(which, count, n, lanes, s.weights);
    pick_rows<T>(which, count, n, size, values, later);
    f.gather_value(p, values, later, count, here, at == begin ? nullptr : s.ones, p.value_width,
                   output);
  }
}

template <class T>
void entmax_sums(const Problem<T>& p, const Functions<T>& f, int64_t begin, int64_t end,
                 Scratch<T>& s, const Kept<T>& kept, T* output) {
  make_weights(p, kept, end - begin, static_cast<T*>(nullptr));
  if (!p.made) return sum_values(p, f, begin, end, s, kept.weights, output);
  for (int64_t e = begin; e < end; e++) {
    copy_heads(kept.weights + (e - begin) * p.lanes, p.heads, p.made[p.by_query.place[e]]);
  }
}

// No scores in what is left of the last vector.
template <class T>
INLINE void fill_behind(const Problem<T>& p, int64_t n, T* scores) {
  for (int64_t i = n * p.lanes; i % WIDEST<T>; i++) scores[i] = -infinity(T());
}

template <class T>
void entmax_row(const Problem<T>& p, const Functions<T>& f, int64_t row, Scratch<T>& s) {
  const int64_t begin = p.by_query.pointer[row], end = p.by_query.pointer[row + 1];
  T* output = p.made ? nullptr : p.output[row];
  if (begin == end) {
    for (int64_t c = 0; output && c < int64_t(p.heads) * p.value_width; c++) output[c] = 0;
    for (int h = 0; p.thresholds && h < 2 * p.heads; h++) p.thresholds[row][h] = 0;
    return;
  }
  const Kept<T> kept = kept_of(p, row, s);
  keep_scores(p, f, row, begin, end, s, kept.weights);
  fill_behind(p, end - begin, kept.weights);
  find_threshold(p, row, kept, end - begin);
  entmax_sums(p, f, begin, end, s, kept, output);
}

template <class T>
void entmax_score_part(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                       int64_t end, Scratch<T>& s) {
  const int64_t first = p.by_query.pointer[row];
  keep_scores(p, f, row, begin, end, s, kept_of(p, row, s).weights + (begin - first) * p.lanes);
}
template <class T>
void entmax_merge(const Problem<T>& p, int64_t row, Scratch<T>& s) {
  const Kept<T> kept = kept_of(p, row, s);
  const int64_t n = p.by_query.pointer[row + 1] - p.by_query.pointer[row];
  fill_behind(p, n, kept.weights);
  find_threshold(p, row, kept, n);
}
template <class T>
void entmax_sum_part(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                     int64_t end, Scratch<T>& s, T* partial) {
  Kept<T> kept = kept_of(p, row, s);
  take_threshold(p, row, kept);
  kept.forward((begin - p.by_query.pointer[row]) * p.lanes);
  entmax_sums(p, f, begin, end, s, kept, partial);
}

}  // namespace attn::VARIANT
