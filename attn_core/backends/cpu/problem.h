// One attention over edges as the kernels see it: plain pointers, all checked by bindings.cpp.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>

// Inlined always: a copy compiled for one instruction set must not serve the others.
#define ATTN_INLINE inline __attribute__((always_inline))

namespace attn {

constexpr int BLOCK = 32;        // pairs that are scored, normalised and summed together
constexpr int NUMBERS = 3;       // per query and head, of which the backward pass makes weights
constexpr int LARGE = 32;        // a score above which a mean gradient is looked at again
constexpr int64_t CHUNK = 4096;  // pairs of one row that are summed by one task

enum Kind { DOT = 0, LEAKY_RELU = 1, TANH = 2 };
// What is done for each row of the pairs by query or by key.
enum Pass {
  FORWARD,
  STATISTICS,
  BY_QUERY,
  BY_KEY,
  SUM_QUERY,
  SCORES,  // pairs.h
  SUMS,
  SOFTMAX,  // segments.h
  SOFTMAX_PARTS,
  GRADIENT,
  GRADIENT_PARTS,
  ENTMAX,  // entmax.h
  ENTMAX_PARTS,
  ENTMAX_QUERY,  // entmax_backward.h
  ENTMAX_QUERY_PARTS,
  ENTMAX_KEY,
};
// The derivative of weights w = α-entmax(s) is u g - u Σ u g / Σ u with u = w^(2 - α).
enum Power { ONE, ROOT, ZERO, OTHER };  // 2 - α is 1 for softmax, ½, 0 for sparsemax

// Whole vectors of numbers of all heads, whatever the instruction set.
ATTN_INLINE int lanes_of(int64_t heads) {
  int lanes = 1;
  while (lanes < heads && lanes < 16) lanes *= 2;
  return heads <= 16 ? lanes : int(heads + 15) / 16 * 16;
}

// Rows [num, heads, channels], packed but for the step from row to row.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t step = 0;
  ATTN_INLINE T* operator[](int64_t i) const { return data + i * step; }
  ATTN_INLINE explicit operator bool() const { return data != nullptr; }
};

// What the numbers of a row are kept as: the type that is computed in, or 16 bits.
enum Stored { FULL, BFLOAT16, FLOAT16 };

// Rows like these which may be kept in 16 bits; `step` is in bytes.
template <class T>
struct AnyRows {
  using Any = std::conditional_t<std::is_const_v<T>, const void, void>;
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  Byte* data = nullptr;
  int64_t step = 0;
  Stored stored = FULL;
  AnyRows() = default;
  ATTN_INLINE AnyRows(T* data, int64_t step)
      : data(reinterpret_cast<Byte*>(data)), step(step * int64_t(sizeof(T))) {}
  ATTN_INLINE AnyRows(const Rows<T>& rows) : AnyRows(rows.data, rows.step) {}
  ATTN_INLINE Any* operator[](int64_t i) const { return data + i * step; }
  ATTN_INLINE T* full(int64_t i) const { return reinterpret_cast<T*>(data + i * step); }
  ATTN_INLINE int64_t bytes() const { return stored == FULL ? int64_t(sizeof(T)) : 2; }
  ATTN_INLINE explicit operator bool() const { return data != nullptr; }
};

// Numbers of 32 bits, or of 64 where there are too many pairs for these.
struct Places {
  const int32_t* narrow = nullptr;
  const int64_t* wide = nullptr;
  ATTN_INLINE int64_t operator[](int64_t i) const { return narrow ? narrow[i] : wide[i]; }
};

// Pairs sorted by one of their ends.
struct Graph {
  const int64_t* pointer = nullptr;  // [num + 1]
  const int32_t* other = nullptr;    // [E], the other end
  Places place;                      // [E], the row of each in what is given per pair
  int64_t num = 0;
};

// What the hash of attn_core/dropout.py starts from, what it must reach, and what is kept for it.
struct Dropout {
  uint32_t seed_state = 0, threshold = 0;
  float keep_scale = 1;
};
constexpr int DRAWS = 16;  // dropout of features calls so many neighbours an edge

