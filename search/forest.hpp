// A regression of a few hundred measurements on a dozen features: extremely randomised trees
// (Geurts, Ernst, Wehenkel: Extremely randomized trees, Machine Learning 63, 2006). Each tree is
// grown on all rows with random cuts, so that trees agree near what was measured and differ where
// nothing was: their spread tells how little is known.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace moetune {

struct Estimate {
  double mean = 0;
  double sd = 0;  // over the trees
};

class Forest {
 public:
  // `features`: [targets.size(), num_features], row-major. At least one row. The same seed gives
  // the same forest.
  Forest(std::span<const float> features, std::size_t num_features, std::span<const float> targets,
         std::uint64_t seed);

  Estimate predict(std::span<const float> features) const;

 private:
  struct Node {
    int feature = -1;  // -1: a leaf
    float cut = 0;     // rows below it go left
    float value = 0;   // leaf: the mean of its rows
    std::uint32_t left = 0;
    std::uint32_t right = 0;
  };
  struct Rows;  // what a tree is grown on

  std::uint32_t grow(Rows& rows, std::size_t begin, std::size_t end);

  std::vector<Node> nodes_;
  std::vector<std::uint32_t> roots_;
};

}  // namespace moetune
