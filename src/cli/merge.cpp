#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "cli/command.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "report/html_data.hpp"
#include "table/merge.hpp"
#include "table/table.hpp"
#include "tune/journal.hpp"
#include "tune/merge_journals.hpp"

namespace moetune {
namespace {

namespace fs = std::filesystem;

struct MergeOptions {
  std::string out_dir;
  std::vector<std::string> inputs;
};

// Named files as they are; of a folder those that a search names, at any depth. Sorted, each once.
std::set<std::string> find_files(const std::vector<std::string>& inputs) {
  std::set<std::string> files;
  for (const std::string& input : inputs) {
    if (!fs::is_directory(input)) {
      files.insert(fs::path(input).lexically_normal().string());
      continue;
    }
    const std::size_t before = files.size();
    for (const auto& item : fs::recursive_directory_iterator(input)) {
      const fs::path& path = item.path();
      const bool is_ours = path.extension() == ".json" || path.extension() == ".jsonl";
      if (is_ours && path.filename().string().starts_with("E=")) {
        files.insert(path.lexically_normal().string());
      }
    }
    if (files.size() == before) {
      throw Error(ErrorKind::input,
                  fmt::format("{}: no table and no journal in this folder; give what a search was "
                              "given as --out",
                              input));
    }
  }
  return files;
}

struct NamedTable {
  std::string path;
  Table table;
};

// By where they go.
using Tables = std::map<std::string, std::vector<NamedTable>>;
using Journals = std::map<std::string, std::vector<NamedJournal>>;

std::string gpu_folder(const TableIdentity& identity) {
  Gpu gpu;
  gpu.name = identity.gpu;
  return file_name(gpu);
}

void add_table(const std::string& path, const fs::path& out_dir, Tables& tables) {
  Table table = read_table(path);
  const fs::path target =
      out_dir / "configs" / "tuned" / gpu_folder(table.identity) / table_file_name(table.identity);
  tables[target.string()].push_back({path, std::move(table)});
}

void add_journal(const std::string& path, const fs::path& out_dir, Journals& journals) {
  JournalContents contents = read_journal(path);
  for (const std::string& warning : contents.warnings) spdlog::warn("{}", warning);
  if (contents.header.is_null()) {
    spdlog::warn("{}: empty, nothing to merge", path);
    return;
  }
  const TableIdentity identity = gather({contents.header, {}, {}}, std::nullopt).identity;
  std::string name = table_file_name(identity);
  name.resize(name.rfind(".json"));
  // As search names them: a GPU that is not there has no driver.
  name += identity.driver.empty() ? ".offline.jsonl" : ".jsonl";
  const fs::path target = out_dir / "results" / gpu_folder(identity) / name;
  journals[target.string()].push_back({path, std::move(contents)});
}

Table merged(const std::vector<NamedTable>& named) {
  std::vector<Table> tables;
  for (const auto& [path, table] : named) {
    // With each: two that both fit a third may have different kernels.
    for (const auto& [other_path, other] : named) {
      if (const auto why = why_not_mergeable(other, table); !why.empty()) {
        throw Error(ErrorKind::input,
                    fmt::format("{} and {} are of different identity: {}; merge them into "
                                "different folders",
                                other_path, path, why));
      }
    }
    tables.push_back(table);
  }
  return merge_tables(tables);
}

// A search holds its journal locked: replacing it would lose what the search still writes.
class JournalLock {
 public:
  explicit JournalLock(const std::string& path)
      : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ >= 0 && ::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      ::close(descriptor_);
      throw Error(ErrorKind::io, fmt::format("{} is being written by a search; wait for it", path));
    }
  }
  ~JournalLock() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  JournalLock(const JournalLock&) = delete;
  JournalLock& operator=(const JournalLock&) = delete;

 private:
  int descriptor_;
};

void make_folder_of(const std::string& path) {
  std::error_code error;
  const fs::path folder = fs::path(path).parent_path();
  fs::create_directories(folder, error);
  if (error) {
    throw Error(ErrorKind::io, fmt::format("cannot make the folder {}: {}; choose another OUT_DIR",
                                           folder.string(), error.message()));
  }
}

int merge(const MergeOptions& options) {
  const fs::path out_dir = fs::path(options.out_dir).lexically_normal();
  Tables tables;
  Journals journals;
  std::set<std::string> files = find_files(options.inputs);
  for (const std::string& path : files) {
    if (path.ends_with(".jsonl")) {
      add_journal(path, out_dir, journals);
    } else {
      add_table(path, out_dir, tables);
    }
  }
  // What is there already is one more input.
  std::vector<std::unique_ptr<JournalLock>> locks;
  for (auto& [target, named] : tables)
    if (fs::exists(target) && !files.contains(target))
      named.push_back({target, read_table(target)});
  for (auto& [target, named] : journals) {
    if (!fs::exists(target)) continue;
    locks.push_back(std::make_unique<JournalLock>(target));
    if (!files.contains(target)) named.push_back({target, read_journal(target)});
  }

  // Everything is merged before anything is written: one that does not fit leaves all as it was.
  std::map<std::string, Table> new_tables;
  for (const auto& [target, named] : tables) new_tables[target] = merged(named);
  std::map<std::string, MergedJournal> new_journals;
  for (const auto& [target, named] : journals) new_journals[target] = merge_journals(named);

  for (const auto& [target, table] : new_tables) {
    write_table(fs::path(target).parent_path().string(), table);
    fmt::print("table   {}: {} entries from {} tables{}\n", target, table.entries.size(),
               tables[target].size(), table.complete() ? "" : ", incomplete");
  }
  for (const auto& [target, journal] : new_journals) {
    make_folder_of(target);
    write_file_atomically(target, journal.text);
    fmt::print("journal {}: {} trials from {} journals, {} of them in several with other results\n",
               target, journal.num_trials, journals[target].size(), journal.num_conflicts);
  }
  return 0;
}

}  // namespace

void add_merge(CLI::App& app, Run& run) {
  CLI::App* command = app.add_subcommand(
      "merge", "Join tables and journals of the same identity, such as those of several machines");
  const auto options = std::make_shared<MergeOptions>();
  command->add_option("out_dir", options->out_dir, "Where the joined ones go, as search's --out")
      ->required()
      ->type_name("OUT_DIR");
  command
      ->add_option("inputs", options->inputs,
                   "Tables (.json), journals (.jsonl), or folders that hold them")
      ->required()
      ->type_name("INPUT...");
  command->footer(R"(
Example:
  moe-tune merge . shard-1 shard-2 shard-3

The order of inputs does not matter. What OUT_DIR has already takes part. Where two tables have an
entry for a number of tokens, measured comes before recorded before predicted, the full timing
protocol before less, then the faster. Exit codes: 0 good, 2 inputs that do not belong together,
cannot be read, or an output that cannot be written; then nothing was changed by the former.)");
  command->callback([&run, options] { run = [options] { return merge(*options); }; });
}

}  // namespace moetune
