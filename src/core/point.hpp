// How it is computed: parameters, points of a search space, and the rules that make points legal.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moetune {

// One axis of a search space, e.g. BLOCK_SIZE_M in {16, 32, 64, ...}.
struct Parameter {
  std::string name;
  std::vector<int> values;
  int reference = 0;  // its value at the reference point that speedups are measured against
  std::string help;   // one line, shown by `moe-tune space`
};

// One choice for every parameter, in the space's order. Small, comparable, hashable by key().
class Point {
 public:
  Point() = default;
  explicit Point(std::vector<std::pair<std::string, int>> values) : values_(std::move(values)) {}

  int at(std::string_view name) const;  // throws Error(input) naming the missing parameter
  int value_or(std::string_view name, int fallback) const;
  bool has(std::string_view name) const;
  void set(std::string_view name, int value);  // replaces or appends
  const std::vector<std::pair<std::string, int>>& values() const { return values_; }
  bool empty() const { return values_.empty(); }
  std::string key() const;  // "BLOCK_SIZE_M=64,BLOCK_SIZE_N=128,..."
  bool operator==(const Point&) const = default;

 private:
  std::vector<std::pair<std::string, int>> values_;
};

void to_json(nlohmann::ordered_json& json, const Point& point);    // {"BLOCK_SIZE_M": 64, ...}
void from_json(const nlohmann::ordered_json& json, Point& point);  // throws Error(input)

// Why a point breaks a rule, with the numbers ("needs 311296 bytes of shared memory, the GPU allows
// 232448"); nothing where it does not.
using Violation = std::optional<std::string>;

// A rule that legal points obey.
struct Constraint {
  std::string name;  // short and stable: rejected points are counted under it
  std::function<Violation(const Point&)> violation;
  // The point would run, and right: a search just need not try it. Such rules may change while
  // tables stay valid.
  bool spares_search = false;
};

struct Rejection {
  std::string rule;    // the constraint's name
  std::string reason;  // with the numbers
};

class SearchSpace {
 public:
  std::vector<Parameter> parameters;
  std::vector<Constraint> constraints;

  void rule(std::string name, std::function<Violation(const Point&)> violation);
  void spare(std::string name, std::function<Violation(const Point&)> violation);  // spares_search

  std::uint64_t size() const;           // number of raw points, legal or not
  Point at(std::uint64_t index) const;  // mixed radix, the last parameter varies fastest
  Point reference() const;              // every parameter's reference value
  const Parameter* find(std::string_view name) const;
  // The first rule that `point` breaks; also rejects points that miss a parameter or hold a value
  // outside the parameter's list when `strict` (a table may hold a value off the grid).
  std::optional<Rejection> reject(const Point& point, bool strict = false) const;
};

}  // namespace moetune
