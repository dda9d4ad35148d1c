// In-edges drawn for some nodes, and nodes numbered anew. No more of a graph is read than is drawn.
#pragma once
#include <cstdint>

#include "problem.h"

namespace attn {

// Pairs sorted by their target, of which nothing was looked at yet.
struct Unchecked {
  Graph graph;
  int64_t count;  // of the pairs
};

// begins[i + 1] - begins[i] is how many pairs of nodes[i] are drawn: all, or at most `most` where
// that is not below 0. Returns how many in all; -1: no such node, or a pointer that does not rise.
int64_t count_drawn(const Unchecked& pairs, const int64_t* nodes, int64_t count, int64_t most,
                    int64_t* begins);

// The sources and the places of the pairs drawn, those of nodes[i] from begins[i] on, in the order
// of the graph: of more than `most`, each subset is equally likely, as the seed and the node say.
// Returns whether `begins` is what count_drawn wrote.
bool draw_pairs(const Unchecked& pairs, const int64_t* nodes, int64_t count, int64_t most,
                int64_t seed, const int64_t* begins, int threads, int32_t* sources, int64_t* places);

// Gives nodes that have no number (-1) their place, one that comes twice its first. Returns false,
// and gives none, if there is no such node.
bool give_numbers(const int64_t* nodes, int64_t count, int32_t* numbers, int64_t num);

// Takes the numbers of nodes away again.
bool take_numbers(const int64_t* nodes, int64_t count, int32_t* numbers, int64_t num);

// Writes the nodes without a number to `fresh`, each once, ascending; gives them numbers from
// `first` on, and writes the numbers of all nodes to `to`. Returns how many are fresh; -1, and
// nothing has changed: there is no such node.
int64_t number_nodes(const int32_t* nodes, int64_t count, int64_t first, int32_t* numbers,
                     int64_t num, int threads, int64_t* fresh, int32_t* to);

}  // namespace attn
