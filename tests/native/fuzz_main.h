// The two ways to run a fuzz driver: libFuzzer's entry point, or random programmes from a seed.
//
// A driver defines `run_programme`, which throws where something is wrong, and `random_programme`, and includes this last.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <vector>

namespace {

void check_programme(const std::uint8_t* data, std::size_t size) {
  try {
    run_programme(data, size);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\nbytes:", error.what());
    for (std::size_t i = 0; i < size; ++i) std::fprintf(stderr, " %d", data[i]);
    std::fprintf(stderr, "\n");
    std::abort();
  }
}

}  // namespace

#ifdef AGENTINFER_LIBFUZZER

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  check_programme(data, size);
  return 0;
}

#else

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: %s SEED RUNS\n", argv[0]), 2;
  std::mt19937 random(static_cast<std::uint32_t>(std::strtoul(argv[1], nullptr, 10)));
  const long runs = std::strtol(argv[2], nullptr, 10);
  for (long run = 0; run < runs; ++run) {
    const std::vector<std::uint8_t> bytes = random_programme(random);
    check_programme(bytes.data(), bytes.size());
  }
  std::printf("%ld programmes agree\n", runs);
  return 0;
}

#endif
