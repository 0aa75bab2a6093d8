#include "core/point.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "core/error.hpp"

namespace moetune {
namespace {

const int* find_value(const Point& point, std::string_view name) {
  for (const auto& [key, value] : point.values())
    if (key == name) return &value;
  return nullptr;
}

}  // namespace

int Point::at(std::string_view name) const {
  if (const int* value = find_value(*this, name)) return *value;
  throw Error(ErrorKind::input, fmt::format("the point {{{}}} has no value for {}", key(), name));
}

int Point::value_or(std::string_view name, int fallback) const {
  const int* value = find_value(*this, name);
  return value ? *value : fallback;
}

bool Point::has(std::string_view name) const {
  return find_value(*this, name) != nullptr;
}

void Point::set(std::string_view name, int value) {
  for (auto& [key, old] : values_) {
    if (key == name) {
      old = value;
      return;
    }
  }
  values_.emplace_back(name, value);
}

std::string Point::key() const {
  std::string text;
  for (const auto& [name, value] : values_) {
    if (!text.empty()) text += ',';
    text += fmt::format("{}={}", name, value);
  }
  return text;
}

void to_json(nlohmann::ordered_json& json, const Point& point) {
  json = nlohmann::ordered_json::object();
  for (const auto& [name, value] : point.values()) json[name] = value;
}

void from_json(const nlohmann::ordered_json& json, Point& point) {
  if (!json.is_object())
    throw Error(ErrorKind::input,
                fmt::format("a point must be an object of integers, not {}", json.type_name()));
  std::vector<std::pair<std::string, int>> values;
  for (const auto& [name, value] : json.items()) {
    // Unsigned values above INT64_MAX come out negative from get<int64_t>(), hence both tests.
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() ||
                       value.get<std::uint64_t>() <= std::numeric_limits<int>::max()) &&
                      value.get<std::int64_t>() >= std::numeric_limits<int>::min() &&
                      value.get<std::int64_t>() <= std::numeric_limits<int>::max();
    if (!fits) {
      throw Error(ErrorKind::input,
                  fmt::format("{} of a point must be an integer below 2^31, not {}", name,
                              value.is_structured() ? value.type_name() : value.dump()));
    }
    values.emplace_back(name, value.get<int>());
  }
  point = Point(std::move(values));
}

void SearchSpace::rule(std::string name, std::function<Violation(const Point&)> violation) {
  constraints.push_back({std::move(name), std::move(violation)});
}
void SearchSpace::spare(std::string name, std::function<Violation(const Point&)> violation) {
  constraints.push_back({std::move(name), std::move(violation), true});
}

std::uint64_t SearchSpace::size() const {
  std::uint64_t count = 1;
  for (const Parameter& parameter : parameters) count *= parameter.values.size();
  return count;
}

Point SearchSpace::at(std::uint64_t index) const {
  if (index >= size())
    throw Error(ErrorKind::input,
                fmt::format("the search space has {} points, so none at {}", size(), index));
  std::vector<std::pair<std::string, int>> values(parameters.size());
  for (std::size_t i = parameters.size(); i-- > 0;) {
    const Parameter& parameter = parameters[i];
    const std::uint64_t radix = parameter.values.size();
    values[i] = {parameter.name, parameter.values[index % radix]};
    index /= radix;
  }
  return Point(std::move(values));
}

Point SearchSpace::reference() const {
  std::vector<std::pair<std::string, int>> values;
  for (const Parameter& parameter : parameters)
    values.emplace_back(parameter.name, parameter.reference);
  return Point(std::move(values));
}

const Parameter* SearchSpace::find(std::string_view name) const {
  const auto found = std::find_if(parameters.begin(), parameters.end(),
                                  [&](const Parameter& p) { return p.name == name; });
  return found == parameters.end() ? nullptr : &*found;
}

std::optional<Rejection> SearchSpace::reject(const Point& point, bool strict) const {
  for (const Parameter& parameter : parameters) {
    const int* value = find_value(point, parameter.name);
    if (!value) return Rejection{"parameters", fmt::format("{} is missing", parameter.name)};
    const auto& allowed = parameter.values;
    if (strict && std::find(allowed.begin(), allowed.end(), *value) == allowed.end()) {
      return Rejection{"values", fmt::format("{}={} is not one of {}", parameter.name, *value,
                                             fmt::join(allowed, ", "))};
    }
  }
  for (const auto& [name, value] : point.values())
    if (!find(name)) return Rejection{"parameters", fmt::format("{} is not a parameter", name)};
  for (const Constraint& constraint : constraints)
    if (auto reason = constraint.violation(point))
      return Rejection{constraint.name, std::move(*reason)};
  return std::nullopt;
}

}  // namespace moetune
