// Cuts a pass into tasks that do not depend on the number of threads, and runs them.
#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <vector>

#include "dispatch.h"
#include "memory.h"
#include "parallel.h"

namespace attn {
namespace {

// Pairs and rows in a task: many for the cost of a task not to count, but fewer on a small graph,
// for all threads to have some.
int64_t task_size(const Graph& graph) {
  const int64_t share = (graph.pointer[graph.num] + graph.num) / 64;
  return std::max<int64_t>(CHUNK / 4, std::min<int64_t>(share, 4 * CHUNK));
}

struct Task {
  int64_t row, end;             // whole rows [row, end) …
  int64_t begin, stop, part;    // … or the pairs [begin, stop) of one row, as part number `part`
};
struct Long {
  int64_t row, part, count;
};

}  // namespace

template <class T>
void run(const Problem<T>& p, Pass pass, int threads, T* grad_vector) {
  const Graph& graph = p.graph(pass);
  std::vector<Task> tasks;
  std::vector<Long> longs;
  const int64_t most = task_size(graph);
  int64_t parts = 0, first = 0, load = 0;
  for (int64_t row = 0; row < graph.num; row++) {
    if (pass == STATISTICS) {  // takes the same time for each row
      row = std::min(row + most, graph.num) - 1;
      tasks.push_back({first, row + 1, 0, 0, -1});
      first = row + 1;
      continue;
    }
    const int64_t begin = graph.pointer[row], end = graph.pointer[row + 1];
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
  if (first < graph.num) tasks.push_back({first, graph.num, 0, 0, -1});

  const int64_t partial = p.partial_size(pass), size = int64_t(p.heads) * p.width;
  const int64_t scratch = (p.scratch_size() + 31) / 32 * 32;
  const Pass of_vector = p.numbers() || p.leaves() ? BY_KEY : BY_QUERY;
  const bool vector = p.need_vector && (pass == of_vector || pass == SUMS || pass == ENTMAX_QUERY ||
                                        pass == ENTMAX_QUERY_PARTS);
  threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, int64_t(tasks.size()))));
  std::unique_ptr<T[]> memory(new T[scratch * threads]), partials(new T[parts * partial]);
  std::unique_ptr<T[]> vectors(vector ? new T[int64_t(tasks.size()) * size]() : nullptr);
  const Kernels<T>& kernels = chosen<T>();
  share(int64_t(tasks.size()), threads, [&](int64_t i, int worker) {
    const Task& task = tasks[i];
    T* own = memory.get() + worker * scratch;
    T* of_vector = vector ? vectors.get() + i * size : nullptr;
    if (task.part < 0) {
      kernels.rows(p, pass, task.row, task.end, own, of_vector);
    } else {
      kernels.part(p, pass, task.row, task.begin, task.stop, own,
                   partials.get() + task.part * partial, of_vector);
    }
  });
  for (const Long& row : longs) {
    kernels.merge(p, pass, row.row, partials.get() + row.part * partial, row.count, memory.get());
  }
  if (vector) {
    std::vector<double> sums(size);
    for (size_t i = 0; i < tasks.size(); i++) {
      for (int64_t c = 0; c < size; c++) sums[c] += double(vectors[int64_t(i) * size + c]);
    }
    std::copy(sums.begin(), sums.end(), grad_vector);
  }
}

// For each pair of one order, where the same pair is in the other; both know its place in the
// unsorted list.
Room<uint32_t> places_by_query(const Graph& by_query, const Graph& by_key, int64_t pairs,
                               int64_t places, int threads) {
  constexpr int64_t TASK = 1 << 14;
  const Room<uint32_t> position(places);
  Room<uint32_t> from(pairs);
  std::fill_n(position.get(), places, 0);  // of places that no pair has
  const auto each_pair = [&](auto work) {
    share((pairs + TASK - 1) / TASK, threads, [&](int64_t i, int) {
      const int64_t end = std::min(pairs, (i + 1) * TASK);
      for (int64_t e = i * TASK; e < end; e++) work(e);
    });
  };
  each_pair([&](int64_t e) { position.get()[by_key.place[e]] = uint32_t(e); });
  each_pair([&](int64_t e) { from.get()[e] = position.get()[by_query.place[e]]; });
  return from;
}

template <class T>
void differentiate(Problem<T>& p, int64_t pairs, int64_t places, int threads, T* grad_vector) {
  const bool by_key = p.grad_key || p.grad_value || p.numbers();
  const bool by_query = p.grad_query || p.need_vector || p.grad_bias || p.grad_pair_key ||
                        p.grad_pair_value;
  const Room<T> statistics(p.by_query.num * NUMBERS * p.heads), rests(p.by_query.num * p.heads);
  Room<T> of_queries;
  Room<uint8_t> signs;
  Room<uint32_t> from;
  bool centred = false;
  p.statistics = statistics.get();
  p.rests = rests.get();
  p.centred = &centred;
  run(p, STATISTICS, threads, grad_vector);
  if (!centred) p.rests = nullptr;
  const bool of_pairs = p.pair_key || p.pair_value || p.grad_pair_key || p.grad_pair_value;
  const bool leaves = by_key && (p.numbers() ? bool(p.grad_query) : by_query && !of_pairs);
  if (leaves) {
    of_queries = Room<T>(pairs * p.heads);
    p.of_queries = of_queries.get();
    if (p.kind == LEAKY_RELU && !p.numbers()) {
      const int64_t vector = vector_of(p.width, chosen<T>().lanes);
      p.sign_bytes = p.heads * p.width / vector * (vector > 8 ? 2 : 1);
      signs = Room<uint8_t>(pairs * p.sign_bytes);
      p.signs = signs.get();
    }
    if (p.grad_query) {
      from = places_by_query(p.by_query, p.by_key, pairs, places, threads);
      p.from = from.get();
    }
  }
  if (by_query && !p.numbers() && !leaves) run(p, BY_QUERY, threads, grad_vector);
  if (by_key) run(p, BY_KEY, threads, grad_vector);
  if (leaves && p.grad_query) run(p, SUM_QUERY, threads, grad_vector);
}