template <class T>
struct Problem {
  Kind kind = DOT;
  T scale = 1;  // of dot
  T slope = 0;  // of leaky_relu
  int heads = 0, width = 0, value_width = 0;
  int lanes = 0;  // heads, and what is left empty behind them
  AnyRows<const T> query, key, value;  // query and key are FULL where they are single numbers
  const T* vector = nullptr;  // [H, D]
  Rows<const T> bias, pair_key, pair_value;  // beside these vectors, rows of nodes are FULL
  const int64_t* pair_id = nullptr;  // by which dropout knows each place; its number, if null
  bool far = true;  // rows are worth asking for before they are used
  bool drops = false;
  Dropout dropout;
  Graph by_query, by_key;
  Rows<T> output, log_sum_exp, maximum, total;  // results of the forward pass, later inputs
  AnyRows<T> rounded;  // the output once more, or alone, in 16 bits
  // Backward
  AnyRows<const T> grad_output;
  Rows<const T> grad_log_sum_exp;
  T* statistics = nullptr;  // [Nq, NUMBERS, H], see statistics_row
  T* rests = nullptr;       // [Nq, H], what the mean gradients miss, if it was looked for
  bool* centred = nullptr;  // whether it was
  // What the pass by key leaves of each of its pairs, in its order, for the sums by query
  T* of_queries = nullptr;     // [E, H]: gradients of logits, or of queries that are single numbers
  uint8_t* signs = nullptr;    // [E, sign_bytes]: where leaky_relu was not bent
  int64_t sign_bytes = 0;
  const uint32_t* from = nullptr;  // [E], where it has each pair by query
  AnyRows<T> grad_query, grad_key, grad_value;
  Rows<T> grad_bias, grad_pair_key, grad_pair_value;
  bool need_vector = false;
  // The passes after SUM_QUERY: numbers per pair and head, [E, H], given and made
  Rows<const T> given, weights;
  Rows<T> made;
  Rows<T> row_numbers;  // [Nq, 2, H], what was found of each long row
  // α-entmax
  double alpha = 1;
  Power power = ONE;         // that of α
  Rows<double> thresholds;   // [Nq, 2, H]: the largest score, and λ
  bool skips = false;        // no row is looked at whose weights are 0: its numbers are finite
  int64_t room = 0, long_room = 0;  // numbers in one of the arrays of a row, and of all long ones
  T* long_rows = nullptr;
  T* left = nullptr;  // [E, 2, H], by query: dropped weights, and gradients of logits or numbers

  // Whether the pass by key does all but the sums by query.
  ATTN_INLINE bool leaves() const { return of_queries != nullptr; }

  // Whether logits depend on single numbers per head, as GAT's do.
  ATTN_INLINE bool numbers() const { return kind != DOT && width == 1; }

  ATTN_INLINE int64_t id(int64_t place) const { return pair_id ? pair_id[place] : place; }
  ATTN_INLINE const Graph& graph(Pass pass) const {
    return pass == BY_KEY || pass == ENTMAX_KEY ? by_key : by_query;
  }

  // Numbers in what a task hands on of a row that it has seen a part of.
  ATTN_INLINE int64_t partial_size(Pass pass) const {
    int64_t h = heads;
    if (pass == FORWARD) return h * (2 + value_width);
    if (pass == BY_KEY || pass == ENTMAX_KEY) return h * (width + value_width);
    if (pass == ENTMAX_PARTS) return h * value_width;
    return pass == SOFTMAX || pass == GRADIENT || pass == ENTMAX_QUERY ? 2 * h : h * width;
  }
  ATTN_INLINE int64_t scratch_size() const {
    const int64_t repeated = lanes < 16 ? 16 : lanes, h = repeated;
    return BLOCK * (8 * h + int64_t(heads) * (width + value_width)) + 10 * h +
           int64_t(heads) * (4 * width + 3 * value_width) + 64 + (room ? 3 * room + 8 * h : 0);
  }
};

// A sparse matrix, its entries sorted by row, times a dense one.
template <class T>
struct Product {
  Graph entries;  // `other` is the column of each, `place` its number in `values`
  const T* values = nullptr;
  Rows<const T> dense;
  Rows<T> out;
  int64_t width = 0;  // of the dense matrix, a multiple of 4
  bool far = false;
};

// Vectors [batch, num, width], each packed.
template <class T>
struct Batch {
  T* data = nullptr;
  int64_t far = 0, step = 0;  // from sequence to sequence, from vector to vector
  ATTN_INLINE T* at(int64_t b, int64_t i) const { return data + b * far + i * step; }
};

constexpr int TILE_KEYS = 32;  // that meet queries together

// Additive scores of every query of a sequence with every key: v · φ(q + k).
template <class T>
struct Additive {
  Kind kind = TANH;
  T slope = 0;  // of leaky_relu
  int64_t batch = 0, queries = 0, keys = 0, width = 0;
  int64_t padded = 0;  // width, in whole vectors
  Batch<const T> query, key;
  const T* vector = nullptr;  // [batch, width]
  T* logits = nullptr;        // [batch, queries, keys]
  // Made of each sequence before its pairs are met
  T* made_query = nullptr;    // [batch, queries, padded]
  T* made_vector = nullptr;   // [batch, 2, padded]: what is summed with, what slopes are scaled with
  T* shift = nullptr;         // [batch], what each logit has added
  bool* factored = nullptr;   // [batch]
  // Backward: the gradients of logits; sums over one span of keys, or of queries, each
  const T* grad = nullptr;
  int64_t key_spans = 1, query_spans = 1;
  T* of_query = nullptr;   // [key spans, batch, queries, padded]
  T* of_key = nullptr;     // [query spans, batch, keys, width]
  T* of_vector = nullptr;  // [batch, key spans, query spans, padded]
};
// Of one sequence, the pairs of some queries with some keys.
struct Span {
  int64_t b, query, query_end, key, key_end;
};

