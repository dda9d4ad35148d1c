// Cuts a pass into tasks that do not depend on the number of threads, and runs them.
#include <algorithm>
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
  const Pass of_vector = p.numbers() ? BY_KEY : BY_QUERY;
  const bool vector = p.need_vector && (pass == of_vector || pass == SUMS);
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

template <class T>
void differentiate(Problem<T>& p, int64_t pairs, int64_t places, int threads, T* grad_vector) {
  const bool by_key = p.grad_key || p.grad_value || p.numbers();
  const bool by_query = p.grad_query || p.need_vector || p.grad_bias || p.grad_pair_key ||
                        p.grad_pair_value;
  std::unique_ptr<T[]> statistics(new T[p.by_query.num * NUMBERS * p.heads]), of_queries;
  std::unique_ptr<T[]> rests(new T[p.by_query.num * p.heads]);
  std::unique_ptr<uint32_t[]> position;
  bool centred = false;
  p.statistics = statistics.get();
  p.rests = rests.get();
  p.centred = &centred;
  run(p, STATISTICS, threads, grad_vector);
  if (!centred) p.rests = nullptr;
  if (p.numbers() && p.grad_query) {
    const int64_t size = pairs * p.heads;
    of_queries.reset(p.of_queries = new T[size]);
    use_large_pages(p.of_queries, size * int64_t(sizeof(T)));
    position.reset(new uint32_t[places]);
    for (int64_t e = 0; e < pairs; e++) position[p.by_key.place[e]] = uint32_t(e);
    p.position = position.get();
  }
  if (by_query && !p.numbers()) run(p, BY_QUERY, threads, grad_vector);
  if (by_key) run(p, BY_KEY, threads, grad_vector);
  if (p.of_queries) run(p, SUM_QUERY, threads, grad_vector);
}

template void run<float>(const Problem<float>&, Pass, int, float*);
template void run<double>(const Problem<double>&, Pass, int, double*);

template void differentiate<float>(Problem<float>&, int64_t, int64_t, int, float*);
template void differentiate<double>(Problem<double>&, int64_t, int64_t, int, double*);

}  // namespace attn
