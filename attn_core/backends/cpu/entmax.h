// α-entmax over the pairs of each row, and attention with such weights: a weight is v^(1/(α-1)) of
// v = 1 + (α-1)(score - largest - λ) where that is above 0, else 0. A row's scores are kept until λ
// is found, which makes its weights sum to 1; whoever knows the largest score and λ makes the same
// weights again. A row of more than CHUNK pairs is scored in parts, and summed in parts.
#pragma once
#include "segments.h"

namespace attn::VARIANT {

constexpr int WIDE = WIDEST<double>;
using Wide = Vec<double, WIDE>;

template <class T>
INLINE Wide widened(const T* x) {
  return __builtin_convertvector(load<T, WIDE>(x), Wide);
}
template <class T>
INLINE void store_narrow(T* to, Wide x) {
  store<T, WIDE>(to, __builtin_convertvector(x, Vec<T, WIDE>));
}

// Numbers of one head in several lanes, joined by f in all of them.
template <class F>
INLINE Wide join(Wide x, int lanes, F f) {
  constexpr auto order = std::make_integer_sequence<int, WIDE>();
  if constexpr (WIDE > 4) {
    if (lanes <= 4) x = f(x, rotate<double, WIDE, 4>(x, order));
  }
  if (lanes <= 2) x = f(x, rotate<double, WIDE, 2>(x, order));
  if (lanes <= 1) x = f(x, rotate<double, WIDE, 1>(x, order));
  return x;
}
INLINE Wide sum_of(Wide x, int lanes) {
  return join(x, lanes, [](Wide a, Wide b) { return a + b; });
}
INLINE Wide largest_of(Wide x, int lanes) {
  return join(x, lanes, [](Wide a, Wide b) { return a > b ? a : b; });
}
INLINE bool any_above_0(Wide x) { return largest_of(x, 1)[0] > 0; }

// The natural logarithm of x > 0, given x - 1 to its last digits.
INLINE Wide log(Wide x, Wide less_one) {
  using I = VecOf<double, WIDE>::ints;
  const I n = ((I)x - 0x3fe6a09e667f3bcd) >> 52;  // x = m · 2^n with m in [√½, √2)
  const Wide r = n == 0 ? less_one : (Wide)((I)x - (n << 52)) - 1.0;
  const Wide s = r / (2.0 + r), z = s * s;  // log(1 + r) = 2 (s + s³/3 + s⁵/5 + …)
  Wide p = {};
  for (int k = 21; k > 1; k -= 2) p = p * z + 1.0 / k;
  return __builtin_convertvector(n, Wide) * 0.69314718055994530942 + 2.0 * (s + s * z * p);
}

// What x = (α-1)(score - largest - λ) is worth, and u = weight^(2-α), its derivative by the score.
template <Power P>
INLINE void weigh(Wide x, double exponent, Wide& weight, Wide& slope) {
  const Wide v = 1.0 + x, none = {};
  if constexpr (P == ZERO) {
    weight = v;
    slope = none + 1.0;
  } else if constexpr (P == ROOT) {
    weight = v * v;
    slope = v;
  } else {
    weight = exp<double, WIDE>(exponent * log(v, x));
    slope = weight / v;
  }
  // Infinite where α < 1 and the score is -inf
  const auto inside = (v > 0.0) & (v < infinity(double()));
  weight = inside ? weight : none;
  slope = inside ? slope : none;
}

// How far λ is to be moved where the weights sum to `total` and fall by `slopes`: Newton's step for
// total^(α-1), which is nearly linear in λ, wherefore few steps do.
template <Power P>
INLINE Wide step_of(Wide total, Wide slopes, double less_one) {
  if constexpr (P == ZERO) return (total - 1.0) / slopes;
  if constexpr (P == ROOT) {
    Wide root;
    for (int i = 0; i < WIDE; i++) root[i] = __builtin_sqrt(total[i]);
    return 2.0 * (total - root) / slopes;
  }
  const Wide y = less_one * log(total, total - 1.0), size = y < 0.0 ? -y : y;
  const Wide near = y * (1.0 - y * (0.5 - y * (1.0 / 6)));  // 1 - e^-y, where that cancels
  const Wide part = size < 1e-3 ? near : 1.0 - exp<double, WIDE>(-y);
  return part / less_one * (total / slopes);
}

// A λ at which n weights sum to 1 at most.
template <Power P>
INLINE double highest(double less_one, int64_t n) {
  if constexpr (P == ZERO) return 1;
  if constexpr (P == ROOT) return 2;
  return -__builtin_expm1(-less_one * __builtin_log(double(n))) / less_one;
}

// Of the scores of a row, the largest (0 without any), and λ: NaN where a score is NaN or +inf. What
// is found of a head depends on no other.
template <class T, Power P>
void find_threshold(const Problem<T>& p, const T* scores, int64_t n, double* largest,
                    double* lambda) {
  const double less_one = p.alpha - 1, exponent = 1 / less_one, infinite = infinity(double());
  const int64_t end = n * p.lanes;
  const int step = p.lanes > WIDE ? p.lanes : WIDE;
  const Wide none = {}, ones = none + 1.0;
  for (int at = 0; at < step; at += WIDE) {
    Wide most = none - infinite, odd = {};
    for (int64_t i = at; i < end; i += step) {
      const Wide x = widened(scores + i);
      most = x > most ? x : most;
      odd = x < infinite ? odd : ones;
    }
    most = largest_of(most, p.lanes);
    odd = largest_of(odd, p.lanes);
    Wide done = most == -infinite ? ones : odd;
    most = most == -infinite ? none : most;
    Wide lam = {}, low = {}, high = none + highest<P>(less_one, n), before = {};
    for (int turn = 0; turn < 200 && any_above_0(ones - done); turn++) {
      Wide total = {}, slopes = {};
      for (int64_t i = at; i < end; i += step) {
        Wide weight, slope;
        weigh<P>(less_one * ((widened(scores + i) - most) - lam), exponent, weight, slope);
        total += weight;
        slopes += slope;
      }
      total = sum_of(total, p.lanes);
      slopes = sum_of(slopes, p.lanes);
      low = total >= 1.0 ? lam : low;
      high = total >= 1.0 ? high : lam;
      const Wide middle = 0.5 * (low + high), newton = lam + step_of<P>(total, slopes, less_one);
      // Few rows ask for so many turns; they get to an end by halving what λ lies in
      const bool halve = turn > 16 && turn % 2;
      Wide next = (newton >= low) & (newton <= high) ? newton : middle;
      if (halve) next = middle;
      const Wide moved = next > lam ? next - lam : lam - next;
      lam = done > 0.0 ? lam : next;
      // What is left then is the step squared
      done = moved <= (P != ZERO && p.alpha < 2 ? 1e-10 : 4e-16) * (1.0 + lam) ? ones : done;
      // Sparsemax is exact where the support is the same again
      if (P == ZERO && !halve) done = slopes == before ? ones : done;
      before = slopes;
    }
    store<double, WIDE>(largest + at, most);
    store<double, WIDE>(lambda + at, odd > 0.0 ? none / none : lam);
  }
}

// The weights of n pairs in place of their scores; and their slopes, if these are asked for.
template <class T, Power P>
void make_weights(const Problem<T>& p, T* scores, int64_t n, const double* largest,
                  const double* lambda, T* slopes) {
  const double less_one = p.alpha - 1, exponent = 1 / less_one;
  const int step = p.lanes > WIDE ? p.lanes : WIDE;
  for (int at = 0; at < step; at += WIDE) {
    const Wide most = load<double, WIDE>(largest + at), lam = load<double, WIDE>(lambda + at);
    for (int64_t i = at; i < n * p.lanes; i += step) {
      Wide weight, slope;
      weigh<P>(less_one * ((widened(scores + i) - most) - lam), exponent, weight, slope);
      store_narrow(scores + i, weight + lam * 0.0);  // NaN of a row, at all its pairs
      if (slopes) store_narrow(slopes + i, slope + lam * 0.0);
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
  const int step = p.lanes > WIDE ? p.lanes : WIDE;
  for (int i = 0; i < step; i += p.lanes) {
    copy_heads(p.thresholds[row], p.heads, kept.largest + i);
    copy_heads(p.thresholds[row] + p.heads, p.heads, kept.lambda + i);
  }
}

template <class T>
INLINE void make_weights(const Problem<T>& p, const Kept<T>& kept, int64_t n, T* slopes) {
  switch (p.power) {
    case ZERO: make_weights<T, ZERO>(p, kept.weights, n, kept.largest, kept.lambda, slopes); break;
    case ROOT: make_weights<T, ROOT>(p, kept.weights, n, kept.largest, kept.lambda, slopes); break;
    default: make_weights<T, OTHER>(p, kept.weights, n, kept.largest, kept.lambda, slopes);
  }
}

// The scores of the pairs [begin, end) of a row: given ones, or those of queries and keys.
template <class T>
void keep_scores(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                 int64_t end, Scratch<T>& s, T* to) {
  const T* keys[ROWS];
  if (!p.given && f.score_numbers) repeat(p, p.query[row], s.fixed);
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    if (p.given) {
      read_block(p, at, n, s);
    } else {
      score_pairs(p, f, at, n, p.query[row], s, keys, s.logits);
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
INLINE void pick_rows(const int* which, int count, int n, int64_t size, const T** rows,
                      const T* const* later) {
  if (count == n) return;
  for (int i = 0; i < count; i++) rows[i] = rows[which[i]];
  for (int i = count; i < count + 4; i++) rows[i] = rows[0];
  for (int i = count; later && i < n; i++) {
    for (int64_t c = 0; c < size; c += 64 / int(sizeof(T))) __builtin_prefetch(later[i] + c, 0, 2);
  }
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
  const T *values[ROWS], *next[ROWS], *const *later = nullptr;
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
    pick_rows(which, count, n, size, values, later);
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
  for (int64_t i = n * p.lanes; i % WIDE; i++) scores[i] = -infinity(T());
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