namespace {

// Room for the longest row that is no long one, and for all that are; whether there are any.
template <class T>
bool keep_rows(Problem<T>& p, int arrays, std::unique_ptr<T[]>& memory) {
  const Graph& graph = p.by_query;
  int64_t longest = 0;
  bool any = false;
  for (int64_t i = 0; i < graph.num; i++) {
    const int64_t size = graph.pointer[i + 1] - graph.pointer[i];
    any |= size > CHUNK;
    longest = std::max(longest, std::min(size, CHUNK));
  }
  p.room = longest * p.lanes + 16;
  if (!any) return false;
  const int64_t pairs = graph.pointer[graph.num];
  p.long_room = pairs * p.lanes + (pairs / CHUNK + 1) * 16;
  memory.reset(new T[size_t(arrays * p.long_room + graph.num * 2 * p.heads)]);
  p.long_rows = memory.get();
  p.row_numbers = {p.long_rows + arrays * p.long_room, 2 * p.heads};
  return true;
}

// Whether all numbers are finite.
template <class T>
bool are_finite(const AnyRows<const T>& rows, int64_t num, int64_t size, int threads) {
  const int64_t task = std::max<int64_t>(1, (1 << 16) / size);
  std::atomic<bool> finite{true};
  share((num + task - 1) / task, threads, [&](int64_t i, int) {
    const T most = std::numeric_limits<T>::max();
    int odd = 0;
    for (int64_t row = i * task; row < std::min(num, (i + 1) * task); row++) {
      const T* x = rows.full(row);
      for (int64_t c = 0; c < size; c++) odd |= !(x[c] <= most && x[c] >= -most);
    }
    if (odd) finite = false;
  });
  return finite;
}

// Whether rows whose weights are 0 need not be looked at: they would show if they are no numbers.
template <class T>
bool may_skip(const Problem<T>& p, int64_t num_keys, int64_t places, int threads) {
  const int64_t size = int64_t(p.heads) * p.value_width;
  return are_finite<T>(p.value, num_keys, size, threads) &&
         (!p.pair_value || are_finite<T>(p.pair_value, places, size, threads)) &&
         (!p.grad_output || are_finite<T>(p.grad_output, p.by_query.num, size, threads));
}

}  // namespace

template <class T>
void attend_entmax(Problem<T>& p, int64_t num_keys, int64_t places, int threads) {
  std::unique_ptr<T[]> memory;
  T* const nothing = nullptr;
  const bool parts = keep_rows(p, 1, memory);
  std::unique_ptr<double[]> thresholds;
  if (parts && !p.thresholds) {
    thresholds.reset(new double[size_t(p.by_query.num * 2 * p.heads)]);
    p.thresholds = {thresholds.get(), 2 * p.heads};
  }
  p.skips = !p.made && may_skip(p, num_keys, places, threads);
  run(p, ENTMAX, threads, nothing);
  if (parts) run(p, ENTMAX_PARTS, threads, nothing);
}

template <class T>
void differentiate_entmax(Problem<T>& p, int64_t pairs, int64_t num_keys, int64_t places,
                          int threads, T* grad_vector) {
  std::unique_ptr<T[]> memory, more;
  Room<T> left;
  Room<uint32_t> from;
  const bool parts = keep_rows(p, 3, memory), by_key = p.grad_key || p.grad_value;
  p.skips = may_skip(p, num_keys, places, threads);
  if (by_key) {
    left = Room<T>(pairs * 2 * p.heads);
    p.left = left.get();
    from = places_by_query(p.by_key, p.by_query, pairs, places, threads);
    p.from = from.get();
  }
  run(p, ENTMAX_QUERY, threads, grad_vector);
  if (parts) {
    const int64_t width = p.need_vector ? int64_t(p.heads) * p.width : 0;
    more.reset(new T[size_t(width)]());
    run(p, ENTMAX_QUERY_PARTS, threads, more.get());
    for (int64_t c = 0; c < width; c++) grad_vector[c] += more[c];
  }
  if (by_key) run(p, ENTMAX_KEY, threads, grad_vector);
}

template void run<float>(const Problem<float>&, Pass, int, float*);
template void run<double>(const Problem<double>&, Pass, int, double*);

template void differentiate<float>(Problem<float>&, int64_t, int64_t, int, float*);
template void differentiate<double>(Problem<double>&, int64_t, int64_t, int, double*);

template void attend_entmax<float>(Problem<float>&, int64_t, int64_t, int);
template void attend_entmax<double>(Problem<double>&, int64_t, int64_t, int);

template void differentiate_entmax<float>(Problem<float>&, int64_t, int64_t, int64_t, int, float*);
template void differentiate_entmax<double>(Problem<double>&, int64_t, int64_t, int64_t, int,
                                           double*);

}  // namespace attn
