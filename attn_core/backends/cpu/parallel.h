// Work shared by the threads of torch's own OpenMP runtime.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

namespace attn {

// Calls work(task, worker) for every task in [0, tasks), each worker in [0, threads) in one thread
// at a time; which worker takes which task is left open.
void share(int64_t tasks, int threads, const std::function<void(int64_t, int)>& work);

constexpr int64_t TASK = 1024;  // rows that are summed one by one: the longer a sum, the more it rounds

inline int64_t tasks_of(int64_t rows) { return (rows + TASK - 1) / TASK; }

// Calls work(begin, end, task) for the rows of each task.
template <class Work>
void each_task(int64_t rows, int threads, Work work) {
  share(tasks_of(rows), threads, [&](int64_t i, int) {
    const int64_t end = (i + 1) * TASK;
    work(i * TASK, end < rows ? end : rows, i);
  });
}

// Where tasks of whole rows begin, each of about `most` pairs and rows, and where the last one ends.
std::vector<int64_t> cut_rows(const int64_t* pointer, int64_t num, int64_t most);

// Which threads `share` uses: "openmp" or "std::thread".
const char* threading();

}  // namespace attn
