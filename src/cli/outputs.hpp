// Where a search's results go, and the command that they are recorded with.
#pragma once

#include <string>
#include <vector>

#include "core/gpu.hpp"
#include "table/table.hpp"

namespace moetune {

struct OutputPaths {
  std::string table_dir;
  std::string table;
  std::string journal;
};

// OUT/configs/tuned/<GPU>/ and OUT/results/<GPU>/, made and found writable, else Error(io). An
// offline search goes below OUT/offline where the table there holds measured times, and has a
// journal of its own.
OutputPaths choose_outputs(const std::string& out_dir, const TableIdentity& identity,
                           const Gpu& gpu);

// What this process was started with, without the program's own path.
std::vector<std::string> own_arguments();
// The command as typed, but for the program's own path.
std::string command_line();

}  // namespace moetune
