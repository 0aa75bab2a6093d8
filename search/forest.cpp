#include "search/forest.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "search/draw.hpp"

namespace moetune {
namespace {

constexpr int kNumTrees = 40;
constexpr std::size_t kSmallestSplit = 3;  // rows; fewer are a leaf

}  // namespace

struct Forest::Rows {
  std::span<const float> features;
  std::size_t num_features;
  std::span<const float> targets;
  std::vector<std::size_t> order;  // the rows of a node are neighbours here
  std::mt19937_64 generator;

  float feature(std::size_t row, std::size_t which) const {
    return features[row * num_features + which];
  }
};

Forest::Forest(std::span<const float> features, std::size_t num_features,
               std::span<const float> targets, std::uint64_t seed) {
  Rows rows{features, num_features, targets, std::vector<std::size_t>(targets.size()),
            std::mt19937_64(seed)};
  std::iota(rows.order.begin(), rows.order.end(), std::size_t{0});
  nodes_.reserve(2 * targets.size() * kNumTrees);
  for (int tree = 0; tree < kNumTrees; ++tree) roots_.push_back(grow(rows, 0, targets.size()));
}

std::uint32_t Forest::grow(Rows& rows, std::size_t begin, std::size_t end) {
  const auto at = static_cast<std::uint32_t>(nodes_.size());
  nodes_.emplace_back();
  const auto num = static_cast<double>(end - begin);
  double sum = 0;
  double squares = 0;
  for (std::size_t i = begin; i < end; ++i) {
    const double target = rows.targets[rows.order[i]];
    sum += target;
    squares += target * target;
  }
  nodes_[at].value = static_cast<float>(sum / num);
  if (end - begin < kSmallestSplit || squares - sum * sum / num < 1e-12) return at;

  // One random cut a feature; the one that leaves the least squared error is taken.
  int feature = -1;
  float cut = 0;
  double best_gain = -1;
  for (std::size_t f = 0; f < rows.num_features; ++f) {
    float low = rows.feature(rows.order[begin], f);
    float high = low;
    for (std::size_t i = begin + 1; i < end; ++i) {
      const float value = rows.feature(rows.order[i], f);
      low = std::min(low, value);
      high = std::max(high, value);
    }
    if (!(low < high)) continue;
    const auto here = low + static_cast<float>(draw_unit(rows.generator)) * (high - low);
    const float candidate = here > low ? here : std::nextafter(low, high);  // `low` goes left
    double left_sum = 0;
    double num_left = 0;
    for (std::size_t i = begin; i < end; ++i) {
      if (rows.feature(rows.order[i], f) >= candidate) continue;
      left_sum += rows.targets[rows.order[i]];
      ++num_left;
    }
    const double right_sum = sum - left_sum;
    const double gain = left_sum * left_sum / num_left + right_sum * right_sum / (num - num_left);
    if (gain > best_gain) {
      best_gain = gain;
      feature = static_cast<int>(f);
      cut = candidate;
    }
  }
  if (feature < 0) return at;  // rows that differ in their targets alone
  const auto middle = std::partition(
      rows.order.begin() + static_cast<std::ptrdiff_t>(begin),
      rows.order.begin() + static_cast<std::ptrdiff_t>(end),
      [&](std::size_t row) { return rows.feature(row, static_cast<std::size_t>(feature)) < cut; });
  const auto split = static_cast<std::size_t>(middle - rows.order.begin());
  const std::uint32_t left = grow(rows, begin, split);
  const std::uint32_t right = grow(rows, split, end);
  Node& node = nodes_[at];
  node.feature = feature;
  node.cut = cut;
  node.left = left;
  node.right = right;
  return at;
}

Estimate Forest::predict(std::span<const float> features) const {
  double sum = 0;
  double squares = 0;
  for (const std::uint32_t root : roots_) {
    const Node* node = &nodes_[root];
    while (node->feature >= 0) {
      const bool goes_left = features[static_cast<std::size_t>(node->feature)] < node->cut;
      node = &nodes_[goes_left ? node->left : node->right];
    }
    sum += node->value;
    squares += static_cast<double>(node->value) * node->value;
  }
  const auto num = static_cast<double>(roots_.size());
  const double mean = sum / num;
  return {mean, std::sqrt(std::max(0.0, squares / num - mean * mean))};
}

}  // namespace moetune
