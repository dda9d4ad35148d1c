// What surrounds a generated score: a block of pairs, a call, and how its rows are shared among
// threads. The sizes H, DQ, DK, DV, DP, HP and NP and the type T are constants of the one score that
// this is compiled for.

constexpr int BLOCK = 32;        // pairs that are scored, normalised and summed together
constexpr int AHEAD = 64;        // pairs between a row's use and its being asked for
constexpr int64_t CHUNK = 4096;  // pairs of one row that are summed by one task
constexpr T LARGE = 32;          // a score above which a mean gradient is looked at again
constexpr T LOWEST = -__builtin_inff();

// The rows of a block's pairs, and those of the pairs that come later.
struct Block {
  const T *q[BLOCK], *k[BLOCK], *p[BLOCK];
  const char* next[BLOCK];
};

// Asks for a head's share of a row that comes later.
INLINE void ask(const char* row, int h, int bytes) {
  for (int at = h * bytes / 64 * 64; at < (h + 1) * bytes; at += 64) __builtin_prefetch(row + at);
}

// --- The score, which is compiled once: each pass gets the same bits of it ---
APART void score(int n, const Block& b, const T* par, int bytes, T* __restrict logits);
APART void of_key(int n, const Block& b, const T* par, const T* __restrict grads,
                  T* __restrict to_key, T* __restrict to_par);
APART void of_query(int n, const Block& b, const T* par, int bytes, const T* __restrict grads,
                    T* __restrict to_query);
APART void of_pair(int n, const Block& b, const T* par, const T* __restrict grads, T* const* to);

}  // namespace

extern "C" {

struct Order {
  const int64_t* pointer;  // [num + 1]
  const int32_t* other;    // [E]
  const void* place;       // [E], int32 or int64
  int64_t num, wide;
};
struct Call {
  const T *query, *key, *value, *bias, *pair, *par;
  int64_t query_step, key_step, value_step, bias_step, pair_step;
  Order by_query, by_key;
  const int64_t* pair_id;
  int64_t places, threads, drops;
  uint32_t seed_state, threshold, first_head;
  double keep_scale;
  T *output, *log_sum_exp, *maximum, *total;  // [Nq, H, DV], [Nq, H]
  const T *grad_output, *grad_log_sum_exp;
  int64_t output_step, numbers_step, grad_step, grad_numbers_step;
  T *grad_query, *grad_key, *grad_value, *grad_bias, *grad_pair, *grad_par;
  int64_t grad_query_step, grad_key_step, grad_value_step, grad_bias_step, grad_pair_step;
};
}

namespace {

INLINE int64_t place_of(const Order& o, int64_t e) {
  return o.wide ? static_cast<const int64_t*>(o.place)[e] : static_cast<const int32_t*>(o.place)[e];
}

// --- Threads and tasks, neither of which a result depends on ---

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

template <class Work>
struct Shared {
  const Work& work;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  void run() {
    for (int64_t task; (task = next++) < tasks;) work(task);
  }
};

template <class Work>
void share(int64_t tasks, int64_t threads, const Work& work) {
  // The threads of torch's own OpenMP: to link with one would be to load a second
  static const Parallel gomp = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  Shared<Work> shared{work, tasks};
  const int wanted = int(std::min(std::max<int64_t>(threads, 1), tasks));
  if (wanted <= 1) {
    shared.run();
  } else if (gomp) {
    gomp([](void* data) { static_cast<Shared<Work>*>(data)->run(); }, &shared, unsigned(wanted), 0);
  } else {
    std::vector<std::thread> others;
    for (int i = 1; i < wanted; i++) others.emplace_back([&shared] { shared.run(); });
    shared.run();
    for (auto& other : others) other.join();
  }
}

struct Task {
  int64_t row, end;           // whole rows [row, end) …
  int64_t begin, stop, part;  // … or the pairs [begin, stop) of one row, as this part
};

// Runs part(row, begin, end, sums, par) for all rows, with partials of hubs merged in their order by
// merge(row, partials, count), and what tasks leave of the parameters added up in theirs.
template <class Rows, class Part, class Merge>
void run(const Order& o, int64_t threads, int64_t partial, T* grad_par, const Rows& rows,
         const Part& part, const Merge& merge) {
  std::vector<Task> tasks;
  struct Long {
    int64_t row, part, count;
  };
  std::vector<Long> longs;
  const int64_t share_of = (o.pointer[o.num] + o.num) / 64;
  const int64_t most = std::max<int64_t>(CHUNK / 4, std::min<int64_t>(share_of, 4 * CHUNK));
  int64_t parts = 0, first = 0, load = 0;
  for (int64_t row = 0; row < o.num; row++) {
    const int64_t begin = o.pointer[row], end = o.pointer[row + 1];
    if (end - begin <= CHUNK) {
      load += end - begin + 1;
      if (load < most) continue;
      tasks.push_back({first, row + 1, 0, 0, -1});
    } else {
      if (first < row) tasks.push_back({first, row, 0, 0, -1});
      longs.push_back({row, parts, (end - begin + CHUNK - 1) / CHUNK});
      for (int64_t at = begin; at < end; at += CHUNK) {
        tasks.push_back({row, row, at, std::min(at + CHUNK, end), parts++});
      }
    }
    first = row + 1;
    load = 0;
  }
  if (first < o.num) tasks.push_back({first, o.num, 0, 0, -1});
  std::unique_ptr<T[]> partials(new T[parts * partial + 1]);
  std::unique_ptr<T[]> pars(grad_par ? new T[tasks.size() * NP]() : nullptr);
  share(int64_t(tasks.size()), threads, [&](int64_t i) {
    const Task& task = tasks[i];
    T* par = pars ? pars.get() + i * NP : nullptr;
    if (task.part >= 0) {
      part(task.row, task.begin, task.stop, partials.get() + task.part * partial, par);
    } else {
      for (int64_t row = task.row; row < task.end; row++) rows(row, par);
    }
  });
  for (const Long& row : longs) merge(row.row, partials.get() + row.part * partial, row.count);
  for (int64_t c = 0; grad_par && c < NP; c++) {
    double sum = 0;
    for (size_t i = 0; i < tasks.size(); i++) sum += double(pars[i * NP + c]);
    grad_par[c] = T(sum);
  }
}

// --- Parts of both passes ---

INLINE uint32_t mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7FEB352Du;
  x ^= x >> 15;
  x *= 0x846CA68Bu;
  return x ^ (x >> 16);
}
INLINE uint32_t absorb(uint32_t state, uint32_t word) {
  return mix((state + word * 0x85EBCA6Bu) ^ 0xC2B2AE35u);
}

