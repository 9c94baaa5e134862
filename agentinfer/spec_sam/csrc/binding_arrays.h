// Arrays at the boundary: validated with their values in the message on the way in, not copied on the way out.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "check.h"
#include "token_log.h"

namespace agentinfer::spec_sam {

namespace nb = nanobind;

template <typename Element>
struct Flat {
  Element* data;
  std::size_t size;
};

template <typename Element, typename Array>
Flat<Element> flat(const Array& array, const char* name) {
  using Value = std::remove_const_t<Element>;
  const nb::dlpack::dtype wanted = nb::dtype<Value>();
  const nb::dlpack::dtype seen = array.dtype();
  const bool is_flat = array.ndim() == 1 && (array.shape(0) <= 1 || array.stride(0) == 1);
  if (seen != wanted || !is_flat || array.device_type() != nb::device::cpu::value) {
    static constexpr const char* kKinds[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
    std::string shape;
    std::string strides;
    for (std::size_t axis = 0; axis < array.ndim(); ++axis) {
      shape += (axis ? ", " : "") + std::to_string(array.shape(axis));
      strides += (axis ? ", " : "") + std::to_string(array.stride(axis));
    }
    throw CheckError(agentinfer::detail::concat(
        name, ": expected a contiguous one-dimensional ", kKinds[wanted.code], int{wanted.bits}, " array on the CPU, got ",
        seen.code < 7 ? kKinds[seen.code] : "unknown", int{seen.bits}, " of shape (", shape, ") with strides (",
        strides, ") elements on device type ", array.device_type()));
  }
  return {static_cast<Element*>(array.data()), array.ndim() == 0 ? 0 : array.shape(0)};
}

using InputArray = nb::ndarray<nb::ro>;
using OutputArray = nb::ndarray<>;
using TokenView = nb::ndarray<nb::numpy, const std::int32_t, nb::ndim<1>>;

// Read-only, and alive for as long as the array is.
inline TokenView view(TokenSpan span) {
  using Owner = std::shared_ptr<const std::int32_t[]>;
  static const std::int32_t kEmpty = 0;
  const std::int32_t* data = span.size == 0 ? &kEmpty : span.data;
  nb::capsule owner(new Owner(std::move(span.owner)), [](void* held) noexcept { delete static_cast<Owner*>(held); });
  return TokenView(data, {span.size}, owner);
}

inline Flat<const std::int64_t> checked_offsets(const InputArray& array, std::size_t num_rows, std::size_t num_tokens) {
  const auto offsets = flat<const std::int64_t>(array, "offsets");
  AGENTINFER_CHECK(offsets.size == num_rows + 1, "offsets: expected ", num_rows + 1, " for ", num_rows, " rows, got ",
                   offsets.size);
  AGENTINFER_CHECK(offsets.data[0] == 0, "offsets[0]: expected 0, got ", offsets.data[0]);
  for (std::size_t row = 0; row < num_rows; ++row) {
    AGENTINFER_CHECK(offsets.data[row] <= offsets.data[row + 1], "offsets[", row + 1, "]: expected at least ",
                     offsets.data[row], ", got ", offsets.data[row + 1]);
  }
  AGENTINFER_CHECK(offsets.data[num_rows] == static_cast<std::int64_t>(num_tokens), "offsets[", num_rows,
                   "]: expected the number of tokens, ", num_tokens, ", got ", offsets.data[num_rows]);
  return offsets;
}

}  // namespace agentinfer::spec_sam
