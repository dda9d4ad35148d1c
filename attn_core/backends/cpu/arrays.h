// Arrays from Python, checked, so that no kernel meets an index or a shape that it cannot serve.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>

#include "problem.h"

namespace nb = nanobind;

namespace arrays {

template <class T>
using Array = nb::ndarray<T, nb::device::cpu>;
template <class T>
using Maybe = std::optional<Array<T>>;
// Of the type that is computed in, or of 16 bits
using AnyArray = nb::ndarray<nb::ro, nb::device::cpu>;
using MaybeAny = std::optional<nb::ndarray<nb::device::cpu>>;
using Index = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Column = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Places = nb::ndarray<nb::ro, nb::ndim<1>, nb::c_contig, nb::device::cpu>;  // int32 or int64

[[noreturn]] inline void refuse(const char* name, const char* what) {
  throw nb::value_error((std::string(name) + " " + what).c_str());
}

// The bytes between the first and the last number of an array.
struct Span {
  const char* name;
  const char *begin = nullptr, *end = nullptr;

  template <class A>
  Span(const char* name, const A& x) : name(name) {
    if (x.size() == 0) return;
    int64_t low = 0, high = 1;
    for (size_t d = 0; d < x.ndim(); d++) {
      const int64_t reach = (int64_t(x.shape(d)) - 1) * x.stride(d);
      (reach < 0 ? low : high) += reach;
    }
    const auto* data = reinterpret_cast<const char*>(x.data());
    begin = data + low * int64_t(x.itemsize());
    end = data + high * int64_t(x.itemsize());
  }
  template <class A>
  Span(const char* name, const std::optional<A>& x) : name(name) {
    if (x) *this = Span(name, *x);
  }
};

// What is written must not be read, nor be written twice.
template <class Spans, class Others>
void apart(const Spans& written, const Others& read) {
  for (auto one = written.begin(); one != written.end(); one++) {
    const auto check = [one](const Span& other) {
      if (one->begin < other.end && other.begin < one->end) {
        refuse(one->name, (std::string("shares memory with ") + other.name).c_str());
      }
    };
    std::for_each(one + 1, written.end(), check);
    std::for_each(read.begin(), read.end(), check);
  }
}
template <class Spans>
void apart(const Spans& written, std::initializer_list<Span> read) {
  apart<Spans, std::initializer_list<Span>>(written, read);
}
inline void apart(std::initializer_list<Span> written, std::initializer_list<Span> read) {
  apart<std::initializer_list<Span>, std::initializer_list<Span>>(written, read);
}

// How far the rows of [num, heads, width] (without `width`: [num, heads]) are apart, each packed.
template <class A>
int64_t step_of(const char* name, const A& x, int64_t num, int64_t heads, int64_t width,
                bool numbers, bool written) {
  const bool shaped = numbers ? x.ndim() == 2 : x.ndim() == 3 && int64_t(x.shape(2)) == width;
  if (!shaped || int64_t(x.shape(0)) != num || int64_t(x.shape(1)) != heads) {
    refuse(name, "has a shape that does not fit the others");
  }
  const bool packed = x.size() == 0 || (numbers ? x.stride(1) == 1 || heads == 1
                                                : (x.stride(2) == 1 || width == 1) &&
                                                      (x.stride(1) == width || heads == 1));
  if (!packed) refuse(name, "has rows that are not packed: call .contiguous()");
  const int64_t size = heads * (numbers ? 1 : width);
  if (written && x.size() && num > 1 && std::abs(int64_t(x.stride(0))) < size) {
    refuse(name, "has rows that share memory, but is written to");
  }
  return num == 1 ? 0 : int64_t(x.stride(0));
}
template <class T>
attn::Rows<T> rows(const char* name, const Array<T>& x, int64_t num, int64_t heads, int64_t width,
                   bool numbers = false) {
  return {x.data(), step_of(name, x, num, heads, width, numbers, !std::is_const_v<T>)};
}
template <class T>
attn::Rows<T> rows(const char* name, const Maybe<T>& x, int64_t num, int64_t heads, int64_t width,
                   bool numbers = false) {
  return x ? rows<T>(name, *x, num, heads, width, numbers) : attn::Rows<T>();
}

// Rows of an array whose type is found out here.
template <class T, class A>
attn::AnyRows<T> any_rows(const char* name, const A& x, int64_t num, int64_t heads, int64_t width) {
  using Kind = nb::dlpack::dtype_code;
  const auto type = x.dtype();
  const bool half = sizeof(T) == 4 && type.bits == 16 && type.lanes == 1;
  attn::AnyRows<T> found;
  if (half && type.code == uint8_t(Kind::Bfloat)) {
    found.stored = attn::BFLOAT16;
  } else if (half && type.code == uint8_t(Kind::Float)) {
    found.stored = attn::FLOAT16;
  } else if (type != nb::dtype<std::remove_const_t<T>>()) {
    throw nb::type_error((std::string(name) + " has a type that does not fit the others").c_str());
  }
  found.data = reinterpret_cast<typename attn::AnyRows<T>::Byte*>(x.data());
  found.step = int64_t(x.itemsize()) *
               step_of(name, x, num, heads, width, false, !std::is_const_v<T>);
  return found;
}
template <class T, class A>
attn::AnyRows<T> any_rows(const char* name, const std::optional<A>& x, int64_t num, int64_t heads,
                          int64_t width) {
  return x ? any_rows<T>(name, *x, num, heads, width) : attn::AnyRows<T>();
}

// [heads, width], packed.
template <class T>
T* packed(const char* name, const Array<T>& x, int64_t heads, int64_t width) {
  if (x.ndim() != 2 || int64_t(x.shape(0)) != heads || int64_t(x.shape(1)) != width ||
      (width > 1 && x.stride(1) != 1) || (heads > 1 && x.stride(0) != width)) {
    refuse(name, "is not [H, D], packed");
  }
  return x.data();
}

// Whether rows of so many numbers in all are more than a core has at hand in its own cache.
inline bool is_far_bytes(int64_t bytes) { return bytes > (1 << 21); }
template <class T>
bool is_far(int64_t numbers) {
  return is_far_bytes(numbers * int64_t(sizeof(T)));
}

template <class I>
void within(const char* name, const I* x, int64_t count, int64_t end) {
  const I last = I(std::min<int64_t>(end - 1, std::numeric_limits<I>::max()));
  I outside = 0;  // without a branch, and of what the oldest processors compare
  for (int64_t e = 0; e < count; e++) outside |= I(x[e] < 0) | I(x[e] > last);
  if (outside) {
    throw nb::index_error((std::string(name) + " has an index out of range").c_str());
  }
}

inline attn::Places places_of(const char* name, const Places& x) {
  attn::Places found;
  if (x.dtype() == nb::dtype<int32_t>()) {
    found.narrow = static_cast<const int32_t*>(x.data());
  } else if (x.dtype() == nb::dtype<int64_t>()) {
    found.wide = static_cast<const int64_t*>(x.data());
  } else {
    refuse(name, "has places that are neither int32 nor int64");
  }
  return found;
}

// Pairs sorted by one of their ends, of which there are `num`; places lie below `places`.
// Where nobody reads them, they need not be looked through.
inline attn::Graph graph(const char* name, const int64_t* at, attn::Places place, int64_t count,
                         int64_t num, int64_t places, bool reads_place) {
  bool rising = at[0] == 0 && at[num] == count;
  for (int64_t i = 0; i < num; i++) rising &= at[i] <= at[i + 1];
  if (!rising) refuse(name, "has a pointer that does not rise from 0 to the number of pairs");
  if (reads_place && place.narrow) within(name, place.narrow, count, places);
  if (reads_place && place.wide) within(name, place.wide, count, places);
  return {at, nullptr, place, num};
}
inline attn::Graph graph(const char* name, const Index& pointer, const Places& place, int64_t num,
                         int64_t places, bool reads_place = true) {
  if (int64_t(pointer.size()) != num + 1) refuse(name, "has a shape that does not fit the others");
  return graph(name, pointer.data(), places_of(name, place), int64_t(place.size()), num, places,
               reads_place);
}
// And with their other ends, of which there are `others`.
inline attn::Graph graph(const char* name, const Index& pointer, const Column& other,
                         const Places& place, int64_t num, int64_t others, int64_t places,
                         bool reads_place = true) {
  if (other.size() != place.size()) refuse(name, "has a shape that does not fit the others");
  attn::Graph found = graph(name, pointer, place, num, places, reads_place);
  within(name, other.data(), int64_t(other.size()), others);
  found.other = other.data();
  return found;
}

}  // namespace arrays
