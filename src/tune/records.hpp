// Times that earlier searches measured on a GPU, read from their journals.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "core/gpu.hpp"
#include "core/problem.hpp"
#include "core/trial.hpp"

namespace moetune {

struct Record {
  // Of several records of a plan the greatest counts: one of other sources of its variants than
  // here gives way to one of the same, a look that was stopped early to a whole one, an early round
  // to a later one.
  std::tuple<bool, bool, int> care;
  Trial trial;
};

class Records {
 public:
  // Reads every journal (*.jsonl) below DIR/<file_name(gpu)> whose GPU, layer shape, dtype and
  // routing are these; its kernels may be older ones, but count last. Logs and skips what is not a
  // journal, and bad lines. No such directory: no records.
  Records(const std::string& dir, const Gpu& gpu, const Problem& problem);

  // The measurements of one stage at one token count, by Plan::key().
  const std::map<std::string, Record>& at(Stage stage, std::int64_t num_tokens) const;
  // Null when the plan was not measured.
  const Trial* find(Stage stage, std::int64_t num_tokens, const Plan& plan) const;

 private:
  void read(const std::string& path, const Gpu& gpu, const Problem& problem);

  std::map<std::pair<Stage, std::int64_t>, std::map<std::string, Record>> records_;
};

}  // namespace moetune