// The numbers that a vector holds of a head, where registers hold so many lanes.
ATTN_INLINE int64_t vector_of(int64_t width, int lanes) {
  const int less = lanes < 8 ? lanes : 8;
  return width % lanes == 0 ? lanes : width % less == 0 ? less : 4;
}

// What the two ends of a pair add to GAT's score: for each node and head, the products of its
// channels with two vectors.
template <class T>
struct Ends {
  const T *nodes = nullptr, *of_query = nullptr, *of_key = nullptr;  // [N, H, D], [H, D], [H, D]
  T *queries = nullptr, *keys = nullptr;                             // [N, H]; later their gradients
  T* grad_nodes = nullptr;  // [N, H, D], to which those of the nodes are added
  int64_t heads = 0, width = 0;  // a multiple of 4
};

// Linear maps of rows [N, from] to rows [N, width].
template <class T>
struct Map {
  const T* rows = nullptr;
  const T* matrix = nullptr;  // [panels, from + 1, two vectors], the last row of a panel the bias
  int64_t from = 0, width = 0;
  T* to = nullptr;
  const T* plus = nullptr;  // [N, width], what is added: `to` itself, perhaps
};
template <class T>
struct MapGradient {
  const T *rows = nullptr, *grad = nullptr;  // [N, from], [N, width]
  int64_t from = 0, width = 0;               // width: a multiple of 4
};

// What each instruction set provides.
template <class T>
struct Kernels {
  // Whole rows [begin, end).
  void (*rows)(const Problem<T>&, Pass, int64_t begin, int64_t end, T* scratch, T* grad_vector);
  // The pairs [begin, end) of a long row.
  void (*part)(const Problem<T>&, Pass, int64_t row, int64_t begin, int64_t end, T* scratch,
               T* partial, T* grad_vector);
  // The parts of a long row, in their order.
  void (*merge)(const Problem<T>&, Pass, int64_t row, const T* partials, int64_t count, T* scratch);
  // The rows [begin, end).
  void (*multiply)(const Product<T>&, int64_t begin, int64_t end);
  // The numbers [begin, end) of a tensor; begin is a multiple of 8 * DRAWS.
  void (*drop)(const Dropout&, const T* from, int64_t begin, int64_t end, T* to);
  // Additive scores: one sequence's own part, then spans of its pairs, which take
  // `additive_memory` numbers of their own.
  int lanes;  // numbers in a vector
  void (*additive_prepare)(const Additive<T>&, int64_t b);
  void (*additive_forward)(const Additive<T>&, const Span&, T* memory);
  void (*additive_backward)(const Additive<T>&, const Span&, int64_t key_span, int64_t query_span,
                            T* memory);
  // The nodes [begin, end); the backward pass adds to the gradients of both vectors, [2, H, D].
  void (*ends)(const Ends<T>&, int64_t begin, int64_t end);
  void (*ends_backward)(const Ends<T>&, int64_t begin, int64_t end, T* of_vectors);
  // The rows [begin, end); the gradient, [from + 1, width] with the bias last, is added to.
  void (*map)(const Map<T>&, int64_t begin, int64_t end);
  void (*map_gradient)(const MapGradient<T>&, int64_t begin, int64_t end, T* gradient);
};
template <class T>
int64_t additive_memory(const Additive<T>& a) {
  return a.queries == 1 ? 0 : 2 * TILE_KEYS * a.padded;  // a single one meets keys where they lie
}

// The power of the derivative, for an α.
ATTN_INLINE Power power_for(double alpha) {
  return alpha == 1 ? ONE : alpha == 1.5 ? ROOT : alpha == 2 ? ZERO : OTHER;
}

template <class T>
void run(const Problem<T>& problem, Pass pass, int threads, T* grad_vector);

// The forward pass of α-entmax: attention, or weights alone, where `made` and `given` are.
template <class T>
void attend_entmax(Problem<T>& problem, int64_t num_keys, int64_t places, int threads);

// All passes of the backward pass that the wanted gradients need; places lie below `places`.
template <class T>
void differentiate_entmax(Problem<T>& problem, int64_t pairs, int64_t num_keys, int64_t places,
                          int threads, T* grad_vector);
template <class T>
void differentiate(Problem<T>& problem, int64_t pairs, int64_t places, int threads, T* grad_vector);

}  // namespace attn
