// One file a subcommand. Each adds itself to the app and, when chosen, sets `run`.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace moetune {

using Run = std::function<int()>;  // returns the exit code; throws Error

void add_search(CLI::App& app, Run& run);
void add_validate(CLI::App& app, Run& run);
void add_bench(CLI::App& app, Run& run);
void add_compare(CLI::App& app, Run& run);
void add_compile(CLI::App& app, Run& run);
void add_devices(CLI::App& app, Run& run);
void add_models(CLI::App& app, Run& run);
void add_space(CLI::App& app, Run& run);
void add_replay(CLI::App& app, Run& run);
void add_merge(CLI::App& app, Run& run);
void add_report(CLI::App& app, Run& run);
void add_which(CLI::App& app, Run& run);
void add_worker(CLI::App& app, Run& run);          // hidden: the child process that measures
void add_compile_worker(CLI::App& app, Run& run);  // hidden: a process that compiles

}  // namespace moetune