// What dropout multiplies each weight with: the hash of attn_core/dropout.py.
APART void draw(const Call& c, const Order& o, int64_t begin, int n, T* __restrict keep) {
  const T scale = T(float(c.keep_scale));
  for (int e = 0; e < n; e++) {
    const int64_t place = place_of(o, begin + e);
    const uint64_t id = uint64_t(c.pair_id ? c.pair_id[place] : place);
    const uint32_t state = absorb(absorb(c.seed_state, uint32_t(id)), uint32_t(id >> 32));
    for (int h = 0; h < H; h++) {
      keep[e * H + h] = absorb(state, uint32_t(h) + c.first_head) >= c.threshold ? scale : T(0);
    }
  }
}

INLINE void add_bias(const Call& c, const Order& o, int64_t begin, int n, T* logits) {
  for (int e = 0; c.bias && e < n; e++) {
    const T* bias = c.bias + place_of(o, begin + e) * c.bias_step;
    for (int h = 0; h < H; h++) logits[e * H + h] += bias[h];
  }
}

INLINE void find(const Order& o, int64_t begin, int n, const T* rows, int64_t step, const T** at,
                 const char** next) {
  const int64_t last = o.pointer[o.num] - 1;
  for (int e = 0; e < n; e++) at[e] = rows + o.other[begin + e] * step;
  for (int e = 0; next && e < n; e++) {
    next[e] = reinterpret_cast<const char*>(
        rows + o.other[std::min(begin + e + AHEAD, last)] * step);
  }
}
INLINE void find_pairs(const Call& c, const Order& o, int64_t begin, int n, const T** at) {
  for (int e = 0; DP && e < n; e++) at[e] = c.pair + place_of(o, begin + e) * c.pair_step;
}

// sums = sums · scale + Σ_e weight_e row_e; a scale of null stands for sums that begin.
APART void gather(int n, const T* const* rows, const char* const* next, const T* weights,
                   const T* scale, T* __restrict sums) {
  for (int h = 0; h < H; h++) {
    T acc[DV];
    for (int d = 0; d < DV; d++) acc[d] = scale ? sums[h * DV + d] * scale[h] : T(0);
    for (int e = 0; e < n; e++) {
      const T weight = weights[e * H + h], *row = rows[e] + h * DV;
      if (next) ask(next[e], h, DV * int(sizeof(T)));
#pragma omp simd
      for (int d = 0; d < DV; d++) acc[d] += weight * row[d];
    }
    for (int d = 0; d < DV; d++) sums[h * DV + d] = acc[d];
  }
}

APART void exponentials(int count, T* x) {
#pragma omp simd
  for (int i = 0; i < count; i++) x[i] = exponential(x[i]);
}
