// Parses the command line, runs the chosen subcommand, and turns what goes wrong into one
// `error: ...` line and an exit code.
#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <new>
#include <string>
#include <system_error>

#include "cli/command.hpp"
#include "cli/usage.hpp"
#include "core/error.hpp"

namespace moetune {
namespace {

constexpr const char* kFooter = R"(Examples:
  moe-tune search --grid --model mixtral-8x7b --dtype bf16
  moe-tune search --random 200 --model deepseek-v3 --tp 8 --dtype fp8_block --tokens 1,64,1024
  moe-tune validate configs/tuned/NVIDIA_H200/*.json
  moe-tune bench --model qwen3-30b-a3b --tokens 16,256

Exit codes: 0 good; 1 the work fell short; 2 bad usage or an unreadable input or output;
3 no usable device. Results go to stdout, everything else to stderr.)";

void set_up_log(bool verbose, bool quiet) {
  auto logger = spdlog::stderr_color_mt("moe-tune");
  logger->set_pattern("%^%l%$: %v");
  logger->set_level(verbose ? spdlog::level::debug
                            : (quiet ? spdlog::level::err : spdlog::level::info));
  spdlog::set_default_logger(std::move(logger));
}

int report(const std::string& message, int code) {
  std::string line = message;
  // Messages quote files and arguments: what they hold must not break the line or the terminal.
  std::replace_if(
      line.begin(), line.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, ' ');
  fmt::print(stderr, "error: {}\n", line);
  return code;
}

// A full disk may show only now.
void flush_results() {
  std::cout.flush();
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0 || !std::cout) {
    throw Error(ErrorKind::io,
                fmt::format("cannot write the results to stdout: {}", std::strerror(errno)));
  }
}

int run(int argc, char** argv) {
  CLI::App app("Finds the fastest CUDA kernels for mixture-of-experts layers.", "moe-tune");
  app.footer(kFooter);
  app.set_version_flag("--version", "moe-tune " MOETUNE_VERSION);
  app.require_subcommand(1);
  app.fallthrough();  // global options may follow the subcommand
  app.get_formatter()->column_width(34);
  bool verbose = false;
  bool quiet = false;
  auto* verbose_flag = app.add_flag("--verbose", verbose, "Show details on stderr");
  app.add_flag("--quiet", quiet, "Show only errors on stderr")->excludes(verbose_flag);

  Run chosen;
  add_search(app, chosen);
  add_validate(app, chosen);
  add_bench(app, chosen);
  add_compile(app, chosen);
  add_devices(app, chosen);
  add_models(app, chosen);
  add_space(app, chosen);
  add_replay(app, chosen);
  add_merge(app, chosen);
  add_compare(app, chosen);
  add_report(app, chosen);
  add_which(app, chosen);
  add_worker(app, chosen);
  add_compile_worker(app, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help_or_version) {
    app.exit(help_or_version);
    flush_results();
    return 0;
  } catch (const CLI::ParseError& error) {
    throw usage_error(app, error);
  }
  set_up_log(verbose, quiet);
  const int code = chosen();
  flush_results();
  return code;
}

}  // namespace
}  // namespace moetune

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file-size limit then fails the write instead of the process
  try {
    return moetune::run(argc, argv);
  } catch (const moetune::Error& error) {
    return moetune::report(error.what(), moetune::exit_code(error.kind()));
  } catch (const std::bad_alloc&) {
    return moetune::report("out of memory; use fewer or smaller experts, tokens or threads", 1);
  } catch (const std::system_error& error) {  // file systems, threads, a closed stdout
    return moetune::report(error.what(), moetune::exit_code(moetune::ErrorKind::io));
  } catch (const std::exception& error) {
    return moetune::report(error.what(), 1);
  }
}
