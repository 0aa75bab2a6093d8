// Runs a mode of `moe-tune bench` as its user does.
#pragma once

#include <fmt/format.h>
#include <sys/wait.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "core/text.hpp"
#include "tests/table_fixture.hpp"

namespace moetune {

// Its exit code (-1: a signal) and what it said on stderr; the layer is a small one.
inline std::pair<int, std::string> run_bench(const std::string& mode,
                                             const std::string& arguments) {
  const TemporaryFolder directory;
  const std::string err = directory.file("err");
  const int status = std::system(fmt::format("{} bench {} --shape 8,2,512,256 {} >/dev/null 2>'{}'",
                                             MOETUNE_PROGRAM, mode, arguments, err)
                                     .c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(err)};
}

}  // namespace moetune
